"""The engine's facade: requests in, deltas out, adapters swapped under way. No HTTP, no SQL.

One thread owns the batch and steps it; ONNX Runtime releases the interpreter lock while it computes.
Everything else talks to that thread through a lock-guarded queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from appliance.adapters.file import Adapter
from appliance.engine.batch import Batch
from appliance.engine.cache import KVCache
from appliance.engine.offline import probe
from appliance.engine.prefixes import PrefixCache
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sequence import Sequence
from appliance.engine.session import Session, weights_of
from appliance.engine.timings import Timings
from appliance.errors import Busy, ContextOverflow, InvalidRequest, Unavailable
from appliance.failpoints import failpoint
from appliance.hardware import default_threads
from appliance.logs import about
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

logger = logging.getLogger(__name__)

PROBE_CAPACITY = 64
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class EngineStats:
    """Counters since start and the present load.

    Attributes:
        active: requests that hold a slot.
        waiting: requests that wait for one.
        slots: how many can run at once.
        requests: requests accepted.
        prompt_tokens: prompt tokens computed.
        generated_tokens: tokens generated.
        busy_seconds: time spent stepping.
        swaps: adapters switched to.
        cached_tokens: prompt tokens that were not computed, for they had been before.
        drafted_tokens: tokens of answers that were guessed.
        accepted_tokens: how many of these were right.
        stalled_seconds: how long the present step has been going on, 0 when idle.
    """

    active: int
    waiting: int
    slots: int
    requests: int
    prompt_tokens: int
    generated_tokens: int
    busy_seconds: float
    swaps: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    stalled_seconds: float


class Generation:
    """An answer under way: an async iterator of deltas that can be cancelled."""

    def __init__(self, sequence: Sequence, deltas: asyncio.Queue[Delta | Exception]) -> None:
        self._sequence = sequence
        self._deltas = deltas
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        delta = await self._deltas.get()
        if isinstance(delta, Exception):
            self._ended = True
            raise delta
        self._ended = delta.finish_reason is not None
        return delta

    async def aclose(self) -> None:
        """Stop generating within a step; harmless after the end. Goes with `contextlib.aclosing`."""
        self._sequence.cancelled = True


class Engine:
    """Serves one bundle: with the adapter in service, or with another that a request names."""

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, config: ModelConfig, adapter: Adapter | None = None
    ) -> None:
        """Build the first session; `start` begins to serve.

        Raises:
            Unavailable: the session cannot be built.
        """
        self.bundle = bundle
        self.context_length = min(config.context_length or 10**9, bundle.manifest.context_length)
        self.tokenizer = tokenizer
        self._queue_limit = config.queue
        self._threads = config.threads or default_threads()
        self._cache = KVCache(bundle.manifest, config.slots, self.context_length)
        self._batch = Batch(
            self._cache,
            PrefixCache(self._cache, config.prefix_cache_mb << 20),
            prefill_chunk=config.prefill_chunk,
            prefill_beside=config.prefill_beside,
            drafts=config.drafts,
        )
        self._extra: OrderedDict[str, Session] = OrderedDict()
        self._extra_limit = config.extra_adapters
        self._session = Session(bundle, adapter, self._cache, threads=self._threads)
        self._wake = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._pings: list[Callable[[], None]] = []
        self._running = False
        self._thread: threading.Thread | None = None
        self._swapping = asyncio.Lock()
        self._step_started = 0.0
        self._requests = self._swaps = 0
        self._busy_seconds = 0.0
        self._retired: list[weakref.ref[Session]] = []

    @property
    def adapter(self) -> str | None:
        """Name of the adapter new requests get, None for base."""
        return self._session.adapter

    @property
    def weights(self) -> Session:
        """What new requests are answered by."""
        return self._session

    @property
    def timings(self) -> Timings:
        """How long things take."""
        return self._batch.timings

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._running and self._thread is not None and self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether requests are active or wait."""
        return bool(self._waiting) or self._batch.active > 0

    def start(self) -> None:
        """Begin to serve."""
        self._running = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def failures(self, weights: str) -> int:
        """How often these weights (an adapter's hash, or "base") gave no answer since the start."""
        return self._batch.failures[weights]

    def stop(self) -> None:
        """Stop after the present step; unfinished requests end with `Unavailable`."""
        with self._wake:
            self._running = False
            self._wake.notify()
        if self._thread:
            self._thread.join()

    async def ping(self) -> None:
        """Return when the engine's thread has answered: at once when idle, else after the present step.

        Raises:
            Unavailable: the engine is not running.
        """
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()

        def answer() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may have closed
                loop.call_soon_threadsafe(answered.set)

        with self._wake:
            if not self.alive:
                raise Unavailable("The engine is not running.")
            self._pings.append(answer)
            self._wake.notify()
        await answered.wait()

    def stats(self) -> EngineStats:
        """Counters and load, for metrics and the console."""
        started, work = self._step_started, self._batch.work
        return EngineStats(
            active=self._batch.active,
            waiting=len(self._waiting),
            slots=self._cache.rows,
            requests=self._requests,
            prompt_tokens=work.prompt_tokens,
            generated_tokens=work.generated_tokens,
            busy_seconds=self._busy_seconds,
            swaps=self._swaps,
            cached_tokens=work.cached_tokens,
            drafted_tokens=work.drafted_tokens,
            accepted_tokens=work.accepted_tokens,
            stalled_seconds=time.monotonic() - started if started else 0.0,
        )

    def generate(self, request: GenerationRequest, weights: Session | None = None) -> Generation:
        """Queue a request at once; iterate for its deltas; `aclose` to be rid of it within a step.

        Args:
            request: what to answer.
            weights: what `prepare` gave, to be answered by; otherwise by what is in service at its turn.

        Raises:
            InvalidRequest: the prompt is empty.
            ContextOverflow: the prompt leaves no room for an answer.
            Busy: too many requests wait already, or too many of this client.
            Unavailable: the engine is not running.
        """
        room = self.context_length - len(request.prompt)
        if not request.prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        if room < 1:
            raise ContextOverflow(
                f"This model's context is {self.context_length} tokens, but the prompt has "
                f"{len(request.prompt)}. Send a shorter prompt.",
                param="messages",
            )
        failpoint("engine.queue")
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        def emit(delta: Delta | Exception) -> None:
            # The loop can close between a check and the call: whoever listened is gone then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        sequence = Sequence(request, self.tokenizer, min(request.max_tokens, room), emit)
        sequence.session = weights
        with self._wake:
            if not self._running:
                raise Unavailable("The engine is not running.")
            # Each step fills free slots first, so whoever still waits then has none to hope for.
            if len(self._waiting) >= self._queue_limit + self._cache.rows - self._batch.active:
                raise Busy("All slots and waiting places are taken. Retry in a few seconds.")
            # A part of the places is left to others, however much one client sends.
            mine = sum(waiting.request.client == request.client for waiting in self._waiting)
            if mine >= self._queue_limit - self._queue_limit // 4 + self._cache.rows - self._batch.active:
                raise Busy("Too many requests of this client wait already. Retry in a few seconds.")
            self._waiting.append(sequence)
            self._requests += request.score_from is None
            self._wake.notify()
        return Generation(sequence, deltas)

    def at_hand(self, weights: str) -> Session | None:
        """The session with these weights (an adapter's hash, or "base"), if there is one."""
        if self._session.weights == weights:
            return self._session
        if weights in self._extra:
            self._extra.move_to_end(weights)  # the one unused for longest goes first
        return self._extra.get(weights)

    def lingering(self) -> int:
        """How many sessions that were replaced are still there, for requests that they answer."""
        return sum(session() is not None for session in self._retired)

    async def prepare(self, adapter: Adapter | None) -> Session:
        """Weights for single requests, built if they are not at hand; they may be answered side by side.

        Args:
            adapter: which ones, None for base.

        Raises:
            Unavailable: they cannot be built, or give non-finite output.
        """
        async with self._swapping:
            session = self.at_hand(weights_of(adapter))
            if session is None:
                session = await asyncio.to_thread(self._build, adapter, None)
                self._extra[session.weights] = session
                while len(self._extra) > self._extra_limit:
                    self._retired.append(weakref.ref(self._extra.popitem(last=False)[1]))
            return session

    async def swap(self, adapter: Adapter | None, expected: tuple[int, ...] | None = None) -> None:
        """Serve new requests with another adapter; running ones finish as they began.

        The new session is built and probed beside the old one; until that has worked nothing changes.

        Args:
            adapter: what to serve, None for base.
            expected: the probe's tokens as the gate saw them, to be met exactly.

        Raises:
            Unavailable: it cannot be built, gives non-finite output, or is not what the gate tried.
        """
        began = time.monotonic()
        async with self._swapping:
            session = self._extra.pop(weights_of(adapter), None)
            if session is None or expected is not None:
                session = await asyncio.to_thread(self._build, adapter, expected)
            with self._wake:
                self._retired.append(weakref.ref(self._session))
                self._session = session
                self._swaps += 1
            logger.info("Serving with %s", session.adapter or "base")
            self.timings.switch.observe(time.monotonic() - began)
            del session  # or this frame would keep it alive through the next swap
            await asyncio.to_thread(self._reap)

    def _build(self, adapter: Adapter | None, expected: tuple[int, ...] | None) -> Session:
        scratch = KVCache(self.bundle.manifest, 1, PROBE_CAPACITY)
        session = Session(self.bundle, adapter, scratch, threads=self._threads)
        tokens = probe(session, self.tokenizer)
        if expected is not None and tokens != expected:
            name = adapter.name if adapter else "base"
            raise Unavailable(f"{name} does not answer here as it did in the gate; it was not switched to.")
        session.use(self._cache)
        return session

    def _reap(self) -> None:
        """Hand the memory of replaced sessions back to the system once their last request has ended."""
        alive = [session for session in self._retired if session() is not None]
        if len(alive) < len(self._retired):
            self._retired = alive
            _LIBC.malloc_trim(0)

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._running and not (self._waiting or self._batch.active or self._pings):
                    self._wake.wait()
                if not self._running:
                    break
                pings, self._pings = self._pings, []
                self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
                while self._waiting and not self._batch.full:
                    self._admit()
            for answer in pings:
                answer()
            if self._batch.active:
                self._step()
            if self._retired:
                self._reap()
        with self._wake:
            orphans = [*self._batch.abandon(), *self._waiting]
            self._waiting.clear()
        self._fail(orphans, Unavailable("The box is shutting down."))

    def _admit(self) -> None:
        """Give a slot to the request that has waited longest, of the client that has the fewest."""
        held = Counter(self._batch.clients())
        place = min(range(len(self._waiting)), key=lambda at: (held[self._waiting[at].request.client], at))
        sequence = self._waiting[place]
        del self._waiting[place]
        self._batch.join(sequence, sequence.session or self._session)

    def _step(self) -> None:
        self._step_started = started = time.monotonic()
        try:
            failpoint("engine.step")
            self._batch.step()
        except Exception:
            lost = self._batch.abandon()
            of = " ".join(sequence.asked_by for sequence in lost if sequence.asked_by) or "nobody's"
            logger.exception("A step failed; its requests end with an error: %s", of)
            self._fail(lost, Unavailable("The model failed on this request."))
        finally:
            self._step_started = 0.0
            self._busy_seconds += time.monotonic() - started

    def _fail(self, sequences: list[Sequence], error: Unavailable) -> None:
        for sequence in sequences:
            with about(request=sequence.asked_by):
                logger.warning("No answer: %s", error)
            sequence.emit(error)
