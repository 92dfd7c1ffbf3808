"""Adapter files that people put into the directory go through the real gate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.home import Home
from appliance.model.bundle import Bundle

from .box import Box, make_adapter, running

OFF = "[lora]\nenabled = false"


@pytest.fixture
async def box(home: Home, bundle: Bundle) -> AsyncIterator[Box]:
    async with running(home, bundle, OFF) as box:
        yield box


def state(box: Box, name: str) -> str | None:
    row = box.store.adapters.get(name)
    return row.state if row else None


async def test_a_good_one_is_put_in_service_and_its_removal_rolls_back(box: Box, home: Home) -> None:
    path = make_adapter(home.adapters / "mine.safetensors", box.bundle, scale=1e-4)
    await box.until(lambda: box.registry.current() == box.engine.adapter == "mine")
    row = box.store.adapters.get("mine")
    assert row is not None
    assert row.state == "accepted"
    assert row.report is not None
    assert row.report["passed"]
    path.unlink()
    await box.until(lambda: box.engine.adapter is None and state(box, "mine") == "missing")
    assert box.registry.current() is None


async def test_bad_ones_are_rejected_with_a_reason(box: Box, home: Home) -> None:
    (home.adapters / "junk.safetensors").write_bytes(b"junk")
    await box.until(lambda: state(box, "junk") == "rejected")
    row = box.store.adapters.get("junk")
    assert row is not None
    assert row.report is not None
    assert "not a whole safetensors file" in row.report["summary"]
    make_adapter(home.adapters / "ruinous.safetensors", box.bundle, scale=1.0)
    await box.until(lambda: state(box, "ruinous") == "rejected")
    assert [event.data["adapter"] for event in box.named("adapter.rejected")] == ["junk", "ruinous"]
    assert box.engine.adapter is None
    # Mended, it is judged anew.
    make_adapter(home.adapters / "junk.safetensors", box.bundle, scale=1e-4)
    await box.until(lambda: box.engine.adapter == "junk")


async def test_one_that_came_while_the_box_was_off_is_judged_but_not_put_in_service(
    home: Home, bundle: Bundle
) -> None:
    make_adapter(home.adapters / "mine.safetensors", bundle, scale=1e-4)
    async with running(home, bundle, OFF) as box:
        await box.until(lambda: state(box, "mine") == "accepted")
        assert box.engine.adapter is None
        await box.switch.promote("mine", reason="wanted", actor="owner")
    Path(home.adapters / "mine.safetensors").unlink()
    async with running(home, bundle, OFF) as box:
        assert state(box, "mine") == "missing"
        assert box.engine.adapter is None
        assert [(past.from_, past.to) for past in box.store.adapters.switches(1)] == [("mine", None)]
