"""Switching with the real engine: what fails changes nothing, what works shows everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from appliance.errors import AdapterInvalid, Conflict, NotFound, StorageFull, Unavailable
from appliance.home import Home
from appliance.learning.switch import lineage
from appliance.model.bundle import Bundle
from appliance.store.adapters import Switch as Past

from .box import Box, everywhere, make_adapter, put, running

QUESTION = "What is the capital of Japan?"


@pytest.fixture
async def box(home: Home, bundle: Bundle) -> AsyncIterator[Box]:
    async with running(home, bundle, "[lora]\nenabled = false") as box:
        yield box


async def test_promote_and_roll_back(box: Box) -> None:
    base = await box.ask(QUESTION)
    for seed, name in enumerate(["a", "b", "c"]):
        put(box, name, scale=0.15, seed=seed)
        await box.switch.promote(name, reason="test", actor="owner")
        assert everywhere(box, name)
    assert await box.ask(QUESTION) != base
    assert [event.data["to"] for event in box.named("adapter.promoted")] == ["a", "b", "c"]
    assert box.named("adapter.promoted")[2].data["from"] == "b"
    assert [entry.action for entry in box.store.audit.list(3)] == ["adapter.promote"] * 3
    # Each step back leads further back, over what no longer exists.
    assert await box.switch.rollback("owner") == "b"
    (box.home.adapters / "a.safetensors").unlink()
    assert await box.switch.rollback("owner") is None
    assert everywhere(box, None)
    assert await box.ask(QUESTION) == base
    with pytest.raises(Conflict):
        await box.switch.rollback("owner")


async def test_the_same_again_changes_nothing(box: Box) -> None:
    put(box, "a")
    await box.switch.promote("a", reason="test", actor="owner")
    swaps = box.engine.stats().swaps
    await box.switch.promote("a", reason="test", actor="owner")
    assert box.engine.stats().swaps == swaps
    assert len(box.store.adapters.switches(10)) == 1


async def test_what_cannot_serve_is_refused(box: Box) -> None:
    put(box, "good")
    await box.switch.promote("good", reason="test", actor="owner")
    put(box, "rejected", state="rejected")
    put(box, "candidate", state="candidate")
    put(box, "changed")
    make_adapter(box.home.adapters / "changed.safetensors", box.bundle, scale=0.01, seed=9)
    make_adapter(box.home.adapters / "unknown.safetensors", box.bundle, scale=0.01)
    damaged = put(box, "damaged")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for name, error in {
        "absent": NotFound,
        "../good": NotFound,
        "rejected": Conflict,
        "candidate": Conflict,
        "changed": Conflict,
        "unknown": Conflict,
        "damaged": AdapterInvalid,
    }.items():
        with pytest.raises(error):
            await box.switch.promote(name, reason="test", actor="owner")
        assert everywhere(box, "good"), name


async def test_an_engine_that_fails_keeps_the_old_one(box: Box) -> None:
    put(box, "good")
    await box.switch.promote("good", reason="test", actor="owner")
    put(box, "other", seed=1)
    with pytest.raises(Unavailable):
        await box.switch.promote("other", reason="test", actor="owner", fingerprint=(1, 2, 3))
    assert everywhere(box, "good")


async def test_a_full_disk_keeps_the_old_one(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a link nor a history that cannot be written leaves a half-made switch."""
    put(box, "good")
    await box.switch.promote("good", reason="test", actor="owner")
    put(box, "other", scale=0.15, seed=1)
    answer = await box.ask(QUESTION)

    def full(*_: object) -> None:
        raise StorageFull("full")

    for target, method in ((box.registry, "set_current"), (box.store.audit, "add")):
        with monkeypatch.context() as patch:
            patch.setattr(target, method, full)
            with pytest.raises(StorageFull):
                await box.switch.promote("other", reason="test", actor="owner")
        assert everywhere(box, "good")
        assert await box.ask(QUESTION) == answer
    await box.switch.promote("other", reason="test", actor="owner")
    assert everywhere(box, "other")


async def test_a_caller_that_goes_away_does_not_cut_a_switch_in_two(box: Box) -> None:
    put(box, "a")
    task = asyncio.create_task(box.switch.promote("a", reason="test", actor="owner"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await box.until(lambda: everywhere(box, "a"), 60)


async def test_switches_come_one_after_the_other(box: Box) -> None:
    for seed, name in enumerate(["a", "b", "c"]):
        put(box, name, seed=seed)
    await asyncio.gather(*(box.switch.promote(name, reason="t", actor="o") for name in ("a", "b", "c", "a")))
    assert everywhere(box, "a")
    assert [past.to for past in box.store.adapters.switches(10)] == ["a", "c", "b", "a"]


def test_lineage_undoes_steps_back() -> None:
    def line(*names: str | None) -> list[str | None]:
        pairs = pairwise(names)
        return lineage([Past(0.0, before, after, "", "") for before, after in pairs][::-1])

    assert line(None) == []
    assert line(None, "a", "b") == [None, "a", "b"]
    assert line(None, "a", "b", "a") == [None, "a"]
    assert line(None, "a", "b", None, "c") == [None, "c"]
    assert line("a", "b") == ["a", "b"]
