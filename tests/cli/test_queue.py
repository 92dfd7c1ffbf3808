"""`shammah queue`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from daemons import accept_adapter, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
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


def test_forget(shammah: Shammah, home: Home, taught: None) -> None:
    example = json.loads(shammah("queue", "show", "--json").stdout)["examples"][1]
    shown = shammah("queue", "forget", example["id"])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "Examples forgotten: 1, stored answers: 0.\n"
    assert [json.loads(line)["query"][-3:] for line in home.queue.read_text().splitlines()] == ["(0)", "(2)"]
    again = json.loads(shammah("queue", "forget", example["id"], "--retrain", "--json").stdout)
    assert (again["examples"], again["retrained"], again["current"]) == ([], False, None)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["ex_absent"], 1, "no example 'ex_absent'"),
        (["--device", "toaster"], 1, "no device 'toaster'"),
        ([], 2, "either the id"),
        (["ex_absent", "--device", "toaster"], 2, "either the id"),
    ],
)
def test_forgetting_what_is_not_there(
    shammah: Shammah, taught: None, args: list[str], code: int, words: str
) -> None:
    done = shammah("queue", "forget", *args)
    assert done.returncode == code
    assert words in done.stderr


def test_forgetting_what_was_learned_without_a_daemon(shammah: Shammah, home: Home, bundle: Bundle) -> None:
    install_bundle(home, bundle)
    accept_adapter(home, bundle, "adapter_one", 1)
    accept_adapter(home, bundle, "adapter_two", 2)
    for name in ("adapter_one", "adapter_two"):
        assert shammah("adapters", "promote", name).returncode == 0
    store = Store.open(home)
    run = store.runs.create("person", 1, "adapter_one")
    messages = [{"role": "user", "content": "Hello"}]
    device, _ = store.keys.create("tablet")
    example = store.examples.add(NewExample("praise", "Hello", "Hi", "Hi", 1.0, messages, device=device.id))
    store.examples.hold(run.id, [example.id])
    store.examples.mark_used(run.id)
    store.runs.update(run.id, state="promoted")
    row = store.adapters.get("adapter_two")
    assert row is not None
    store.adapters.upsert(replace(row, run_id=run.id))
    store.close()
    shown = shammah("queue", "forget", "--device", "tablet").stdout
    assert "adapter_two learned from it and is in service. Repeat with --retrain" in shown
    shown = shammah("queue", "forget", "--device", "tablet", "--retrain").stdout
    assert "adapter_two had learned from it and was removed.\n" in shown
    assert shown.endswith("Other examples in the queue again: 0. In service: adapter_one.\n")
    assert home.current.readlink().name == "adapter_one.safetensors"
    assert not (home.adapters / "adapter_two.safetensors").exists()
