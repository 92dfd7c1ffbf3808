"""Watches the adapter on probation, and takes it out of service when it does worse than expected.

Three things can bring it down: people like its answers less than those of the one before (see
`ratings.py`); the questions it answered in the gate are not answered by the session that serves (see
`recheck.py`); the engine fails on it. The verdict is stored before anything is done about it, and what
follows is stored with the switch in one transaction, so the power may go at any line. While the adapter
is pinned the owner is told, and nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

from appliance.config import Config
from appliance.engine.engine import Engine
from appliance.errors import Busy, ShammahError, Unavailable
from appliance.events import Event, EventBus
from appliance.learning.faults import Fault, engine_fault, rating_fault
from appliance.learning.pin import load_pin
from appliance.learning.probation import Probation, load_probation, save_probation
from appliance.learning.recheck import find_lost
from appliance.learning.retry import ahead, give_back
from appliance.learning.switch import APPLIANCE, Switch
from appliance.store import Store

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
RATINGS_SECONDS = 60.0
"""Ratings are counted when one is given, and this often: feedback can be faster than the collector."""
PATIENCE_SECONDS = 60.0
"""Repeating the probe set is given up when the box has not been idle enough in so long ..."""
AGAIN_SECONDS = 300.0
"""... and tried again after this."""
IDLE_SECONDS = 0.2
RETRY_SECONDS = 30.0


class _NotNow(Exception):
    """The box is busy, or stops."""


class Watch:
    """Looks at the probation going on, if there is one."""

    def __init__(
        self, config: Config, store: Store, switch: Switch, engine: Engine, events: EventBus
    ) -> None:
        self._config = config
        self._store = store
        self._switch = switch
        self._engine = engine
        self._events = events
        self._wake = asyncio.Event()
        self._stopping = False
        self._count_at = 0.0
        self._probe_at = 0.0

    async def run(self) -> None:
        """Look every few seconds, and when something is rated, until `stop`."""
        loop = asyncio.get_running_loop()

        def hear(event: Event) -> None:
            if event.name == "feedback.given":
                with contextlib.suppress(RuntimeError):  # the loop has been closed
                    loop.call_soon_threadsafe(self._nudge)

        remove = self._events.listen(hear)
        try:
            while not self._stopping:
                pause = LOOK_SECONDS
                try:
                    await self.look()
                except ShammahError as error:
                    logger.warning("The probation is looked at again later: %s", error)
                    pause = RETRY_SECONDS
                except Exception:
                    logger.exception("The probation could not be looked at; trying again")
                    pause = RETRY_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
                if not self._stopping:
                    self._wake.clear()
        finally:
            remove()

    def stop(self) -> None:
        """End `run` soon; a switch under way is finished."""
        self._stopping = True
        self._wake.set()

    async def look(self) -> None:
        """Judge the adapter on probation by what is known now, and act on the verdict.

        Raises:
            ShammahError: the store or the engine could not; what was decided is kept.
        """
        probation = await asyncio.to_thread(load_probation, self._store.settings)
        if probation is None:
            return
        if probation.failed is None:
            fault = await self._judge(probation)
            if fault is None:
                return
            probation = replace(probation, failed=fault.reason, failed_by=fault.by)
            if not await asyncio.to_thread(self._keep, probation):
                return
            if await asyncio.to_thread(load_pin, self._store.settings) is not None:
                logger.warning("%s would be rolled back, but is pinned: %s", probation.adapter, fault.reason)
                told = {"adapter": probation.adapter, "by": fault.by, "reason": fault.reason}
                self._events.publish("adapter.doubted", **told)
        if await asyncio.to_thread(load_pin, self._store.settings) is None:
            await self._withdraw(probation)

    def _nudge(self) -> None:
        self._count_at = 0.0
        self._wake.set()

    # -- judging ------------------------------------------------------------------------------

    async def _judge(self, probation: Probation) -> Fault | None:
        """What is to be held against it; None while nothing is."""
        last = await asyncio.to_thread(self._store.adapters.switches, 1)
        if not last or last[0].to != probation.adapter:  # at the start something else was found in service
            await asyncio.to_thread(self._end, probation)
            return None
        if ahead(probation.since, time.time()):
            await asyncio.to_thread(self._replace, probation, probation.begun_anew(time.time()))
            return None
        fault = engine_fault(self._engine, probation.sha256)
        if fault is None and time.monotonic() >= self._count_at:
            self._count_at = time.monotonic() + RATINGS_SECONDS
            fault = await asyncio.to_thread(self._rated_worse, probation)
        if fault is not None:
            return fault
        now = time.time()
        if now >= probation.until or (now >= probation.probe_at and time.monotonic() >= self._probe_at):
            try:
                lost = await self._lost(probation)
            except _NotNow:
                return None
            if len(lost) > self._config.gate.max_probe_drop:
                return Fault("probes", f"It has lost what it answered in the gate: {' '.join(lost)}")
            probation = probation.after_probes(now)
            if now < probation.until:
                await asyncio.to_thread(self._keep, probation)
            elif await asyncio.to_thread(self._end, probation):
                logger.info("%s has stood the probation", probation.adapter)
                self._events.publish("adapter.proved", adapter=probation.adapter, actor=APPLIANCE)
        return None

    def _rated_worse(self, probation: Probation) -> Fault | None:
        chance, since = self._config.gate.probation_chance, probation.since
        return rating_fault(self._store, chance, probation.adapter, probation.before, since, until=since)

    async def _lost(self, probation: Probation) -> list[str]:
        """Repeat the probe set while nobody is being answered; at the end of the probation, in any case."""
        weights = self._engine.weights
        if weights.weights != probation.sha256:
            raise _NotNow
        row = await asyncio.to_thread(self._store.adapters.get, probation.adapter)
        patience = time.monotonic() + PATIENCE_SECONDS

        async def idle() -> None:
            while not self._stopping:
                load = self._engine.stats()
                if load.active + load.waiting == 0 or time.time() >= probation.until:
                    return
                if time.monotonic() >= patience:
                    self._probe_at = time.monotonic() + AGAIN_SECONDS
                    break
                await asyncio.sleep(IDLE_SECONDS)
            raise _NotNow

        try:
            return await find_lost(self._engine, weights, (row.report if row else None) or {}, idle)
        except (Busy, Unavailable) as error:  # counted by the engine, if it is to blame
            raise _NotNow from error

    # -- acting -------------------------------------------------------------------------------

    async def _withdraw(self, probation: Probation) -> None:
        logger.warning("%s is rolled back: %s", probation.adapter, probation.failed)
        if await self._switch.withdraw(probation, lambda: self._settle(probation)):
            told = {"adapter": probation.adapter, "to": self._switch.serving, "by": probation.failed_by}
            self._events.publish("adapter.withdrawn", **told, reason=probation.failed)

    def _settle(self, probation: Probation) -> None:
        """What follows from a failed probation, but for the switch."""
        reason = probation.failed or ""
        by = (probation.failed_by or "",)
        self._store.adapters.withdraw(probation.adapter, probation.sha256, reason)
        self._store.examples.exclude_answers(probation.adapter, probation.since)
        row = self._store.adapters.get(probation.adapter)
        if row is not None and row.run_id is not None:
            run = self._store.runs.get(row.run_id)
            if run.state == "promoted":
                self._store.examples.take_back(run.id)
                told = f"It passed the gate, but was rolled back after {_span(probation.since)}. {reason}"
                give_back(self._store, self._config, run, "rejected", told, by)
        detail = {"adapter": probation.adapter, "by": probation.failed_by, "reason": reason}
        self._store.audit.add(APPLIANCE, "adapter.withdraw", detail)

    def _keep(self, probation: Probation) -> bool:
        """Store what has changed; says whether this probation is still going on."""
        return self._replace(probation, probation)

    def _end(self, probation: Probation) -> bool:
        return self._replace(probation, None)

    def _replace(self, probation: Probation, by: Probation | None) -> bool:
        with self._store.transaction():
            known = load_probation(self._store.settings)
            if known is None or (known.adapter, known.since) != (probation.adapter, probation.since):
                return False
            save_probation(self._store.settings, by)
        return True


def _span(since: float) -> str:
    minutes = max(time.time() - since, 0.0) / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
