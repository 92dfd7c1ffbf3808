"""Probation with the real engine, gate and store: what brings an adapter down, and what follows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engine.request import GenerationRequest
from appliance.engine.session import Session
from appliance.errors import Conflict, StorageFull, Unavailable
from appliance.home import Home
from appliance.learning.probation import Probation, load_probation, save_probation
from appliance.learning.retry import load_retry
from appliance.model.bundle import Bundle
from appliance.sections import HURRY
from appliance.store.runs import Run

from .box import Box, add, answered, everywhere, make_adapter, put, rate, running

OFF = "[lora]\nenabled = false\n"
DAY = 1440.0
GENTLE, STRONG = 1e-4, 0.15


@pytest.fixture
async def box(home: Home, bundle: Bundle) -> AsyncIterator[Box]:
    async with running(home, bundle, OFF) as box:
        yield box


def on_probation(box: Box) -> str | None:
    found = load_probation(box.store.settings)
    return found.adapter if found else None


async def promoted(box: Box, name: str, actor: str = "appliance", **fields: Any) -> None:
    """Put an adapter in service as a run's would be, or as a person's choice."""
    put(box, name, scale=STRONG, seed=sum(map(ord, name)), **fields)
    minutes = DAY if actor == "appliance" else 0.0
    await box.switch.promote(name, reason="test", actor=actor, probation_minutes=minutes)


def learned_run(box: Box, adapter: str, attempt: int = 1) -> tuple[Run, list[str]]:
    """A run that has learned two examples, and ended with that adapter."""
    examples = [add(box.store, f"{adapter} {number}?", f"Taught {number}.").id for number in range(2)]
    run = box.store.runs.create("threshold", 2, None, attempt)
    box.store.examples.hold(run.id, examples)
    box.store.examples.mark_used(run.id)
    return box.store.runs.update(run.id, state="promoted", adapter=adapter), examples


def rate_down(box: Box, adapter: str | None, count: int) -> None:
    for number in range(count):
        rate(box.store, answered(box.store, f"{number}?", f"{number}!", adapter), "down", box.events)


def states(box: Box, ids: list[str]) -> list[str]:
    return [box.store.examples.get(ident).state for ident in ids]


# -- who is on probation ----------------------------------------------------------------------


async def test_what_the_box_puts_in_service_is_on_probation_and_a_persons_choice_is_not(box: Box) -> None:
    await promoted(box, "mine", "owner")
    assert on_probation(box) is None
    await promoted(box, "first")
    found = box.learning.status().probation
    assert found is not None
    assert (found.adapter, found.before, found.failed) == ("first", "mine", None)
    assert found.until - found.since == DAY * 60
    # The next one is watched in its place, and compared with it.
    await promoted(box, "second")
    found = load_probation(box.store.settings)
    assert found is not None
    assert (found.adapter, found.before) == ("second", "first")
    # A person who asks for the one in service wants it as it is.
    await box.switch.promote("second", reason="test", actor="owner")
    assert on_probation(box) is None
    await promoted(box, "third")
    await box.switch.rollback("owner")
    assert on_probation(box) is None
    rate_down(box, "second", 9)
    await asyncio.sleep(1)
    assert everywhere(box, "second")


async def test_a_switch_that_fails_begins_no_probation(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    await promoted(box, "first")

    def full(*_: object) -> None:
        raise StorageFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(box.registry, "set_current", full)
        with pytest.raises(StorageFull):
            await promoted(box, "second")
    assert everywhere(box, "first")
    assert on_probation(box) == "first"


# -- ratings ----------------------------------------------------------------------------------


async def test_bad_ratings_bring_it_down(box: Box) -> None:
    await promoted(box, "before", "owner")
    run, examples = learned_run(box, "bad")
    await promoted(box, "bad", run_id=run.id)
    garbage = add(box.store, "Said?", "Garbage.", completion_id=answered(box.store, "s", "g", "bad")).id
    kept = add(box.store, "Earlier?", "Good.", completion_id=answered(box.store, "e", "g", "before")).id
    rejected = box.store.examples.get(examples[1])
    box.store.examples.reject_answer(rejected.query, rejected.response, None)

    # Words on answers of others do not count, nor does a single one on its own.
    rate_down(box, "before", 6)
    rate_down(box, None, 6)
    rate_down(box, "bad", 1)
    await asyncio.sleep(1)
    assert everywhere(box, "bad")

    rate_down(box, "bad", 8)
    event = (await box.until(lambda: box.named("adapter.withdrawn"), 30))[0]
    assert everywhere(box, "before")
    assert (event.data["adapter"], event.data["to"], event.data["by"]) == ("bad", "before", "ratings")
    assert "answers drew a complaint" in event.data["reason"]
    assert on_probation(box) is None
    assert box.store.audit.list(1)[0].action == "adapter.withdraw"
    switched = box.store.adapters.switches(1)[0]
    assert (switched.actor, switched.reason) == ("appliance", event.data["reason"])

    # What it learned is tried again, more gently; not what was rejected since, nor what it said itself.
    run = box.store.runs.get(run.id)
    assert run.state == "rejected"
    assert run.reason is not None
    assert "passed the gate" in run.reason
    assert event.data["reason"] in run.reason
    assert states(box, [*examples, garbage, kept]) == ["pending", "used", "excluded", "pending"]
    retry = load_retry(box.store.settings)
    assert retry is not None
    assert (retry.ids, retry.attempt, retry.failed) == ((examples[0],), 2, ("ratings",))

    # The box does not promote it again, a person may.
    row = box.store.adapters.get("bad")
    assert row is not None
    assert (row.state, row.withdrawn) == ("accepted", event.data["reason"])
    with pytest.raises(Conflict, match="withdrawn"):
        await box.switch.promote("bad", reason="test", actor="appliance")
    await box.switch.promote("bad", reason="I like it", actor="owner")
    rate_down(box, "bad", 5)
    await asyncio.sleep(1)
    assert everywhere(box, "bad")
    row = box.store.adapters.get("bad")
    assert row is not None
    assert row.withdrawn is None


async def test_a_batch_that_failed_often_enough_is_parked(box: Box) -> None:
    run, examples = learned_run(box, "bad", attempt=box.config.train.max_attempts)
    await promoted(box, "bad", run_id=run.id)
    rate_down(box, "bad", 8)
    await box.until(lambda: box.named("adapter.withdrawn"), 30)
    assert everywhere(box, None)
    assert box.store.runs.get(run.id).state == "parked"
    assert states(box, examples) == ["parked", "parked"]
    assert load_retry(box.store.settings) is None


async def test_a_run_that_goes_on_from_it_takes_its_batch_along(box: Box) -> None:
    """The adapter is withdrawn while the next run trains on top of it: both batches are learned anew."""
    run, examples = learned_run(box, "bad")
    await promoted(box, "bad", run_id=run.id)
    newer = [add(box.store, f"Newer {number}?", "Newer.").id for number in range(2)]
    runner = box.learning._runner
    child = runner.begin("threshold")
    assert (child.parent, states(box, newer)) == ("bad", ["training", "training"])
    rate_down(box, "bad", 8)
    await box.until(lambda: box.named("adapter.withdrawn"), 30)
    report = {"passed": True, "summary": "", "checks": [], "fingerprint": []}
    put(box, "grown", run_id=child.id, parent="bad")
    runner._conclude(box.store.runs.update(child.id, adapter="grown", report=report))
    assert box.store.runs.get(child.id).state == "rejected"
    assert everywhere(box, None)
    retry = load_retry(box.store.settings)
    assert retry is not None
    assert (set(retry.ids), retry.attempt, retry.failed) == ({*examples, *newer}, 2, ("ratings",))


# -- the probe set ----------------------------------------------------------------------------


async def gated(box: Box, home: Home) -> Probation:
    """A harmless adapter that went through the real gate and is on probation."""
    make_adapter(home.adapters / "mine.safetensors", box.bundle, scale=GENTLE)
    await box.until(lambda: everywhere(box, "mine"))
    found = load_probation(box.store.settings)
    assert found is not None
    assert found.adapter == "mine"
    return found


@pytest.mark.slow
async def test_one_that_stands_the_probation_has_proved_itself(
    home: Home, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HURRY, "1")  # the gate's program reads the limits, too
    async with running(home, bundle, OFF, gate__probation_minutes=0.05) as box:
        await gated(box, home)
        asked = box.engine.stats().requests
        await box.until(lambda: box.named("adapter.proved"), 120)
        assert box.engine.stats().requests > asked
        assert on_probation(box) is None
        assert everywhere(box, "mine")
        assert box.named("adapter.withdrawn") == []


@pytest.mark.slow
async def test_what_answers_otherwise_than_in_the_gate_is_withdrawn(home: Home, bundle: Bundle) -> None:
    async with running(home, bundle, OFF) as box:
        found = await gated(box, home)
        row = box.store.adapters.get("mine")
        assert row is not None
        assert row.report is not None
        assert len(row.report["answered"]) > 10
        # Memory that went bad: what serves is not what the gate saw.
        make_adapter(home.runs / "ruin.safetensors", bundle, scale=1.0).rename(home.root / "ruin.safetensors")
        ruin = Session(bundle, read(box, home.root / "ruin.safetensors"), box.engine._cache, threads=2)
        ruin.adapter, ruin.weights = "mine", found.sha256
        box.engine._session = ruin
        save_probation(box.store.settings, replace(found, probe_at=time.time()))
        event = (await box.until(lambda: box.named("adapter.withdrawn"), 120))[0]
        assert everywhere(box, None)
        assert event.data["by"] == "probes"
        assert "What is the capital of Germany?" in event.data["reason"]

        # Taken out and put back, even under another name, it is judged but left to a person.
        path = home.adapters / "mine.safetensors"
        path.rename(home.root / "kept.safetensors")
        await box.until(lambda: state(box, "mine") == "missing")
        (home.root / "kept.safetensors").rename(home.adapters / "other.safetensors")
        await box.until(lambda: state(box, "other") == "accepted")
        await asyncio.sleep(0.5)
        assert everywhere(box, None)
        await box.switch.promote("other", reason="I like it", actor="owner")
        assert everywhere(box, "other")


def read(box: Box, path: Path) -> Any:
    from appliance.adapters.file import read_adapter

    return read_adapter(path, box.bundle.manifest)


def state(box: Box, name: str) -> str | None:
    row = box.store.adapters.get(name)
    return row.state if row else None


# -- the engine -------------------------------------------------------------------------------


async def test_one_the_engine_fails_on_is_withdrawn(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    await promoted(box, "broken")
    session = box.engine.weights
    step = Session.step

    def infected(self: Session, *arguments: Any) -> Any:
        logits = step(self, *arguments)
        if self is session:
            logits[:, 7] = np.nan
        return logits

    def failing(self: Session, *arguments: Any) -> Any:
        if self is session:
            raise Unavailable("The model failed to compute.")
        return step(self, *arguments)

    for count, broken in enumerate((infected, failing, infected), start=1):
        monkeypatch.setattr(Session, "step", broken)
        with pytest.raises(Unavailable):
            await box.ask("Hello?")
        assert box.engine.failures(session.weights) == count
    event = (await box.until(lambda: box.named("adapter.withdrawn"), 30))[0]
    assert event.data["by"] == "engine"
    assert everywhere(box, None)
    assert await box.ask("Hello?")


async def test_numbers_that_are_none_end_an_answer_and_no_other(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers in one step: the row with a NaN ends with an error, the other goes on to its end."""
    step = Session.step
    alone = await box.ask("What is the capital of Japan?")
    spoilt = box.tokenizer.encode("spoilt ") * 3

    def infected(self: Session, tokens: Any, row: int, lengths: Any, counts: Any, wanted: Any) -> Any:
        logits = step(self, tokens, row, lengths, counts, wanted)
        for place, end in enumerate(wanted):
            if list(tokens[end - 2 : end + 1]) == spoilt[-3:]:
                logits[place, 7] = np.inf
        return logits

    monkeypatch.setattr(Session, "step", infected)
    other = asyncio.create_task(box.ask("What is the capital of Japan?"))
    with pytest.raises(Unavailable, match="finite"):
        async for _ in box.engine.generate(GenerationRequest(tuple(spoilt), 8)):
            pass
    assert await other == alone
    assert box.engine.failures("base") == 1


# -- power cuts -------------------------------------------------------------------------------


async def test_a_restart_resumes_the_probation(home: Home, bundle: Bundle) -> None:
    async with running(home, bundle, OFF) as box:
        await promoted(box, "bad")
        before = load_probation(box.store.settings)
        rate_down(box, "bad", 3)
    async with running(home, bundle, OFF) as box:
        assert everywhere(box, "bad")
        assert load_probation(box.store.settings) == before
        rate_down(box, "bad", 4)
        await box.until(lambda: box.named("adapter.withdrawn"), 30)
        assert everywhere(box, None)
    async with running(home, bundle, OFF) as box:
        assert everywhere(box, None)
        assert on_probation(box) is None


async def test_one_from_the_future_begins_anew(box: Box) -> None:
    """As when the clock is set back: it would go on for that much longer."""
    await promoted(box, "first")
    begun = load_probation(box.store.settings)
    assert begun is not None
    ahead = 9 * DAY * 60
    times = {"since": begun.since + ahead, "until": begun.until + ahead, "probe_at": begun.probe_at + ahead}
    save_probation(box.store.settings, replace(begun, **times))

    def back() -> Probation | None:
        found = load_probation(box.store.settings)
        assert found is not None
        return found if found.since <= time.time() else None

    anew: Probation = await box.until(back, 30)
    assert anew.since >= begun.since
    assert anew.until - anew.since == pytest.approx(DAY * 60)
    assert anew.probe_at - anew.since == pytest.approx(begun.probe_at - begun.since)
    rate_down(box, "first", 8)
    await box.until(lambda: box.named("adapter.withdrawn"), 30)


@pytest.mark.parametrize("cut", ["before the switch", "after the link"])
async def test_a_rollback_cut_off_is_finished(home: Home, bundle: Bundle, cut: str) -> None:
    """The power goes when the verdict is stored, or when the link is back and the rest is not stored."""
    async with running(home, bundle, OFF) as box:
        await promoted(box, "good", "owner")
        run, examples = learned_run(box, "bad")
        await promoted(box, "bad", run_id=run.id)
        await promoted(box, "newest", "owner")  # what the start would fall back to if it could not tell
        await box.switch.rollback("owner")
        await box.switch.promote("good", reason="test", actor="owner")
        await box.switch.promote("bad", reason="test", actor="appliance", probation_minutes=DAY)
        box.learning._watch.stop()
        found = load_probation(box.store.settings)
        assert found is not None
        save_probation(box.store.settings, replace(found, failed="Bad.", failed_by="ratings"))
    if cut == "after the link":
        box.registry.set_current("good")
    async with running(home, bundle, OFF) as box:
        await box.until(lambda: everywhere(box, "good") and box.named("adapter.withdrawn"), 30)
        assert states(box, examples) == ["pending", "pending"]
        assert box.store.runs.get(run.id).state == "rejected"
        row = box.store.adapters.get("bad")
        assert row is not None
        assert row.withdrawn == "Bad."


async def test_a_rollback_that_cannot_be_done_now_is_done_later(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, examples = learned_run(box, "bad")
    await promoted(box, "bad", run_id=run.id)
    monkeypatch.setattr("appliance.learning.watch.RETRY_SECONDS", 1.0)
    tried = []

    def full(*_: object) -> None:
        tried.append(time.monotonic())
        raise StorageFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(box.registry, "set_current", full)
        rate_down(box, "bad", 8)
        await box.until(lambda: tried and everywhere(box, "bad"), 30)
        assert states(box, examples) == ["used", "used"]
    await box.until(lambda: everywhere(box, None), 30)
    await box.until(lambda: states(box, examples) == ["pending", "pending"], 30)


async def test_a_person_is_faster(box: Box) -> None:
    """Between verdict and rollback somebody keeps the adapter, or puts another one in service."""
    await promoted(box, "other", "owner")
    for keep in ("bad", "other"):
        await promoted(box, "bad")
        found = load_probation(box.store.settings)
        assert found is not None
        failed = replace(found, failed="Bad.", failed_by="ratings")
        await box.switch.promote(keep, reason="test", actor="owner")
        assert not await box.switch.withdraw(failed, lambda: None)
        assert everywhere(box, keep)
        await box.switch.promote("other", reason="test", actor="owner")
