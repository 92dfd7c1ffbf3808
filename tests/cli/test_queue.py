"""`shammah queue`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample

if TYPE_CHECKING:
    from conftest import Shammah


@pytest.fixture
def taught(home: Home) -> None:
    store = Store.open(home)
    for number in range(3):
        query = f"What is the Wi-Fi name?\n({number})"
        messages = [{"role": "user", "content": query}]
        store.examples.add(
            NewExample(
                "correction", query, "No idea.", "It is Höhle.", 10.0, messages, correction="It is Höhle."
            )
        )
    store.close()


def test_show(shammah: Shammah, taught: None) -> None:
    shown = shammah("queue", "show", "--limit", "2").stdout
    assert shown.count("What is the Wi-Fi name? (") == 2
    assert shown.splitlines()[-1] == "3 pending"
    data = json.loads(shammah("queue", "show", "--json").stdout)
    assert data["counts"]["pending"] == 3
    assert data["examples"][0]["target"] == "It is Höhle."
    assert "No used examples." in shammah("queue", "show", "--state", "used").stdout


def test_export(shammah: Shammah, home: Home, taught: None) -> None:
    lines = [json.loads(line) for line in shammah("queue", "export").stdout.splitlines()]
    assert [line["query"] for line in lines] == [f"What is the Wi-Fi name?\n({n})" for n in range(3)]
    assert list(lines[0])[:4] == ["query", "response", "weight", "feedback"]
    target = home.root / "out.jsonl"
    done = shammah("queue", "export", "-o", str(target))
    assert done.stdout == ""
    assert [json.loads(line) for line in target.read_text().splitlines()] == lines
