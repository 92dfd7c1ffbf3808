"""What the watcher reports, with real files and real notifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.adapters.registry import Registry
from appliance.adapters.watcher import AdapterWatcher
from appliance.home import Home

from .conftest import META  # noqa: F401  (the fixtures live beside it)


@pytest.fixture
async def seen(registry: Registry, drop: Callable[..., Path]) -> AsyncIterator[asyncio.Queue[str]]:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def note(path: Path, fresh: bool) -> None:
        assert fresh is (path.stem != "earlier")
        await queue.put(f"{path.stem} {'there' if path.exists() else 'gone'}")
        if path.stem == "explodes":
            raise RuntimeError("a callback that fails")

    drop("earlier")
    stop = asyncio.Event()
    watcher = AdapterWatcher(registry, note, earlier=registry.list(), settle=0.3)
    task = asyncio.create_task(watcher.run(stop))
    assert await asyncio.wait_for(queue.get(), 20) == "earlier there"
    yield queue
    stop.set()
    await asyncio.wait_for(task, 20)


async def test_one_that_comes_before_the_watch_has_begun_is_new(
    registry: Registry, drop: Callable[..., Path]
) -> None:
    seen: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def note(path: Path, fresh: bool) -> None:
        await seen.put((path.stem, fresh))

    watcher = AdapterWatcher(registry, note, settle=0.3)
    drop("early")
    stop = asyncio.Event()
    task = asyncio.create_task(watcher.run(stop))
    assert await asyncio.wait_for(seen.get(), 20) == ("early", True)
    stop.set()
    await asyncio.wait_for(task, 20)


async def test_appearing_changing_and_vanishing_are_reported(
    seen: asyncio.Queue[str], drop: Callable[..., Path]
) -> None:
    path = drop("adapter_1")
    assert await asyncio.wait_for(seen.get(), 20) == "adapter_1 there"
    drop("adapter_1", seed=1)
    assert await asyncio.wait_for(seen.get(), 20) == "adapter_1 there"
    path.unlink()
    assert await asyncio.wait_for(seen.get(), 20) == "adapter_1 gone"


async def test_a_slow_copy_is_reported_once_it_is_whole(
    seen: asyncio.Queue[str], drop: Callable[..., Path], home: Home, tmp_path: Path
) -> None:
    whole = drop("source").read_bytes()
    assert await asyncio.wait_for(seen.get(), 20) == "source there"
    slow = home.adapters / "slow.safetensors"
    with slow.open("wb") as file:
        for at in range(0, len(whole), len(whole) // 8):
            file.write(whole[at : at + len(whole) // 8])
            file.flush()
            await asyncio.sleep(0.1)
            assert seen.empty()
    assert await asyncio.wait_for(seen.get(), 20) == "slow there"
    assert slow.read_bytes() == whole


async def test_temporary_files_and_other_names_are_ignored(
    seen: asyncio.Queue[str], drop: Callable[..., Path], home: Home
) -> None:
    (home.adapters / ".adapter_2.safetensors.tmp").write_bytes(b"x")
    (home.adapters / ".adapter_2.safetensors").write_bytes(b"x")
    (home.adapters / "notes.txt").write_bytes(b"x")
    home.current.symlink_to("earlier.safetensors")
    drop("last")
    assert await asyncio.wait_for(seen.get(), 20) == "last there"
    await asyncio.sleep(0.8)
    assert seen.empty()


async def test_a_failing_callback_does_not_stop_the_watch(
    seen: asyncio.Queue[str], drop: Callable[..., Path]
) -> None:
    drop("explodes")
    assert await asyncio.wait_for(seen.get(), 20) == "explodes there"
    drop("after")
    assert await asyncio.wait_for(seen.get(), 20) == "after there"
