"""The canary with the real engine and store; over HTTP it is in e2e/test_probation.py.

The runs here have trained and passed the gate already, and are taken up as after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from appliance.engine.offline import PROBE_PROMPT, PROBE_TOKENS, OfflineModel
from appliance.engine.request import GenerationRequest
from appliance.errors import Conflict
from appliance.home import Home
from appliance.learning.forget import Wish
from appliance.learning.probation import load_probation
from appliance.learning.retry import load_retry
from appliance.model.bundle import Bundle
from appliance.store.runs import Run

from .box import Box, add, answered, everywhere, put, rate, running

CONFIG = """
[lora]
auto_train_threshold = 50
[gate]
canary_share = 0.25
canary_answers = 8
"""
NAME = "challenger"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut off is taken up at once, and looked at often."""
    monkeypatch.setattr("appliance.learning.service.RECOVER_SECONDS", 0.0)
    monkeypatch.setattr("appliance.learning.canary.LOOK_SECONDS", 0.1)


@asynccontextmanager
async def trying(home: Home, bundle: Bundle) -> AsyncIterator[tuple[Box, Run, list[str]]]:
    """A box on which a run's adapter has just begun to answer its share."""
    async with running(home, bundle, CONFIG) as box:
        for name in ("champion", "other"):
            put(box, name, scale=0.15, seed=len(name))
        await box.switch.promote("champion", reason="test", actor="owner")
        run, examples = passed(box)
        await box.until(lambda: box.named("adapter.tried"), 30)
        yield box, run, examples


def passed(box: Box) -> tuple[Run, list[str]]:
    """A run whose adapter passed the gate when the power went."""
    with box.store.transaction():
        examples = [add(box.store, f"Fact {number}?", f"Taught {number}.").id for number in range(2)]
        run = box.store.runs.create("threshold", 2, "champion")
        box.store.examples.hold(run.id, examples)
        put(box, NAME, scale=0.15, seed=7, run_id=run.id, parent="champion")
        report = {"passed": True, "summary": "Passed.", "checks": [], "fingerprint": probe(box)}
        run = box.store.runs.update(run.id, state="gating", adapter=NAME, report=report)
    return run, examples


def probe(box: Box) -> list[int]:
    model = OfflineModel(box.bundle, box.registry.load(NAME), threads=1, capacity=64)
    return next(model.greedy([box.tokenizer.encode(PROBE_PROMPT)], PROBE_TOKENS))


def states(box: Box, ids: list[str]) -> list[str]:
    return [box.store.examples.get(ident).state for ident in ids]


async def test_it_answers_its_share_and_is_promoted(home: Home, bundle: Bundle) -> None:
    async with trying(home, bundle) as (box, run, examples):
        canary = box.learning.canary
        sides = {
            f"conversation {number}": canary.weights_for(f"conversation {number}") for number in range(400)
        }
        challengers = [session for session in sides.values() if session is not None]
        assert {session.adapter for session in challengers} == {NAME}
        assert 60 <= len(challengers) <= 140  # a quarter of 400, four standard deviations
        assert all(canary.weights_for(key) is side for key, side in sides.items())
        # Side by side, each in its own words.
        prompt = tuple(box.tokenizer.encode_chat([{"role": "user", "content": "Hello?"}]))
        deltas = [delta async for delta in box.engine.generate(GenerationRequest(prompt, 4), challengers[0])]
        assert deltas[-1].adapter == NAME
        assert everywhere(box, "champion")
        progress = box.learning.status().run
        assert progress is not None
        assert (progress.id, progress.phase, progress.steps) == (run.id, "canary", 8)

        # What else is due waits for the outcome.
        for number in range(50):
            add(box.store, f"Later {number}?", "Later.")
        with pytest.raises(Conflict, match=run.id):
            box.learning.request()
        with pytest.raises(Conflict, match="cancel it first"):
            await box.learning.forget(Wish((examples[0],)), "owner")
        await asyncio.sleep(1)
        assert box.store.runs.count() == 1
        for number in range(8):
            assert everywhere(box, "champion")
            answered(box.store, f"{number}?", "Fine.", NAME)
        await box.until(lambda: box.store.runs.get(run.id).state == "promoted", 30)
        assert everywhere(box, NAME)
        assert states(box, examples) == ["used", "used"]
        assert not any(canary.weights_for(key) for key in sides)
        probation = load_probation(box.store.settings)
        assert probation is not None
        assert (probation.adapter, probation.before) == (NAME, "champion")
        await box.until(lambda: box.store.runs.count() == 2, 30)
        box.learning.cancel()


async def test_worse_ratings_end_it(home: Home, bundle: Bundle) -> None:
    async with trying(home, bundle) as (box, run, examples):
        said = add(box.store, "Said?", "Garbage.", completion_id=answered(box.store, "s", "g", NAME)).id
        for number in range(20):  # the champion goes on beside it, unblamed
            answered(box.store, f"{number}?", "Fine.", "champion")
        for number in range(4):
            rate(box.store, answered(box.store, f"{number}?", f"{number}!", NAME), "down")
        await box.finished(seconds=30)
        run = box.store.runs.get(run.id)
        assert run.state == "rejected"
        assert run.reason is not None
        assert "drew a complaint" in run.reason
        assert everywhere(box, "champion")
        assert states(box, [*examples, said]) == ["pending", "pending", "excluded"]
        retry = load_retry(box.store.settings)
        assert retry is not None
        assert (set(retry.ids), retry.attempt, retry.failed) == (set(examples), 2, ("ratings",))
        row = box.store.adapters.get(NAME)
        assert row is not None
        assert row.withdrawn is not None
        assert box.learning.canary.weights_for("any") is None


async def test_a_restart_goes_on_with_it(home: Home, bundle: Bundle) -> None:
    async with trying(home, bundle) as (box, run, examples):
        for number in range(5):
            answered(box.store, f"{number}?", "Fine.", NAME)
        await box.until(lambda: (box.learning.status().run or run).step == 5, 30)
    async with running(home, bundle, CONFIG) as box:
        await box.until(lambda: box.named("adapter.tried"), 30)
        assert everywhere(box, "champion")
        assert states(box, examples) == ["training", "training"]
        for number in range(3):
            answered(box.store, f"{number}?", "Fine.", NAME)
        await box.until(lambda: box.store.runs.get(run.id).state == "promoted", 30)
        assert everywhere(box, NAME)


@pytest.mark.parametrize("choice", ["other", NAME, "rollback", "cancel"])
async def test_a_person_decides_meanwhile(home: Home, bundle: Bundle, choice: str) -> None:
    async with trying(home, bundle) as (box, run, examples):
        if choice == "rollback":
            await box.switch.rollback("owner")
        elif choice == "cancel":
            box.learning.cancel()
        else:
            await box.switch.promote(choice, reason="test", actor="owner")
        await box.finished(seconds=30)
        # Learned anew at once from what serves now, or after a pause when a person cancelled.
        state, serving, left = {
            "other": ("rejected", "other", {"pending", "training"}),
            NAME: ("promoted", NAME, {"used"}),
            "rollback": ("rejected", None, {"pending", "training"}),
            "cancel": ("cancelled", "champion", {"pending"}),
        }[choice]
        assert box.store.runs.get(run.id).state == state
        assert everywhere(box, serving)
        assert set(states(box, examples)) <= left
        assert load_probation(box.store.settings) is None  # what a person chose is not on probation
