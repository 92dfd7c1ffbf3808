"""Which adapter is in service, and changing that without anybody noticing.

The order of a switch: read and validate the file; have the engine build, probe and activate it; then
point `current` to it and write the history in one step. Until the engine has taken it nothing has
changed. If the link or the store then fail, the engine is given the old one back. A crash in between
leaves `current` at the old one: whatever brought the box down is not served after the restart.

What the box puts in service by itself is on probation (see `learning/watch.py`); what a person puts
there is not, and stays. What a person has pinned (see `learning/pin.py`) only a person replaces.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from appliance.adapters.file import Adapter
from appliance.adapters.registry import Registry
from appliance.errors import AdapterInvalid, Conflict, NotFound, Pinned, ShammahError
from appliance.events import EventBus
from appliance.failpoints import failpoint
from appliance.learning.pin import Pin, load_pin, save_pin
from appliance.learning.probation import Probation, begin_probation, load_probation, save_probation
from appliance.store import Store
from appliance.store.adapters import Switch as Past

logger = logging.getLogger(__name__)

APPLIANCE = "appliance"
"""The actor of what the box does by itself."""
HISTORY = 1000
T = TypeVar("T")


class Swapper(Protocol):
    """The engine, as far as a switch needs it."""

    @property
    def adapter(self) -> str | None: ...

    async def swap(self, adapter: Adapter | None, expected: tuple[int, ...] | None = None) -> None: ...


class Switch:
    """Promotes adapters and rolls back; one switch at a time."""

    def __init__(self, registry: Registry, store: Store, engine: Swapper, events: EventBus) -> None:
        self._registry = registry
        self._store = store
        self._engine = engine
        self._events = events
        self._lock = asyncio.Lock()
        self._serving: str | None = None
        """Hash of the file in service; None when base is, or when it came with the start."""

    @property
    def serving(self) -> str | None:
        """Name of the adapter in service, None for base."""
        return self._engine.adapter

    async def promote(
        self,
        name: str | None,
        *,
        reason: str,
        actor: str,
        fingerprint: tuple[int, ...] | None = None,
        probation_minutes: float = 0.0,
    ) -> None:
        """Put an adapter in service, or base for None. What is in service already is left alone.

        A person who promotes an adapter that is on probation ends it: the adapter stays.

        A switch that has begun is finished even if the caller is cancelled.

        Args:
            name: the adapter; the gate must have accepted this very file.
            reason: why, for the history.
            actor: who asked.
            fingerprint: the probe's tokens as the gate saw them, to be met by the engine.
            probation_minutes: how long the adapter has to prove itself; 0 for not at all.

        Raises:
            NotFound: there is no such adapter.
            AdapterInvalid: its file is damaged.
            Conflict: the gate has not passed it; or it was withdrawn, and no person asks for it.
            Pinned: no person asks for it, and what is in service is pinned.
            Unavailable: the engine could not take it; the old one goes on.
            StorageFull: likewise.
        """

        async def unless_pinned() -> None:
            if actor == APPLIANCE and name != self._engine.adapter and await self._pinned():
                raise Pinned(f"What is in service is pinned: {name or 'base'} waits for a person.")
            await self._promote(name, reason, actor, fingerprint, probation_minutes)

        await _finish(self._locked(unless_pinned))

    async def rollback(
        self, actor: str, *, reason: str = "rolled back", skip: Collection[str] = ()
    ) -> str | None:
        """Go back to what was in service before, as far as it still exists; base in the end.

        Args:
            actor: who asked.
            reason: why, for the history.
            skip: adapters not to go back to.

        Returns:
            What is in service now.

        Raises:
            Conflict: base is in service, and there was nothing before it.
        """
        return await _finish(self._locked(lambda: self._rollback(actor, reason, skip)))

    async def withdraw(self, probation: Probation, settle: Callable[[], None]) -> bool:
        """Roll back from the adapter that failed this probation.

        Args:
            probation: its record, with the reason.
            settle: writes to the store what follows from that, in the transaction of the switch.

        Returns:
            Whether that was done; not if the probation has ended meanwhile, or the adapter has been
            pinned: a person was faster.

        Raises:
            Unavailable: the engine could not go back; the adapter goes on.
            StorageFull: likewise.
        """
        return await _finish(self._locked(lambda: self._withdraw(probation, settle)))

    async def pin(self, name: str | None, actor: str) -> None:
        """Let only persons switch from now on. An adapter on probation stays on it, but is only warned of.

        Args:
            name: what is in service, to the knowledge of who asks; None for base.
            actor: who asks.

        Raises:
            Conflict: something else is in service by now.
        """

        async def act() -> None:
            if name != self._engine.adapter:
                raise Conflict(
                    f"{self._engine.adapter or 'The base model'} is in service by now. Look again, and pin "
                    "that if you want it.",
                    param="name",
                )
            if not await self._pinned():
                await asyncio.to_thread(self._set_pin, Pin(time.time()), actor)

        await _finish(self._locked(act))

    async def unpin(self, actor: str) -> None:
        """Let the box switch by itself again. Fine when nothing is pinned."""

        async def act() -> None:
            if await self._pinned():
                await asyncio.to_thread(self._set_pin, None, actor)

        await _finish(self._locked(act))

    async def remove(
        self, name: str, actor: str, unused: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        """Delete an adapter's file; what is known of it stays, as history.

        Args:
            name: the adapter.
            actor: who asks.
            unused: keeps the learning room from taking it up meanwhile, or raises when it has.

        Raises:
            NotFound: there is no such file.
            Conflict: it is in service, or a run or the gate needs it.
        """

        async def act() -> None:
            if name in (self._engine.adapter, await asyncio.to_thread(self._registry.current)):
                raise Conflict(
                    f"{name} is in service. Put another adapter or the base model in service first.",
                    param="name",
                )
            await asyncio.to_thread(self._remove, name, actor, unused)
            self._events.publish("adapter.deleted", adapter=name, actor=actor)

        await _finish(self._locked(act))

    async def previous(self) -> str | None:
        """What `rollback` would lead to.

        Raises:
            Conflict: there is nothing to go back to.
        """
        return await asyncio.to_thread(self._previous)

    async def _locked(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._lock:
            return await act()

    async def _rollback(self, actor: str, reason: str, skip: Collection[str]) -> str | None:
        name = await asyncio.to_thread(self._previous, skip)
        failpoint("promote.back")
        await self._promote(name, reason, actor, back=True)
        return name

    async def _withdraw(self, probation: Probation, settle: Callable[[], None]) -> bool:
        if await self._pinned():
            return False
        if await asyncio.to_thread(load_probation, self._store.settings) != probation:
            return False
        if self._engine.adapter == probation.adapter:
            name = await asyncio.to_thread(self._previous, (probation.adapter,))
            await self._promote(name, probation.failed or "", APPLIANCE, settle=settle, back=True)
        else:  # the start has found it broken, and serves something else already
            await asyncio.to_thread(self._end_probation, settle)
        return True

    async def _promote(
        self,
        name: str | None,
        reason: str,
        actor: str,
        fingerprint: tuple[int, ...] | None = None,
        probation_minutes: float = 0.0,
        settle: Callable[[], None] = lambda: None,
        back: bool = False,
    ) -> None:
        before = self._engine.adapter
        adapter = None if name is None else await asyncio.to_thread(self._load, name, actor)

        def follow() -> None:
            if adapter is not None and actor != APPLIANCE:
                self._store.adapters.reinstate(adapter.sha256)
            if adapter is not None:
                self._store.adapters.put_in_service(adapter.name)
            if adapter is not None and probation_minutes:
                replaced = self._store.adapters.switches(1)[0].from_
                begin_probation(
                    self._store.settings, adapter.name, adapter.sha256, replaced, probation_minutes
                )
            settle()

        linked = await asyncio.to_thread(self._registry.current)
        same = adapter is None or self._serving in (None, adapter.sha256)
        if before == linked == name and same:
            known = await asyncio.to_thread(load_probation, self._store.settings)
            last = await asyncio.to_thread(self._store.adapters.switches, 1)
            if known is None and probation_minutes and last and last[0].actor == APPLIANCE:
                # The power went when the link was made, and nothing else.
                await asyncio.to_thread(self._end_probation, follow)
            elif known is not None and actor != APPLIANCE:
                await asyncio.to_thread(self._end_probation, follow, actor)
                self._events.publish("adapter.proved", adapter=name, actor=actor)
            return
        await self._engine.swap(adapter, fingerprint)
        try:
            await asyncio.to_thread(self._record, name, linked, reason, actor, follow)
        except Exception:
            await self._back_to(before)
            raise
        failpoint("promote.recorded")
        self._serving = adapter.sha256 if adapter else None
        logger.info("In service: %s instead of %s (%s)", name or "base", before or "base", reason)
        told = {"to": name, "from": before, "reason": reason, "actor": actor, "back": back}
        self._events.publish("adapter.promoted", **told)

    def _load(self, name: str, actor: str = APPLIANCE) -> Adapter:
        adapter = self._registry.load(name)
        row = self._store.adapters.get(name)
        if self._store.adapters.barred(adapter.sha256):
            raise Conflict(
                f"{name} learned from what has been forgotten: it cannot serve again.", param="name"
            )
        if row is None or row.state == "candidate":
            raise Conflict(f"{name} has not been through the gate yet; try again when it has.", param="name")
        if row.sha256 != adapter.sha256:
            raise Conflict(f"{name} was changed after the gate judged it; it is judged again.", param="name")
        if row.state != "accepted":
            raise Conflict(f"{name} cannot be put in service: the gate rejected it.", param="name")
        if row.withdrawn is not None and actor == APPLIANCE:
            raise Conflict(f"{name} was withdrawn: {row.withdrawn}", param="name")
        return adapter

    async def _pinned(self) -> bool:
        return await asyncio.to_thread(load_pin, self._store.settings) is not None

    def _set_pin(self, pin: Pin | None, actor: str) -> None:
        serving = self._engine.adapter
        with self._store.transaction():
            save_pin(self._store.settings, pin)
            self._store.audit.add(actor, "adapter.pin" if pin else "adapter.unpin", {"adapter": serving})
        self._events.publish("adapter.pinned" if pin else "adapter.unpinned", adapter=serving, actor=actor)

    def _remove(self, name: str, actor: str, unused: Callable[[str], AbstractContextManager[None]]) -> None:
        with unused(name):
            # In this order: what a crash in between leaves is found missing at the next start.
            self._registry.remove(name)
            with self._store.transaction():
                if self._store.adapters.get(name) is not None:
                    self._store.adapters.set_state(name, "deleted")
                self._store.audit.add(actor, "adapter.delete", {"adapter": name})

    def _end_probation(self, follow: Callable[[], None], kept_by: str | None = None) -> None:
        with self._store.transaction():
            if kept_by is not None:
                self._store.audit.add(kept_by, "adapter.keep", {"adapter": self._engine.adapter})
            save_probation(self._store.settings, None)
            follow()

    def _record(
        self, name: str | None, linked: str | None, reason: str, actor: str, follow: Callable[[], None]
    ) -> None:
        moved = False
        try:
            with self._store.transaction():
                failpoint("promote.swapped")
                self._store.adapters.record_switch(name, reason, actor)
                self._store.audit.add(
                    actor, "adapter.promote", {"to": name, "from": linked, "reason": reason}
                )
                save_probation(self._store.settings, None)
                follow()
                failpoint("promote.stated")
                self._registry.set_current(name)
                moved = True
                failpoint("promote.linked")
        except BaseException:
            if moved:  # the link is made, but the history could not be written
                self._registry.set_current(linked)
            raise

    async def _back_to(self, name: str | None) -> None:
        try:
            old = None if name is None else await asyncio.to_thread(self._registry.load, name)
            await self._engine.swap(old)
        except ShammahError as error:
            logger.error("The engine could not go back to %s: %s", name or "base", error)

    def _previous(self, skip: Collection[str] = ()) -> str | None:
        """Below the adapter in service, the last one that can still serve."""
        now = self._engine.adapter
        line = lineage(self._store.adapters.switches(HISTORY))
        if now in line:
            line = line[: line.index(now)]
        for name in reversed(line):
            if name is None:
                return None
            if name in skip:
                continue
            try:
                self._load(name)
            except (NotFound, AdapterInvalid, Conflict):
                continue
            return name
        if now is None:
            raise Conflict("The base model is in service, and nothing was before it.")
        return None


def lineage(switches: list[Past]) -> list[str | None]:
    """What was in service, oldest first, with every step back undone.

    After base, A, B and back to A it is [base, A]: rolling back again leads to base, not to B.

    Args:
        switches: newest first.
    """
    line: list[str | None] = []
    for past in reversed(switches):
        if not line:
            line.append(past.from_)
        if past.to in line:
            del line[line.index(past.to) + 1 :]
        else:
            line.append(past.to)
    return line


async def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when the caller is cancelled (a client that went away)."""
    return await asyncio.shield(asyncio.ensure_future(work))
