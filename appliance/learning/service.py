"""The learning room's facade: when runs start, which one is going on, and dropped-in adapters."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.adapters.registry import Registry
from appliance.adapters.watcher import AdapterWatcher
from appliance.config import Config
from appliance.engine.engine import Engine
from appliance.errors import Conflict, Pinned, ShammahError
from appliance.events import Event, EventBus
from appliance.failpoints import failpoint
from appliance.home import Home
from appliance.learning.batch import read_frozen
from appliance.learning.canary import Canary
from appliance.learning.dropped import DroppedIn
from appliance.learning.estimate import Estimate
from appliance.learning.faults import Fault
from appliance.learning.forget import Foreseen, Forgotten, Wish, finish_forgetting, foresee, forget
from appliance.learning.guard import Deferral, check_resources
from appliance.learning.intake import take_in
from appliance.learning.pin import Pin, load_pin
from appliance.learning.probation import Probation, load_probation
from appliance.learning.progress import RunProgress
from appliance.learning.retry import again, load_retry
from appliance.learning.run import Runner
from appliance.learning.scheduler import Due, Scheduler, find_due
from appliance.learning.switch import APPLIANCE, Switch
from appliance.learning.trainer import EXAMPLES
from appliance.learning.watch import Watch
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.runs import Run, Trigger

logger = logging.getLogger(__name__)

RECOVER_SECONDS = 30.0
"""A run that could not be finished (a full disk) is taken up again after this."""

ENDED = frozenset({"promoted", "accepted", "rejected", "failed", "cancelled", "parked"})


@dataclass(frozen=True)
class LearningStatus:
    """Where learning stands.

    Attributes:
        enabled: runs start by themselves.
        pending: examples in the queue.
        threshold: how many start a run.
        timeout_at: when the queue is trained however short it is; None when it is empty.
        run: the run going on.
        estimate: what a run on the queue would take, told from earlier ones; None when nothing is known.
        deferral: why a run that is due has not started.
        retry_at: when a batch whose run did not succeed is tried again.
        last_run: the last one that ended.
        review: critiques that wait for a person.
        probation: the adapter in service that has to prove itself, if it has to.
        pin: set while only a person switches.
        judging: the adapter, dropped in or uploaded, that the gate is looking at.
    """

    enabled: bool
    pending: int
    threshold: int
    timeout_at: float | None
    run: RunProgress | None
    estimate: Estimate | None
    deferral: Deferral | None
    retry_at: float | None
    last_run: Run | None
    review: int
    probation: Probation | None
    pin: Pin | None
    judging: str | None


class Learning:
    """Owns the learning thread, the scheduler and the watcher.

    One thread does the slow things, one after the other: runs, and the gate for dropped-in files.
    """

    def __init__(
        self,
        home: Home,
        config: Config,
        store: Store,
        registry: Registry,
        bundle: Bundle,
        engine: Engine,
        switch: Switch,
        events: EventBus,
        *,
        trainer: Sequence[str] | None = None,
    ) -> None:
        """Put it together. What runs here yields to the requests of `engine`."""
        self._home = home
        self._config = config
        self._store = store
        self._registry = registry
        self._manifest = bundle.manifest
        self._switch = switch
        self._events = events
        self.canary = Canary(config, store, engine, events)
        self._runner = Runner(
            home,
            config,
            store,
            registry,
            bundle,
            self._promote,
            events,
            trainer,
            busy=lambda: engine.busy,
            try_out=self._try_out,
        )
        self._dropped = DroppedIn(home, config, store, registry, bundle, events, lambda: engine.busy)
        self._watch = Watch(config, store, switch, engine, events)
        self._scheduler = Scheduler(store, self._check)
        self._lock = threading.Lock()
        self._busy = True  # until what a crash left has been dealt with
        self._asked = False
        self._recover_after = 0.0
        self._deferral: Deferral | None = None
        self._wait = 0.0  # the end of the deferral by a clock that is not set
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learning")
        self._stop = asyncio.Event()
        self._watching: list[asyncio.Task[None]] = []
        self._unlisten: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Take up what a crash left, then watch queue and directory."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._finish_forgetting)
        earlier = await asyncio.to_thread(self._dropped.reconcile)
        self._submit(self._recover)
        self._scheduler.start()
        self._unlisten = self._events.listen(self._hear)
        watcher = AdapterWatcher(self._registry, self.consider, earlier=earlier)
        self._watching = [
            asyncio.create_task(watcher.run(self._stop)),
            asyncio.create_task(self._watch.run()),
        ]

    def close(self) -> None:
        """Begin to stop: the trainer of the run going on saves what it has done. Does not block."""
        self._runner.close()

    async def stop(self) -> None:
        """Stop the run going on, if any; the next start goes on with it."""
        self._stop.set()
        self._unlisten()
        self._watch.stop()
        self._runner.close()
        self._dropped.close()
        await asyncio.to_thread(self._scheduler.stop)
        # The loop goes on meanwhile: a switch under way ends first.
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
        for task in self._watching:
            await task

    def request(self, trigger: Trigger = "person") -> Run:
        """Start a run on all that is pending.

        Raises:
            Conflict: one is going on; or the queue is empty; or the box has nothing to spare now, and it
                starts by itself as soon as it has.
        """
        with self._lock:
            self._refuse_if_busy(".")
            if not self._store.examples.count("pending"):
                raise Conflict("The queue is empty: there is nothing to train on.")
            deferral = self._shortage(person=True)
            if deferral is not None:
                self._asked = True
                self._defer(deferral)
                raise Conflict(
                    f"Not now: {deferral.reason} The run starts by itself when that has passed.",
                    code="deferred",
                )
            return self._begin(Due(trigger, 0))

    def retry(self, run_id: str) -> Run:
        """Start a run on the examples of one that did not succeed, as far as they are pending or parked.

        Raises:
            NotFound: there is no such run.
            Conflict: it is not one that did not succeed; one is going on; or the box has nothing to
                spare now.
            InvalidRequest: none of its examples waits any more.
        """
        with self._lock:
            self._refuse_if_busy(".")
            run = self._store.runs.get(run_id)
            frozen = read_frozen(self._home.runs / run.id / EXAMPLES)
            retry = again(self._store, run, [item.id for item in frozen if item.split != "replay"])
            deferral = self._shortage(person=True)
            if deferral is not None:
                raise Conflict(
                    f"Not now: {deferral.reason} Try it again when that has passed.", code="deferred"
                )
            return self._begin(Due("person", len(retry.ids), retry))

    def cancel(self, run_id: str | None = None) -> None:
        """Stop the run going on; its examples are pending again, and wait for one batch timeout.

        Args:
            run_id: which one is meant; any by default.

        Raises:
            Conflict: none is going on, or another.
        """
        with self._lock:
            progress = self._runner.progress
            if progress is None and not self._asked:
                raise Conflict("No run is going on.")
            if run_id is not None and (progress is None or progress.id != run_id):
                raise Conflict(f"{run_id} is not going on any more.")
            self._asked = False
            self._runner.cancel()

    @property
    def progress(self) -> RunProgress | None:
        """Of the run going on."""
        return self._runner.progress

    def status(self) -> LearningStatus:
        """Where learning stands now."""
        examples, lora = self._store.examples, self._config.lora
        oldest, pending = examples.oldest_pending(), examples.count("pending")
        retry = load_retry(self._store.settings)
        last = next((run for run in self._store.runs.list(limit=10) if run.state in ENDED), None)
        return LearningStatus(
            enabled=lora.enabled,
            pending=pending,
            threshold=lora.auto_train_threshold,
            timeout_at=oldest + lora.batch_timeout_minutes * 60 if lora.enabled and oldest else None,
            run=self._runner.progress,
            estimate=self._runner.estimate(pending) if pending else None,
            deferral=self._deferral,
            retry_at=retry.not_before if retry else None,
            last_run=last,
            review=examples.review_count(),
            probation=load_probation(self._store.settings),
            pin=load_pin(self._store.settings),
            judging=self._dropped.judging,
        )

    def take_in(self, file: Path, actor: str) -> str:
        """Add an adapter that a person gives; the gate then looks at it as at one dropped in. Blocking.

        Args:
            file: on the file system of the adapters; it is moved. Its name is what the adapter is called,
                if that can be had.
            actor: who gives it.

        Returns:
            What it is called.

        Raises:
            AdapterInvalid: it is damaged, or made for something else.
            Conflict: it is there already, or it learned from what has been forgotten.
            StorageFull: there is no room for it.
        """
        name = take_in(self._store, self._registry, self._manifest, file, actor)
        self._events.publish("adapter.uploaded", adapter=name, actor=actor)
        return name

    async def remove(self, name: str, actor: str) -> None:
        """Delete an adapter's file; what is known of it stays, as history.

        Raises:
            NotFound: there is no such file.
            Conflict: it is in service, or a run or the gate needs it.
        """
        await self._switch.remove(name, actor, self._unused)

    @contextmanager
    def _unused(self, name: str) -> Iterator[None]:
        """Nothing here needs that adapter, and no run begins meanwhile."""
        with self._lock:
            for run in self._store.runs.unfinished():
                if name in (run.adapter, run.parent):
                    what = "made it" if name == run.adapter else "grows from it"
                    raise Conflict(
                        f"{run.id} {what}, and has not ended. Wait for it or stop it, then delete {name}.",
                        param="name",
                    )
            if name == self._dropped.judging:
                raise Conflict(f"{name} is being checked. Delete it when that has ended.", param="name")
            yield

    async def forget(self, wish: Wish, actor: str) -> Forgotten:
        """Forget examples, and on request what was learned from them; see `learning/forget.py`.

        What has begun is finished even if the caller is cancelled.

        Raises:
            NotFound: there is no such example or device.
            Conflict: a run is going on.
            StorageFull: the disk is full; the next call or start goes on.
        """
        return await asyncio.shield(asyncio.ensure_future(self._forget(wish, actor)))

    def foresee(self, wish: Wish) -> Foreseen:
        """What `forget` would do, for the owner to agree to. Blocking.

        Raises:
            NotFound: there is no such example or device.
        """
        return foresee(self._home, self._store, wish, self._switch.serving)

    async def _forget(self, wish: Wish, actor: str) -> Forgotten:
        async def step_back(adapters: Collection[str]) -> str | None:
            return await self._switch.rollback(actor, reason="to forget what it learned", skip=adapters)

        await asyncio.to_thread(self._hold_runs)
        try:
            done = await forget(
                self._home,
                self._store,
                wish,
                serving=self._switch.serving,
                step_back=step_back,
                actor=actor,
            )
        finally:
            self._idle()
        self._events.publish("example.forgotten", examples=len(done.examples), requeued=done.requeued)
        if done.retrained:
            self._events.publish("adapter.forgotten", adapters=list(done.adapters))
        return done

    def _hold_runs(self) -> None:
        """Let no run begin until `_idle`."""
        with self._lock:
            self._refuse_if_busy(
                ", and may hold what is to be forgotten: try again when it has ended, or cancel it first."
            )
            self._busy = True

    def _refuse_if_busy(self, more: str) -> None:
        if self._busy:
            progress = self._runner.progress
            raise Conflict(
                f"{progress.id} is going on{more}" if progress else "A run is just ending; try again."
            )

    def _finish_forgetting(self) -> None:
        try:
            finish_forgetting(self._home, self._store)
        except (ShammahError, OSError):
            logger.exception(
                "What is to be forgotten could not be taken out of all files; next start tries again"
            )

    async def consider(self, path: Path, fresh: bool = True) -> None:
        """Deal with an adapter file that appeared, changed or vanished.

        A new one goes through the gate like any other; if it passes it is put in service. Files that
        were found at the start (`fresh` false) are judged too, but only a person puts them in service.
        """
        if self._stop.is_set():
            return
        if not path.exists():
            if await asyncio.to_thread(self._dropped.vanished, path):
                logger.warning("%s was removed while in service", path.name)
                await self._switch.rollback(APPLIANCE, reason="its file was removed")
            return
        if not await asyncio.to_thread(self._dropped.known, path):
            future = self._submit(lambda: self._judge_dropped(path, fresh))
            await asyncio.wrap_future(future)

    # -- in the learning thread ---------------------------------------------------------------

    def _judge_dropped(self, path: Path, fresh: bool) -> None:
        fingerprint = self._dropped.judge(path, self._switch.serving)
        if fingerprint is not None and fresh:
            try:
                self._promote(self._dropped.name(path), "dropped into the directory", fingerprint)
            except Pinned as pinned:
                logger.info("%s", pinned.message)

    def _carry_out(self, run: Run) -> None:
        try:
            self._runner.carry_out(run)
        finally:
            self._idle()

    def _recover(self) -> None:
        try:
            failpoint("train.recovering")
            self._runner.recover()
        finally:
            self._idle()

    def _idle(self) -> None:
        with self._lock:
            self._busy = False
            self._recover_after = time.monotonic() + RECOVER_SECONDS
        if not self._stop.is_set():
            self._scheduler.nudge()

    def _promote(self, name: str, reason: str, fingerprint: tuple[int, ...] | None) -> None:
        assert self._loop is not None
        promotion = self._switch.promote(
            name,
            reason=reason,
            actor=APPLIANCE,
            fingerprint=fingerprint,
            probation_minutes=self._config.gate.probation_minutes,
        )
        asyncio.run_coroutine_threadsafe(promotion, self._loop).result()

    def _try_out(
        self, name: str, before: str | None, over: Callable[[], bool], report: Callable[[int], None]
    ) -> Fault | None:
        assert self._loop is not None
        trial = self.canary.run(self._registry.load(name), before, over, report)
        return asyncio.run_coroutine_threadsafe(trial, self._loop).result()

    # -- when ---------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """Other settings may mean that a run is due, or that what deferred it has passed."""
        if event.name == "settings.changed":
            self._wait = 0.0
            self._scheduler.nudge()

    def _check(self) -> None:
        """Start what is due. Called often."""
        with self._lock:
            if self._busy or self._stop.is_set():
                return
            if self._store.runs.unfinished():
                if time.monotonic() >= self._recover_after:
                    self._busy = True
                    self._submit(self._recover)
                return
            now = time.time()
            due = self._due(now)
            if due is None:
                self._deferral = None
                return
            if self._deferral is not None and now < self._deferral.next_try and time.monotonic() < self._wait:
                return
            person = due.trigger == "person"
            deferral = self._shortage(person)
            if deferral is not None:
                self._defer(deferral)
                return
            if due.trigger == "threshold":
                logger.info("Batch threshold reached, triggering training count=%d", due.count)
            elif due.trigger == "timeout":
                logger.info("Batch timeout reached, triggering training count=%d", due.count)
            try:
                self._begin(due)
            except ShammahError as error:
                logger.warning("No run: %s", error)
                self._put_off(Deferral(error.message, now + self._config.resources.retry_minutes * 60))

    def _due(self, now: float) -> Due | None:
        examples = self._store.examples
        pending = examples.count("pending")
        if self._asked and pending:
            return Due("person", pending)
        if not self._config.lora.enabled:
            return None
        retry = load_retry(self._store.settings)
        if retry is not None and retry.ids and not retry.waits(now):
            # Some of the batch may be superseded by now, or taken out by a person.
            left = {example.id for example in examples.pending()} & set(retry.ids)
            retry = replace(retry, ids=tuple(sorted(left)))
        return find_due(
            self._config.lora, pending=pending, oldest=examples.oldest_pending(), retry=retry, now=now
        )

    def _begin(self, due: Due) -> Run:
        run = self._runner.begin(due.trigger, due.retry)
        self._busy = True
        self._asked = False
        self._deferral = None
        self._submit(lambda: self._carry_out(run))
        return run

    def _shortage(self, person: bool) -> Deferral | None:
        needs = self._runner.memory_mb
        return check_resources(self._config.resources, self._home.root, person=person, needs_mb=needs)

    def _defer(self, deferral: Deferral) -> None:
        if self._deferral is None or self._deferral.reason != deferral.reason:
            logger.info("Training deferred: %s", deferral.reason)
            told = {"reason": deferral.reason, "next_try": deferral.next_try, "causes": list(deferral.causes)}
            self._events.publish("run.deferred", **told)
        self._put_off(deferral)

    def _put_off(self, deferral: Deferral) -> None:
        self._deferral = deferral
        self._wait = time.monotonic() + deferral.next_try - time.time()

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        def logged() -> None:
            try:
                work()
            except Exception:
                logger.exception("The learning thread met an error")

        return self._thread.submit(logged)
