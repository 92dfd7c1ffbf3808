"""Forgetting through a running box: no file of its home holds the words any more, its log never did."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from daemons import Daemon, accept_adapter, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.examples import NewExample

SECRET = "xylophone-4711"


def delete(daemon: Daemon, path: str, **options: Any) -> httpx.Response:
    return httpx.delete(f"{daemon.url}/v1/training/{path}", timeout=120, **options)


def holding(home: Home) -> list[str]:
    """Files with the words in them; the model's are as they came."""
    files = [path for path in home.root.rglob("*") if path.is_file() and home.models not in path.parents]
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_an_example_is_forgotten(daemon: Daemon) -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": f"Where do I keep the {SECRET}?"}]
    answer = daemon.client().chat.completions.create(model="shammah", messages=talk, max_tokens=8)
    talk += [
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "Is that so?"},
    ]
    daemon.client().chat.completions.create(model="shammah", messages=talk, max_tokens=8)
    given = daemon.post(
        "/v1/feedback",
        json={"completion_id": answer.id, "correction": f"The {SECRET} is in the attic.", "weight": "high"},
    ).json()
    time.sleep(1)
    assert {"store.db-wal", "training_queue.jsonl"} <= set(holding(daemon.home))
    response = delete(daemon, f"examples/{given['id']}")
    assert response.status_code == 200, response.text
    # The log of a box that logs all it can is among these files.
    assert holding(daemon.home) == []
    found = response.json()
    assert given["id"] in found["examples"]
    assert (len(found["examples"]), found["completions"]) == (3, 2)
    assert (found["adapters"], found["retrained"], found["current"]) == ([], False, None)
    document = daemon.get("/openapi.json").json()
    jsonschema.validate(found, {"$ref": "#/components/schemas/Forgotten", **document})
    # Asked again, by a client that heard no answer.
    assert delete(daemon, f"examples/{given['id']}").json()["examples"] == []
    assert daemon.ask("What is 2+2?")


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("examples/ex_absent", 404, "id"),
        ("devices/toaster/examples", 404, "device"),
        ("examples/ex_absent?retrain=perhaps", 400, "retrain"),
    ],
)
def test_what_cannot_be_forgotten(daemon: Daemon, path: str, status: int, param: str) -> None:
    response = delete(daemon, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_device_is_forgotten_by_the_owner_only(daemon: Daemon) -> None:
    store = Store.open(daemon.home)
    _, secret = store.keys.create("kitchen tablet / 2")
    store.close()
    bearer = {"Authorization": f"Bearer {secret}"}
    asked = {
        "messages": [{"role": "user", "content": f"Hide the {SECRET}."}],
        "model": "shammah",
        "max_tokens": 4,
    }
    daemon.post("/v1/chat/completions", json=asked, headers=bearer)
    path = "devices/kitchen%20tablet%20%2F%202/examples"
    refused = delete(daemon, path, headers=bearer)
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "permission_error"
    found = delete(daemon, path).json()
    assert (len(found["examples"]), found["completions"]) == (1, 1)
    assert holding(daemon.home) == []


def test_retraining_switches_a_running_box(bundle: Bundle, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n")
    accept_adapter(home, bundle, "adapter_a", 1)
    accept_adapter(home, bundle, "adapter_b", 2)
    store = Store.open(home)
    run = store.runs.create("person", 2, "adapter_a")
    ids = [
        store.examples.add(
            NewExample("praise", text, "So.", "So.", 1.0, [{"role": "user", "content": text}])
        ).id
        for text in (SECRET, "Other?")
    ]
    store.examples.hold(run.id, ids)
    store.examples.mark_used(run.id)
    store.runs.update(run.id, state="promoted", adapter="adapter_b")
    row = store.adapters.get("adapter_b")
    assert row is not None
    store.adapters.upsert(replace(row, run_id=run.id, parent="adapter_a"))
    daemon = Daemon(home).start()
    try:
        for name in ("adapter_a", "adapter_b"):
            assert daemon.post("/v1/adapters/promote", json={"name": name}).status_code == 200
        started = daemon.pid
        assert daemon.ask("Hi", model="shammah:adapter_b")
        told = delete(daemon, f"examples/{ids[0]}").json()
        assert (told["adapters"], told["in_service"], told["current"]) == (
            ["adapter_b"],
            "adapter_b",
            "adapter_b",
        )
        done = delete(daemon, f"examples/{ids[0]}?retrain=true").json()
        assert (done["retrained"], done["requeued"], done["current"]) == (True, 1, "adapter_a")
        assert daemon.ask("Hi")
        assert daemon.pid == started
        assert [example.id for example in store.examples.pending()] == [ids[1]]
        assert holding(home) == []
        refused = daemon.post(
            "/v1/chat/completions",
            json={"model": "shammah:adapter_b", "messages": [{"role": "user", "content": "Hi"}]},
        )
        assert refused.status_code == 404
        assert daemon.post("/v1/adapters/promote", json={"name": "adapter_b"}).status_code == 404
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        store.close()
