from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.errors import Conflict, InvalidRequest, NotFound, StorageFull
from appliance.home import Home
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.completions import KEPT
from appliance.store.examples import NewExample
from appliance.store.keys import SEEN_SECONDS


def test_runs(store: Store) -> None:
    runs = [
        store.runs.create("threshold", 100),
        store.runs.create("person", 3, parent="adapter_a", attempt=2),
    ]
    runs.append(store.runs.create("retry", 3))
    assert len({run.id for run in runs}) == 3
    for run in runs:
        assert re.fullmatch(r"run_\d{8}T\d{6}Z(-\d+)?", run.id)
    assert runs[1].parent == "adapter_a"
    assert runs[1].state == "queued"
    done = store.runs.update(
        runs[0].id, state="promoted", report={"passed": True}, metrics={"loss": 0.5}, pid=7
    )
    assert store.runs.get(runs[0].id) == done
    assert done.report == {"passed": True}
    assert store.runs.update(runs[0].id, pid=None).pid is None
    assert store.runs.unfinished() == [runs[1], runs[2]]
    assert [run.id for run in store.runs.list(2)] == [runs[2].id, runs[1].id]
    assert store.runs.count() == 3
    assert [run.id for run in store.runs.list(2, state="queued")] == [runs[2].id, runs[1].id]
    assert [run.id for run in store.runs.list(2, 1, "queued")] == [runs[1].id]
    counts = store.runs.counts()
    assert (counts["queued"], counts["promoted"], counts["parked"], len(counts)) == (2, 1, 0, 9)
    for bad in (lambda: store.runs.get("run_x"), lambda: store.runs.update("run_x", state="failed")):
        with pytest.raises(NotFound):
            bad()
    with pytest.raises(TypeError):
        store.runs.update(runs[0].id, colour="red")
    with pytest.raises(InvalidRequest):
        store.runs.update(runs[0].id, metrics={"loss": float("nan")})


def test_held_out_losses_of_the_last_runs(store: Store) -> None:
    runs = [store.runs.create("person", 1) for _ in range(5)]
    for number, run in enumerate(runs[:4]):
        store.runs.update(run.id, metrics={"heldout_before": 3, "heldout_after": 2.5 - number})
    store.runs.update(runs[1].id, metrics={"heldout_before": None, "heldout_after": None})
    assert store.runs.heldout(2) == [(runs[2].created, 3, 0.5), (runs[3].created, 3, -0.5)]
    assert [after for _, _, after in store.runs.heldout(9)] == [2.5, 0.5, -0.5]


def test_what_tried_a_run_again(store: Store) -> None:
    first, second, other, third = (store.runs.create("person", 1) for _ in range(4))
    for run in (second, third):
        store.runs.update(run.id, metrics={"retry_of": first.id})
    store.runs.update(other.id, metrics={"retry_of": second.id})
    assert [run.id for run in store.runs.retries(first.id)] == [second.id, third.id]
    assert store.runs.retries(third.id) == []


def test_the_examples_of_a_run_and_which_of_them_wait(store: Store, new: Callable[..., NewExample]) -> None:
    run = store.runs.create("person", 3)
    parked, used, pending, replaced = (store.examples.add(new(f"{number}?")).id for number in range(4))
    store.examples.hold(run.id, [used])
    store.examples.mark_used(run.id)
    store.examples.hold(run.id, [parked, replaced])
    store.examples.park(run.id)
    store.examples.update(replaced, state="superseded")
    assert [item.id for item in store.examples.of_run(run.id)] == [parked, used, replaced]
    assert [item.id for item in store.examples.of_run(run.id, 1, 1)] == [used]
    assert store.examples.waiting([pending, used, "ex_unknown"], run.id) == (parked, pending)
    again = store.runs.create("person", 2)
    assert [item.id for item in store.examples.hold(again.id, [parked, pending, used, replaced])] == [
        parked,
        pending,
    ]


def test_adapters(store: Store) -> None:
    row = AdapterRow("adapter_a", 1.0, "aa", 10, "base", 16, None, None, "candidate", None)
    store.adapters.upsert(row)
    store.adapters.upsert(replace(row, name="adapter_b", created=2.0))
    assert store.adapters.get("adapter_a") == row
    assert store.adapters.get("adapter_x") is None
    store.adapters.set_state("adapter_a", "accepted", {"passed": True})
    store.adapters.set_state("adapter_a", "missing")
    assert store.adapters.get("adapter_a") == replace(row, state="missing", report={"passed": True})
    store.adapters.upsert(replace(row, sha256="bb"))
    assert [found.name for found in store.adapters.list()] == ["adapter_b", "adapter_a"]
    with pytest.raises(NotFound):
        store.adapters.set_state("adapter_x", "accepted")


def test_switches(store: Store) -> None:
    assert store.adapters.switches() == []
    for to in ("a", "b", None):
        store.adapters.record_switch(to, "because", "owner")
    assert [(item.from_, item.to) for item in store.adapters.switches(2)] == [("b", None), ("a", "b")]
    assert store.adapters.switches()[-1].from_ is None


def test_keys(store: Store) -> None:
    device, secret = store.keys.create(" Kitchen ")
    assert device.name == "Kitchen"
    assert re.fullmatch(r"sk-shammah-[A-Za-z0-9_-]{43}", secret)
    found = store.keys.verify(secret)
    assert found is not None
    assert found.id == device.id
    assert found.last_seen is not None
    assert store.keys.verify(secret + "x") is store.keys.verify("") is store.keys.verify("\ud800") is None
    with pytest.raises(Conflict):
        store.keys.create("Kitchen")
    changed = store.keys.change(device.id, name="Kitchen", collect=False, models=None, rate=None)
    assert changed == store.keys.get(device.id) == replace(found, collect=False)
    store.keys.revoke(device.id)
    assert store.keys.verify(secret) is None
    assert store.keys.count() == 0
    store.keys.create("Kitchen")
    assert store.keys.count() == 1
    assert [item.revoked for item in store.keys.list()] == [True, False]
    with pytest.raises(NotFound):
        store.keys.revoke("dev_x")


def test_what_a_device_may_do(store: Store) -> None:
    device, secret = store.keys.create("Kitchen")
    assert (device.models, device.rate) == (None, None)
    names = ["shammah", "shammah:base", "shammah"]
    changed = store.keys.change(device.id, name=" Hall ", collect=True, models=names, rate=30)
    assert (changed.name, changed.models, changed.rate) == ("Hall", ("shammah", "shammah:base"), 30)
    verified = store.keys.verify(secret)
    assert verified is not None
    assert replace(verified, last_seen=None) == changed
    store.keys.create("Den")

    def change(**fields: object) -> None:
        given = {"name": "Hall", "collect": False, "models": None, "rate": None}
        store.keys.change(device.id, **(given | fields))

    for field, value in (
        ("name", "a\nb"),
        ("models", []),
        ("models", [""]),
        ("models", ["x" * 201]),
        ("models", [f"m{number}" for number in range(201)]),
        ("models", ["\ud800"]),
        ("rate", 0),
        ("rate", 6001),
    ):
        with pytest.raises(InvalidRequest) as caught:
            change(**{field: value})
        assert caught.value.param == field
    with pytest.raises(Conflict) as taken:
        change(name="Den")
    assert taken.value.param == "name"
    assert store.keys.get(device.id) == verified
    store.keys.revoke(device.id)
    with pytest.raises(Conflict):
        change()
    with pytest.raises(NotFound):
        store.keys.change("dev_x", name="Hall", collect=True, models=None, rate=None)
    with pytest.raises(NotFound):
        store.keys.get("dev_x")


def test_no_secret_reaches_the_disk(store: Store, home: Home) -> None:
    _, secret = store.keys.create("Kitchen")
    for path in home.root.glob("store.db*"):
        assert secret.encode() not in path.read_bytes()


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "\ud800"])
def test_device_names(store: Store, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        store.keys.create(name)
    assert caught.value.param == "name"


def test_last_seen_is_written_seldom(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = store.keys.create("Kitchen")
    writes: list[frozenset[str]] = []
    store.on_change(writes.append)
    for _ in range(3):
        store.keys.verify(secret)
    assert len(writes) == 1
    later = time.time() + SEEN_SECONDS + 1
    monkeypatch.setattr("appliance.store.keys.time.time", lambda: later)
    found = store.keys.verify(secret)
    assert found is not None
    assert found.last_seen == later


def record(store: Store, id: str, query: str = "Q", response: str = "A") -> None:
    messages = [{"role": "user", "content": query}]
    store.completions.record(id, 1.0, "dev", "m", None, query, response, messages, "stop", 3, 1)


def test_completions(store: Store) -> None:
    record(store, "c1")
    record(store, "c2", "q?", "a.")
    record(store, "c3", "other")
    found = store.completions.find("Q", "A")
    assert found is not None
    assert found.id == "c2"
    assert found.messages == [{"role": "user", "content": "q?"}]
    assert store.completions.find("Q", "B") is None
    assert store.completions.get("c9") is None
    assert [item.id for item in store.completions.recent(2)] == ["c3", "c2"]
    record(store, "c1", "again")
    assert [item.id for item in store.completions.recent()] == ["c1", "c3", "c2"]


def test_completions_are_pruned(store: Store) -> None:
    with store.transaction():
        for number in range(KEPT + 5):
            record(store, f"c{number}")
    assert store.completions.get("c4") is None
    assert store.completions.get("c5") is not None
    assert len(store.completions.recent(KEPT * 2)) == KEPT


def test_audit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.audit.KEPT", 3)
    for number in range(5):
        store.audit.add("owner", "promote", {"number": number})
    assert [entry.detail["number"] for entry in store.audit.list()] == [4, 3, 2]
    assert [entry.detail["number"] for entry in store.audit.list(1, offset=1)] == [3]


def test_settings(store: Store) -> None:
    assert store.settings.get("a") is None
    store.settings.set("a", "1")
    store.settings.set("a", "2")
    assert store.settings.get("a") == "2"
    store.settings.delete("a")
    store.settings.delete("a")
    assert store.settings.get("a") is None


def test_everything_survives_reopening(home: Home) -> None:
    store = Store.open(home)
    run = store.runs.create("person", 1)
    _, secret = store.keys.create("Kitchen")
    store.close()
    store = Store.open(home)
    assert store.runs.list() == [run]
    assert store.keys.verify(secret) is not None
    store.close()


def test_a_device_is_let_in_on_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = store.keys.create("Kitchen")

    def full(*tables: str, wait: float | None = None) -> None:
        raise StorageFull("full")

    monkeypatch.setattr(store.database, "transaction", full)
    assert store.keys.verify(secret) is not None
