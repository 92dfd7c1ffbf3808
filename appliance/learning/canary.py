"""The canary: a run's adapter that passed the gate answers a share of the requests before it serves all.

When it began is stored, so that a restart goes on with it; the record stays until the next canary begins. A
conversation stays on one side, or an answer would not fit the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from appliance.adapters.file import Adapter
from appliance.config import Config
from appliance.engine.engine import Engine
from appliance.engine.session import Session
from appliance.events import EventBus
from appliance.learning.faults import Fault, engine_fault, rating_fault
from appliance.sections import GateConfig
from appliance.store import Store
from appliance.store.settings import Settings

logger = logging.getLogger(__name__)

KEY = "learning.canary"
LOOK_SECONDS = 5.0
OVER_SECONDS = 0.3

Report = Callable[[int], None]


@dataclass(frozen=True)
class Trial:
    """A canary on record: whose, and since when."""

    adapter: str
    since: float


def load_trial(settings: Settings) -> Trial | None:
    """The last canary on record."""
    text = settings.get(KEY)
    return None if text is None else Trial(**json.loads(text))


class Canary:
    """Lets one adapter at a time answer a share of the requests."""

    def __init__(self, config: Config, store: Store, engine: Engine, events: EventBus) -> None:
        self._config = config
        self._store = store
        self._engine = engine
        self._events = events
        self._session: Session | None = None
        self._share = 0.0

    def weights_for(self, conversation: str) -> Session | None:
        """What answers a conversation: the challenger, or None for what is in service.

        Args:
            conversation: the same for all turns of one, and different for others.
        """
        session = self._session
        if session is None:
            return None
        digest = hashlib.blake2b(f"{session.weights}\0{conversation}".encode(), digest_size=8).digest()
        return session if int.from_bytes(digest) < self._share * 2**64 else None

    async def run(
        self, adapter: Adapter, before: str | None, over: Callable[[], bool], report: Report
    ) -> Fault | None:
        """Have it answer its share until there is something to decide by.

        Args:
            adapter: the challenger.
            before: what is in service; None for base.
            over: whether the question has settled itself, or the box stops; asked all the time.
            report: gets the number of its answers.

        Returns:
            What was found against it; None to go on with it.

        Raises:
            Unavailable: no session can be built with it.
        """
        gate = self._config.gate  # the trial's for all its life
        trial = await asyncio.to_thread(self._begin, adapter.name)
        session = await self._engine.prepare(adapter)
        logger.info("%s answers %.0f%% of the requests", adapter.name, 100 * gate.canary_share)
        self._events.publish("adapter.tried", adapter=adapter.name, share=gate.canary_share)
        self._share, self._session = gate.canary_share, session
        try:
            look_at = 0.0
            while not over():
                if time.monotonic() >= look_at:
                    answers, fault = await asyncio.to_thread(self._look, gate, trial, session.weights, before)
                    report(answers)
                    late = time.time() >= trial.since + gate.canary_minutes * 60
                    if fault is not None or late or answers >= gate.canary_answers:
                        return fault
                    look_at = time.monotonic() + LOOK_SECONDS
                await asyncio.sleep(OVER_SECONDS)
            return None
        finally:
            self._session = None

    def _begin(self, adapter: str) -> Trial:
        known = load_trial(self._store.settings)
        if known is not None and known.adapter == adapter:
            return known
        trial = Trial(adapter, time.time())
        self._store.settings.set(KEY, json.dumps(asdict(trial)))
        return trial

    def _look(
        self, gate: GateConfig, trial: Trial, sha256: str, before: str | None
    ) -> tuple[int, Fault | None]:
        """How many answers it has given, and what is to be held against it."""
        answers = self._store.ratings.answers(trial.adapter, trial.since)
        fault = engine_fault(self._engine, sha256)
        return answers, fault or rating_fault(
            self._store, gate.probation_chance, trial.adapter, before, trial.since
        )
