"""Watches the directory of adapters: what a person drops there becomes a candidate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from watchfiles import Change, DefaultFilter, awatch

from appliance.adapters.file import SUFFIX
from appliance.adapters.registry import Registry, valid_name

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
RETRY_SECONDS = 5.0
LOOK_SECONDS = 0.5


class AdapterWatcher:
    """Calls back with each adapter file that appeared, changed or vanished.

    A file that is still being copied is waited for: it is reported when its size and time of change
    have stood still for `SETTLE_SECONDS`. Temporary files (with a dot in front) and links are not
    adapters. The files in `earlier` were there at the start; they are reported too, and the callback's
    second argument is false for these until they change.
    """

    def __init__(
        self,
        registry: Registry,
        callback: Callable[[Path, bool], Awaitable[None]],
        *,
        earlier: Collection[str] = (),
        settle: float = SETTLE_SECONDS,
    ) -> None:
        self._registry = registry
        self._callback = callback
        self._earlier = frozenset(earlier)
        self._settle = settle
        self._waiting: dict[Path, asyncio.Task[None]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set."""
        try:
            while not stop.is_set():
                try:
                    await self._watch(stop)
                except OSError as error:  # the directory is gone for a moment, or inotify is out of watches
                    logger.warning("%s cannot be watched: %s", self._registry.directory, error)
                    await _wait(stop, RETRY_SECONDS)
        finally:
            for task in self._waiting.values():
                task.cancel()

    async def _watch(self, stop: asyncio.Event) -> None:
        look = asyncio.get_running_loop().create_task(self._look())
        try:
            async for batch in awatch(
                self._registry.directory,
                watch_filter=_Adapters(),
                stop_event=stop,
                recursive=False,
                debounce=400,
                step=100,
            ):
                for _, text in batch:
                    self._notice(Path(text), fresh=True)
        finally:
            look.cancel()

    async def _look(self) -> None:
        # When the watch has begun for certain, so that no file comes unseen in between.
        await asyncio.sleep(LOOK_SECONDS)
        for name in await asyncio.to_thread(self._registry.list):
            self._notice(self._registry.directory / f"{name}{SUFFIX}", fresh=name not in self._earlier)

    def _notice(self, path: Path, *, fresh: bool) -> None:
        if path not in self._waiting:
            task = asyncio.get_running_loop().create_task(self._report(path, fresh))
            self._waiting[path] = task

    async def _report(self, path: Path, fresh: bool) -> None:
        try:
            seen = _state(path)
            while True:
                await asyncio.sleep(self._settle)
                now = _state(path)
                if now == seen:
                    break
                seen = now
        finally:
            # From here on a change is a new one.
            del self._waiting[path]
        try:
            await self._callback(path, fresh)
        except Exception:
            logger.exception("The adapter file %s could not be considered", path.name)


class _Adapters(DefaultFilter):
    """Only names that an adapter can have."""

    def __call__(self, change: Change, path: str) -> bool:
        name = Path(path).name
        return name.endswith(SUFFIX) and valid_name(name.removesuffix(SUFFIX))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
