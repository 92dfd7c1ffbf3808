"""The pin with the real engine and store: the box does not switch, and nothing is lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from appliance.engine.offline import PROBE_PROMPT, PROBE_TOKENS, OfflineModel
from appliance.errors import Conflict, Pinned
from appliance.home import Home
from appliance.learning.pin import load_pin
from appliance.learning.probation import load_probation
from appliance.learning.replay import past, start
from appliance.model.bundle import Bundle
from appliance.store.runs import Run

from .box import Box, add, answered, everywhere, make_adapter, put, rate, running

OFF = "[lora]\nenabled = false\n"
CANARY = "[gate]\ncanary_share = 0.25\ncanary_answers = 8\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.learning.service.RECOVER_SECONDS", 0.0)
    monkeypatch.setattr("appliance.learning.canary.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("appliance.learning.watch.LOOK_SECONDS", 0.2)


@pytest.fixture
async def box(home: Home, bundle: Bundle) -> AsyncIterator[Box]:
    async with running(home, bundle, OFF + CANARY) as box:
        put(box, "mine", scale=0.15, seed=1)
        await box.switch.promote("mine", reason="test", actor="owner")
        yield box


def passed(box: Box, name: str, parent: str | None) -> tuple[Run, list[str]]:
    """A run whose adapter passed the gate when the power went; `recover` takes it up."""
    with box.store.transaction():
        examples = [add(box.store, f"{name} {number}?", f"Taught {number}.").id for number in range(2)]
        run = box.store.runs.create("threshold", 2, parent)
        box.store.examples.hold(run.id, examples)
        put(box, name, scale=0.15, seed=sum(map(ord, name)), run_id=run.id, parent=parent)
        model = OfflineModel(box.bundle, box.registry.load(name), threads=1, capacity=64)
        fingerprint = next(model.greedy([box.tokenizer.encode(PROBE_PROMPT)], PROBE_TOKENS))
        report = {"passed": True, "summary": "Passed.", "checks": [], "fingerprint": fingerprint}
        run = box.store.runs.update(run.id, state="gating", adapter=name, report=report)
    return run, examples


async def concluded(box: Box, run: Run) -> Run:
    """The run when the box has taken it up and ended it."""
    await box.until(lambda: box.store.runs.get(run.id).ended, 60)
    return box.store.runs.get(run.id)


def begun_from(box: Box) -> str | None:
    return start(box.store, box.registry.current(), box.bundle.manifest.base_hash)


async def test_what_runs_make_waits_and_the_next_run_goes_on_from_it(box: Box) -> None:
    await box.switch.pin("mine", "owner")
    first, examples = passed(box, "first", "mine")
    ended = await concluded(box, first)
    assert (ended.state, ended.adapter) == ("accepted", "first")
    assert "pinned" in (ended.reason or "")
    assert everywhere(box, "mine")
    assert not box.named("adapter.tried")  # no canary either
    # They have been learned: not again by the next run, which begins from what has learned them.
    assert {box.store.examples.get(ident).state for ident in examples} == {"used"}
    assert begun_from(box) == "first"
    second, _ = passed(box, "second", "first")
    assert (await concluded(box, second)).state == "accepted"
    assert begun_from(box) == "second"
    assert past(box.store, "second").runs == {first.id, second.id}
    # The owner takes the newest: what it grew from waits no longer either.
    await box.switch.promote("second", reason="test", actor="owner")
    assert everywhere(box, "second")
    assert [box.store.runs.get(run.id).state for run in (first, second)] == ["promoted", "promoted"]
    assert begun_from(box) == "second"
    assert load_pin(box.store.settings) is not None  # the pin goes along
    # And takes it back: what they learned is out of the line.
    await box.switch.rollback("owner")
    assert everywhere(box, "mine")
    assert begun_from(box) == "mine"


async def test_after_unpinning_the_next_run_brings_along_what_waited(box: Box) -> None:
    await box.switch.pin("mine", "owner")
    first, _ = passed(box, "first", "mine")
    await concluded(box, first)
    await box.switch.unpin("owner")
    assert everywhere(box, "mine")  # nothing happens at once
    second, _ = passed(box, "second", "first")
    task = asyncio.create_task(concluded(box, second))
    await box.until(lambda: box.named("adapter.tried"), 60)  # against what is in service
    box.learning._runner._child.stop()  # the canary's end is tested elsewhere: here its examples go back
    assert (await task).state == "cancelled"
    assert box.store.runs.get(first.id).state == "accepted"
    assert begun_from(box) == "first"


async def test_only_a_chain_from_what_is_in_service_is_gone_on_from(box: Box) -> None:
    await box.switch.pin("mine", "owner")
    first, _ = passed(box, "first", "mine")
    await concluded(box, first)
    put(box, "other", scale=0.15, seed=9)
    await box.switch.promote("other", reason="test", actor="owner")
    assert begun_from(box) == "other"
    # A run that began from "first" while the owner went elsewhere is not for this line.
    late, examples = passed(box, "late", "first")
    assert (await concluded(box, late)).state == "rejected"
    assert {box.store.examples.get(ident).state for ident in examples} == {"pending"}
    await box.switch.promote("mine", reason="test", actor="owner")
    assert begun_from(box) == "first"
    await box.learning.remove("first", "owner")
    assert begun_from(box) == "mine"


async def test_who_switches_while_pinned(box: Box, home: Home) -> None:
    put(box, "other", scale=0.15, seed=2)
    with pytest.raises(Conflict, match="mine is in service by now"):
        await box.switch.pin(None, "owner")
    assert load_pin(box.store.settings) is None
    await box.switch.pin("mine", "owner")
    await box.switch.pin("mine", "owner")
    with pytest.raises(Pinned):
        await box.switch.promote("other", reason="test", actor="appliance")
    assert everywhere(box, "mine")
    await box.switch.promote("mine", reason="again, after a crash", actor="appliance")
    # A file that is gone cannot serve for long: that is no choice of the box.
    (home.adapters / "mine.safetensors").unlink()
    await box.until(lambda: everywhere(box, None), 60)
    await box.switch.pin(None, "owner")
    await box.switch.unpin("owner")
    await box.switch.unpin("owner")
    await box.switch.promote("other", reason="test", actor="appliance")
    assert everywhere(box, "other")
    told = [event.name for event in box.seen if "pinned" in event.name]
    assert told == ["adapter.pinned", "adapter.unpinned"]
    audited = [entry.action for entry in box.store.audit.list(20) if "pin" in entry.action]
    assert audited == ["adapter.unpin", "adapter.pin"]


async def test_a_dropped_in_file_waits_too(box: Box, home: Home) -> None:
    await box.switch.pin("mine", "owner")
    make_adapter(home.adapters / "dropped.safetensors", box.bundle, scale=1e-4)
    await box.until(lambda: box.named("adapter.accepted"))
    await box.until(lambda: box.learning.status().judging is None)
    row = box.store.adapters.get("dropped")
    assert row is not None
    assert row.state == "accepted"
    await asyncio.sleep(0.5)
    assert everywhere(box, "mine")
    assert begun_from(box) == "mine"  # no run made it


async def test_a_failed_probation_is_told_and_acted_on_only_without_the_pin(box: Box) -> None:
    put(box, "tried", scale=0.15, seed=5)
    await box.switch.promote("tried", reason="test", actor="appliance", probation_minutes=1440)
    await box.switch.pin("tried", "owner")
    for number in range(6):
        rate(box.store, answered(box.store, f"{number}?", f"{number}!", "tried"), "down", box.events)
    await box.until(lambda: box.named("adapter.doubted"), 60)
    await asyncio.sleep(1)  # looked at some times more
    assert everywhere(box, "tried")
    assert len(box.named("adapter.doubted")) == 1
    probation = load_probation(box.store.settings)
    assert probation is not None
    assert probation.failed
    assert box.learning.status().pin is not None
    await box.switch.unpin("owner")
    await box.until(lambda: everywhere(box, "mine"), 60)
    assert box.store.adapters.is_withdrawn("tried")


async def test_the_pin_outlives_a_restart(home: Home, bundle: Bundle) -> None:
    async with running(home, bundle, OFF) as box:
        await box.switch.pin(None, "owner")
    async with running(home, bundle, OFF) as box:
        put(box, "other")
        assert box.learning.status().pin is not None
        with pytest.raises(Pinned):
            await box.switch.promote("other", reason="test", actor="appliance")
