"""Collection: every good exchange becomes an example, off the response path."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from appliance.config import Config
from appliance.errors import ShammahError, StorageFull
from appliance.events import EventBus
from appliance.failpoints import failpoint
from appliance.learning.chores import is_chore
from appliance.learning.privacy import mask_example
from appliance.logs import about, current_request
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.normalise import message_text, normalise

log = logging.getLogger(__name__)

BACKLOG = 1000
"""Exchanges that may wait for the disk; beyond that the oldest are given up."""
BATCH = 64
"""Exchanges stored in one transaction, so that a burst costs one disk flush."""
GATHER_SECONDS = 0.5
"""An exchange waits so long for others, unless somebody waits for it: one that asks question after question
then pays for few transactions."""
RETRY_SECONDS = 5.0
STRUCTURE = 4
"""So many times `collect.max_chars` a conversation may take with all that is in it but text."""


@dataclass(frozen=True)
class CollectedExchange:
    """One answered request, as the API saw it.

    Attributes:
        messages: the conversation, without the answer.
        query: the last user message.
        finish_reason: only "stop" and "length" make an example; "tool_calls", "cancelled" and the
            like are recorded but not learned from.
        store: False when the request or the device's key opted out.
        internal: evaluation and the console's own traffic, which leaves no trace.
        with_tools: tools were called in it or before it, which is recorded but not learned from.
        task: what a front end says it asks this for, if it asks for itself (see `chores.py`); that is
            recorded but not learned from.
        forced: the answer had to have a form (JSON, a call of a tool), so it says nothing of how the model
            answers; the same.
    """

    completion_id: str
    messages: list[dict[str, Any]]
    query: str
    response: str
    finish_reason: str
    device: str | None
    model: str
    adapter: str | None
    prompt_tokens: int
    completion_tokens: int
    store: bool = True
    internal: bool = False
    source: str = "api"
    created: float = field(default_factory=time.time)
    with_tools: bool = False
    task: str = ""
    forced: bool = False
    request: str = field(default_factory=current_request)


COLLECTED = "collected"
OUTCOMES = (COLLECTED, "opted_out", "too_long", "disabled", "tools", "format", "chore", "empty", "rejected",
            "withdrawn", "judged", "corrected", "backlog", "failed")  # fmt: skip
"""What may become of an exchange: an example, or why not."""


class Collector:
    """Takes exchanges from request handlers and stores them from a thread of its own.

    Attributes:
        outcomes: how many exchanges ended how, since the start; see `OUTCOMES`.
    """

    def __init__(
        self, store: Store, config: Config, events: EventBus, *, retry: float = RETRY_SECONDS
    ) -> None:
        self._store = store
        self._config = config
        self._events = events
        self._retry = retry
        self._waiting: deque[CollectedExchange] = deque()
        self._condition = threading.Condition()
        self._taken = 0
        self._settled = 0
        self._wanted = 0
        self._stopping = False
        self._paused: str | None = None
        self._dropped = 0
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._thread = threading.Thread(target=self._work, name="collector", daemon=True)
        self._thread.start()

    @property
    def paused(self) -> str | None:
        """Why nothing can be stored at the moment; None when all is well."""
        return self._paused

    def collect(self, exchange: CollectedExchange) -> None:
        """Take an exchange; never waits for the disk and never raises."""
        if exchange.internal:
            return
        with self._condition:
            if self._stopping:
                return
            if len(self._waiting) >= BACKLOG:
                self._waiting.popleft()
                self._dropped += 1
                self.outcomes["backlog"] += 1
                self._settled += 1
            self._taken += 1
            self._waiting.append(exchange)
            self._condition.notify_all()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until what has been taken so far is stored; False when that takes longer."""
        with self._condition:
            goal = self._wanted = self._taken
            self._condition.notify_all()
            return self._condition.wait_for(lambda: self._settled >= goal, timeout)

    def stop(self) -> None:
        """Store what is waiting, as far as the disk allows, and end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join()
        if self._waiting:
            log.warning("%d exchanges could not be stored before stopping", len(self._waiting))

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                self._condition.wait_for(self._is_wanted, GATHER_SECONDS)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            left = self._stored(batch)
            with self._condition:
                self._settled += len(batch) - len(left)
                self._waiting.extendleft(reversed(left))
                self._condition.notify_all()
                if self._stopping and (left or not self._waiting):
                    return
                if left:
                    self._condition.wait_for(lambda: self._stopping, self._retry)

    def _is_wanted(self) -> bool:
        return self._stopping or self._settled < self._wanted or len(self._waiting) >= BATCH

    def _stored(self, batch: list[CollectedExchange]) -> list[CollectedExchange]:
        try:
            return self._store_batch(batch) if batch else []
        except Exception:  # what is told of it when it is stored reads from the disk, too
            log.exception("Collection met an error; it goes on")
            return []

    def _store_batch(self, batch: list[CollectedExchange]) -> list[CollectedExchange]:
        """Store exchanges; returns those to try again later, when the store can take something."""
        try:
            outcomes = self._write(batch)
        except ShammahError as error:
            if error.status < 500:
                return self._store_singly(batch, error)
            self._pause(error)
            return batch
        except Exception as error:
            return self._store_singly(batch, error)
        failpoint("collect.stored")
        self._resume()
        self.outcomes.update(outcomes)
        if collected := outcomes.count(COLLECTED):
            for _ in range(collected):
                log.debug("Auto-collected query/response for training")
            self._events.publish("example.collected", pending=self._store.examples.count("pending"))
        return []

    def _store_singly(self, batch: list[CollectedExchange], error: Exception) -> list[CollectedExchange]:
        # One exchange that cannot be stored must neither take its neighbours along nor come back.
        if len(batch) == 1:
            with about(request=batch[0].request):
                log.error("Completion %s could not be stored: %s", batch[0].completion_id, error)
            self.outcomes["failed"] += 1
            return []
        return [left for exchange in batch for left in self._store_batch([exchange])]

    def _write(self, batch: list[CollectedExchange]) -> list[str]:
        with self._store.transaction():
            return [self._write_one(exchange) for exchange in batch]

    def _write_one(self, exchange: CollectedExchange) -> str:
        # Texts that opted out, or are too long to learn from, are not kept: only that there was an answer.
        kept = exchange.store and self._fits(exchange)
        self._store.completions.record(
            id=exchange.completion_id,
            created=exchange.created,
            device=exchange.device,
            model=exchange.model,
            adapter=exchange.adapter,
            query=exchange.query if kept else "",
            response=exchange.response if kept else "",
            messages=exchange.messages if kept else [],
            finish_reason=exchange.finish_reason,
            prompt_tokens=exchange.prompt_tokens,
            completion_tokens=exchange.completion_tokens,
        )
        failpoint("collect.completion")
        if not kept:
            return "too_long" if exchange.store else "opted_out"
        if not self._config.collect.enabled:
            return "disabled"
        if (why := self._not_worth_learning(exchange)) is not None:
            return why
        said = NewExample(
            kind="automatic",
            query=exchange.query,
            response=exchange.response,
            target=exchange.response,
            weight=self._config.lora.normal_weight,
            messages=exchange.messages,
            finish_reason=cast(Literal["stop", "length"], exchange.finish_reason),
            device=exchange.device,
            source=exchange.source,
            completion_id=exchange.completion_id,
            giver=exchange.device,
        )
        collect = self._config.collect
        new = mask_example(said, collect.phone_region) if collect.mask_private else said
        self._store.examples.add(new, unmasked=said)
        return COLLECTED

    def _fits(self, exchange: CollectedExchange) -> bool:
        limit = self._config.collect.max_chars
        size = len(exchange.response) + sum(len(message_text(message)) for message in exchange.messages)
        if max(size, len(exchange.query)) > limit:
            return False
        # What calls of tools say, and a thousand empty messages, take room as well.
        return len(json.dumps(exchange.messages, ensure_ascii=False)) <= STRUCTURE * limit

    def _not_worth_learning(self, exchange: CollectedExchange) -> str | None:
        """Why not; None when it is."""
        examples = self._store.examples
        if exchange.with_tools or exchange.finish_reason not in ("stop", "length"):
            return "tools"
        if exchange.forced:
            return "format"
        if is_chore(exchange.messages, exchange.task):
            return "chore"
        if not exchange.query.strip() or not exchange.response.strip():
            return "empty"
        if examples.is_rejected(exchange.query, exchange.response, exchange.device):
            return "rejected"
        if exchange.adapter is not None and self._store.adapters.is_withdrawn(exchange.adapter):
            return "withdrawn"  # it was under way when the adapter was rolled back
        feedback = examples.feedback_on(
            exchange.completion_id, exchange.query, exchange.response, exchange.device
        )
        if feedback is not None:
            # The person was faster than this thread: their word on the exchange is in the queue.
            if feedback.completion_id is None:
                examples.update(feedback.id, completion_id=exchange.completion_id)
            return "judged"
        # Until a correction is learned the model goes on giving wrong answers, in ever new words.
        correction = examples.correction_for(exchange.query, exchange.messages, exchange.device)
        if correction is None or normalise(correction.target or "") == normalise(exchange.response):
            return None
        return "corrected"

    def _pause(self, error: ShammahError) -> None:
        if self._paused is None:
            self._paused = error.message
            log.warning("Collection pauses: %s", error.message)
            self._events.publish(
                "collect.paused", reason="disk full" if isinstance(error, StorageFull) else error.message
            )

    def _resume(self) -> None:
        if self._paused is not None:
            self._paused = None
            log.info("Collection goes on; %d exchanges were given up meanwhile", self._dropped)
            self._dropped = 0
            self._events.publish("collect.resumed")
