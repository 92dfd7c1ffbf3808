from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from jinja2.nodes import Call, Getattr, Import, Name

from appliance.console.assets import web_root
from appliance.console.render import (
    FLASH_COOKIE,
    adapter_title,
    duration,
    environment,
    flash,
    measure,
    render,
    size,
    when,
)
from appliance.console.run import Course
from appliance.home import Home
from appliance.store import Store
from appliance.store.runs import Run


def test_text_is_escaped() -> None:
    template = environment().from_string("{{ text }} {{ text|adapter }} {{ text|measure }}")
    assert "<" not in template.render(text="<script>alert(1)</script>")


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        environment().from_string("{{ nothing }}").render()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_600, "1 h"), (4_000, "1 h 6 min"), (30_000, "8 h"),
     (90_000, "1 day"), (200_000, "2 days"), (-5, "0 s")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4_880_000, "4.9 MB"), (271_000_000_000, "271 GB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_when() -> None:
    now = time.time()
    assert "just now" in when(now)
    assert "2 min ago" in when(now - 130)
    assert "in 4 min" in when(now + 299)
    assert 'datetime="2026-11-22T20:15:00Z"' in when(1795378500.0, "full")
    assert ">22 Nov 2026, 20:15 UTC<" in when(1795378500.0, "full")


def test_adapters_are_called_by_when_they_were_learned() -> None:
    assert "22 Nov, 20:15" in adapter_title("adapter_20261122T201500Z")
    assert adapter_title("adapter_20261122T201500Z-2").endswith(" #2")
    assert adapter_title("grandmas-recipes") == "grandmas-recipes"
    assert adapter_title(None) == "Base model"
    assert adapter_title("adapter_20269922T201500Z") == "adapter_20269922T201500Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\u2013"), (True, "yes"), (0.08333, "0.08333"), (26.7034, "26.7"), (18, "18"), ("ok", "ok")],
)
def test_measure(value: object, text: str) -> None:
    assert measure(value) == text


def course_of(run: Run) -> str:
    return render("parts/run_course.html", course=Course(run, None, (), (), None, None, None, 1, True, True))


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (None, None),
        ({"steps": 2}, None),
        ({"steps": 2, "left_out": {"duplicate": 9, "loop": 3}}, "12: 9 duplicates, 3 loops"),
    ],
)
def test_what_a_run_left_out(home: Home, metrics: dict[str, object] | None, shown: str | None) -> None:
    store = Store.open(home)
    run = store.runs.update(store.runs.create("person", 20).id, state="failed", metrics=metrics)
    store.close()
    text = course_of(run)
    assert ("Left out" in text) == (shown is not None)
    assert shown is None or shown in text


@pytest.mark.parametrize(
    ("parent", "metrics", "facts"),
    [
        (None, None, {"Began from": "base model"}),
        (
            "adapter_1",
            {"anew": False, "repeated": 1},
            {"Began from": "adapter_1", "Learned again": "1 earlier example"},
        ),
        (
            "adapter_1",
            {"anew": True, "repeated": 54, "stopped": 7},
            {
                "Stopped early": "at step 7, as answers it had not seen got worse",
                "Began from": "base model",
                "Learned again": "54 earlier examples",
                "Compared with": "adapter_1",
            },
        ),
    ],
)
def test_where_a_run_began(
    home: Home, parent: str | None, metrics: dict[str, object] | None, facts: dict[str, str]
) -> None:
    store = Store.open(home)
    run = store.runs.update(store.runs.create("person", 2, parent).id, state="failed", metrics=metrics)
    store.close()
    text = course_of(run)
    shown = dict(re.findall(r"<dt>([^<]*)</dt><dd[^>]*>([^<]*)</dd>", text))
    wanted = ("Stopped early", "Began from", "Learned again", "Compared with")
    assert {title: shown[title] for title in wanted if title in shown} == facts


@pytest.mark.parametrize(
    "text", ["a" * 5_000, "\N{GRINNING FACE}" * 5_000, "\x00" * 5_000, '"' * 5_000, "\ud800"]
)
def test_a_message_fits_into_a_cookie(text: str) -> None:
    """Browsers drop a larger one, and the owner would not be told."""
    payload = flash(text, "bad")
    assert len(FLASH_COOKIE) + len(base64.urlsafe_b64encode(payload)) < 4_000
    assert len(json.loads(payload)["message"]) >= min(len(text), 200)


def test_every_template_imports_the_macros_it_uses() -> None:
    """Parts are also rendered alone, without the page that has them."""
    env = environment()
    pages = env.list_templates()
    parsed = {
        name: env.parse(Path(web_root(), "templates", name).read_text(encoding="utf-8")) for name in pages
    }
    modules = {node.target for tree in parsed.values() for node in tree.find_all(Import)}
    assert {"ui", "words"} <= modules
    for name, tree in parsed.items():
        called = {
            call.node.node.name
            for call in tree.find_all(Call)
            if isinstance(call.node, Getattr) and isinstance(call.node.node, Name)
        }
        assert called & modules <= {node.target for node in tree.find_all(Import)}, name
