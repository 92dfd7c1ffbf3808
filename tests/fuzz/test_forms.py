"""Made-up paths, queries and forms for every route of the console, as the owner: no page fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import httpx
import pytest
from browsing import FIRST, give_past, opened
from daemons import Daemon, install_bundle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sanic import Sanic

from appliance.console import blueprint
from appliance.console.assets import web_root
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import create_session, set_password

CONFIG = """
[lora]
enabled = false
[resources]
min_free_disk_mb = 999999999
[model]
default_max_tokens = 2
"""
OWN = {"Sec-Fetch-Site": "same-origin"}
STREAMS = ("/console/events", "/logs/follow")
"""They do not end by themselves."""
HEAVY = (
    "/restart",
    "/backup/make",
    "/models/import",
    "/models/measure",
    "/logout",
    "/runs/train",
    "/account",
)
"""A press is enough: they stop the box, end the session, or compute for minutes."""
TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1",
        "9" * 4000,
        "nan",
        "inf",
        "1e999",
        "\0",
        "../..",
        FIRST,
        "base",
        "pending",
        "on",
        "[]",
        "{}",
    ]
)


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a past and an owner."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    give_past(home, bundle)
    with opened(home) as store:
        set_password(store, "correct horse battery")
    running = Daemon(home).start()
    yield running
    running.kill()


@cache
def routes() -> list[tuple[str, str]]:
    app: Sanic = Sanic("fuzz-console")
    app.blueprint(blueprint)
    found = [
        (method, "/" + route.path)
        for route in app.router.routes
        for method in route.methods
        if method in ("GET", "POST") and not ("/" + route.path).startswith((*STREAMS, *HEAVY))
    ]
    return sorted(found)


@pytest.mark.parametrize("examples", [4, pytest.param(100, marks=pytest.mark.fuzz)])
def test_no_page_fails(daemon: Daemon, examples: int) -> None:
    with opened(daemon.home) as store:
        token = create_session(store, 1.0)
    pages = (web_root() / "templates").rglob("*.html")
    names = sorted({name for page in pages for name in re.findall(r'name="(\w[\w.-]*)"', page.read_text())})
    assert len(names) > 20 and len(routes()) > 60
    given_fields = st.dictionaries(st.sampled_from(names) | st.text(max_size=8), TEXTS, max_size=6)
    tried = 0
    with httpx.Client(base_url=daemon.url, headers=OWN, timeout=120) as client:
        for method, path in routes():

            @settings(
                max_examples=examples,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(
                st.just((method, path)),
                st.lists(TEXTS, min_size=4, max_size=4),
                given_fields,
                given_fields,
                st.booleans(),
            )
            def send(
                route: tuple[str, str],
                parts: list[str],
                query: dict[str, str],
                form: dict[str, str],
                fragment: bool,
            ) -> None:
                nonlocal tried
                tried += 1
                (method, path), rest = route, iter(parts)
                where = re.sub(
                    r"<[^>]+>", lambda _: httpx.QueryParams({"a": next(rest)}).__str__()[2:] or "x", path
                )
                answer = client.request(
                    method,
                    where,
                    params=query,
                    data=form if method == "POST" else None,
                    headers={
                        "Cookie": f"shammah_session={token}",
                        **({"HX-Request": "true"} if fragment else {}),
                    },
                )
                assert answer.status_code < 500, (method, where, query, form, answer.text[-300:])

            send()
    print(f"\nconsole: {tried:,} requests to {len(routes())} routes")
    assert httpx.get(f"{daemon.url}/health").status_code == 200
    assert "Traceback" not in daemon.log, daemon.log[daemon.log.index("Traceback") - 300 :][:3000]
