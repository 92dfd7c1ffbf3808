"""Deleting adapters and taking them in, with the real engine, store and watcher."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import AdapterInvalid, Conflict, NotFound, StorageFull
from appliance.files import remove_durably
from appliance.home import Home
from appliance.learning.intake import fit_name
from appliance.model.bundle import Bundle

from .box import Box, everywhere, make_adapter, put, running

OFF = "[lora]\nenabled = false\n"


@pytest.fixture
async def box(home: Home, bundle: Bundle) -> AsyncIterator[Box]:
    async with running(home, bundle, OFF) as box:
        yield box


def state(box: Box, name: str) -> str | None:
    row = box.store.adapters.get(name)
    return row.state if row else None


async def test_a_deleted_one_is_gone_but_known(box: Box, home: Home, bundle: Bundle) -> None:
    path = put(box, "mine", parent="older")
    await box.learning.remove("mine", "owner")
    assert not path.exists()
    await box.learning.consider(path)  # as the watcher tells it
    assert state(box, "mine") == "deleted"
    assert everywhere(box, None)
    assert box.store.audit.list(1)[0].action == "adapter.delete"
    for _ in range(2):
        with pytest.raises(NotFound):
            await box.learning.remove("mine", "owner")
    with pytest.raises(NotFound):
        await box.switch.promote("mine", reason="test", actor="owner")


async def test_what_serves_or_is_needed_stays(box: Box) -> None:
    put(box, "mine")
    put(box, "made")
    await box.switch.promote("mine", reason="test", actor="owner")
    with pytest.raises(Conflict, match="in service"):
        await box.learning.remove("mine", "owner")
    run = box.store.runs.create("person", 1, "mine")
    box.store.runs.update(run.id, adapter="made")
    await box.switch.promote(None, reason="test", actor="owner")
    for name, why in (("mine", "grows from it"), ("made", "made it")):
        with pytest.raises(Conflict, match=why):
            await box.learning.remove(name, "owner")
    box.store.runs.update(run.id, state="failed")
    await box.learning.remove("mine", "owner")
    await box.learning.remove("made", "owner")
    for odd in ("../store", "current", ""):
        with pytest.raises(NotFound):
            await box.learning.remove(odd, "owner")


async def test_deleting_and_promoting_at_once_end_in_one_of_the_two(box: Box) -> None:
    for number in range(6):
        name = f"mine{number}"
        path = put(box, name, scale=0.15, seed=number)
        acts = [
            box.switch.promote(name, reason="test", actor="owner"),
            box.learning.remove(name, "owner"),
        ]
        done = await asyncio.gather(*(acts if number % 2 else acts[::-1]), return_exceptions=True)
        failed = [outcome for outcome in done if outcome is not None]
        assert len(failed) == 1, done
        if path.exists():
            assert isinstance(failed[0], Conflict)
            assert everywhere(box, name)
        else:
            assert isinstance(failed[0], NotFound)
            assert state(box, name) == "deleted"
            assert box.engine.adapter != name


async def test_a_crash_between_file_and_store_is_found_at_the_start(home: Home, bundle: Bundle) -> None:
    async with running(home, bundle, OFF) as box:
        put(box, "mine")
    remove_durably(home.adapters / "mine.safetensors")
    async with running(home, bundle, OFF) as box:
        assert state(box, "mine") == "missing"


async def test_an_uploaded_one_is_judged_and_put_in_service(box: Box, home: Home, tmp_path: Path) -> None:
    file = make_adapter(tmp_path / "mine.safetensors", box.bundle, scale=1e-4)
    kept = shutil.copy(file, tmp_path / "kept")
    assert box.learning.take_in(file, "owner") == "mine"
    assert state(box, "mine") == "candidate"
    assert not file.exists()
    await box.until(lambda: box.engine.adapter == "mine")
    assert state(box, "mine") == "accepted"
    again = Path(shutil.copy(kept, tmp_path / "again.safetensors"))
    with pytest.raises(Conflict, match="it is mine"):
        box.learning.take_in(again, "owner")
    # Deleted and put back it is what it was, whatever the file is called now.
    known = box.store.adapters.get("mine")
    assert known is not None
    box.store.adapters.upsert(replace(known, run_id="run_x"))
    await box.switch.promote(None, reason="test", actor="owner")
    await box.learning.remove("mine", "owner")
    assert box.learning.take_in(again, "owner") == "mine"
    await box.until(lambda: box.engine.adapter == "mine")
    row = box.store.adapters.get("mine")
    assert row is not None
    assert (row.state, row.run_id) == ("accepted", "run_x")


async def test_an_unfit_one_leaves_nothing_behind(
    box: Box, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk")
    with pytest.raises(AdapterInvalid, match=r"^junk\.safetensors is not a whole"):
        box.learning.take_in(junk, "owner")
    forgotten = make_adapter(tmp_path / "forgotten.safetensors", box.bundle, scale=1e-4, seed=3)
    put(box, "was", scale=1e-4, seed=3)
    box.store.adapters.bar(["was"])
    with pytest.raises(Conflict, match="forgotten"):
        box.learning.take_in(forgotten, "owner")
    fine = make_adapter(tmp_path / "fine.safetensors", box.bundle, scale=1e-4, seed=4)

    def full(*_: object) -> None:
        raise StorageFull("full")

    monkeypatch.setattr(box.registry, "add", full)
    with pytest.raises(StorageFull):
        box.learning.take_in(fine, "owner")
    assert state(box, "fine") is None
    assert {path.name for path in home.adapters.iterdir()} == {"was.safetensors"}


async def test_a_taken_name_gets_a_number(box: Box, tmp_path: Path) -> None:
    put(box, "mine")
    await box.learning.remove("mine", "owner")  # its history keeps the name
    file = make_adapter(tmp_path / "mine.safetensors", box.bundle, scale=1e-4, seed=8)
    assert box.learning.take_in(file, "owner") == "mine-2"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("adapter_20261120T071500Z.safetensors", "adapter_20261120T071500Z"),
        ("C:\\Users\\me\\My größter Adapter (1).safetensors", "My-groter-Adapter-1"),
        ("../../etc/passwd", "passwd"),
        ("<img src=x onerror=alert(1)>.safetensors", "img-src-x-onerror-alert-1"),
        ("current.safetensors", "uploaded"),
        ("base", "uploaded"),
        ("", "uploaded"),
        ("....", "uploaded"),
        ("适配器.safetensors", "uploaded"),
        ("a" * 300, "a" * 100),
    ],
)
def test_a_name_is_made_of_any_file_name(given: str, name: str) -> None:
    assert fit_name(given) == name
