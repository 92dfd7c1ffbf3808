"""A learning run from queue to verdict, such that it can be cut off at any line.

    queued ─▶ training ─▶ gating ─▶ promoted | accepted | rejected
                 └────────┴──▶ failed | cancelled | parked

What is known is in the store before the next thing happens, so `recover` can tell where a run was
cut off. Training goes on from its checkpoint and the gate judges again, if all is as it was and this
has not been tried too often; otherwise the run has died and its examples go back (see `retry.py`).
After the verdict the run is finished forward: its adapter is put in place and in service, its
examples are used. If what is in service is pinned, the adapter is left waiting, accepted, and the next run
grows from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from appliance.adapters.file import read_adapter
from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.errors import (
    AdapterInvalid,
    Conflict,
    NotFound,
    Pinned,
    ShammahError,
    Unavailable,
)
from appliance.events import EventBus
from appliance.failpoints import failpoint
from appliance.files import in_words
from appliance.home import Home
from appliance.learning.backend import decided, trainer_program
from appliance.learning.batch import freeze_batch
from appliance.learning.child import (
    Child,
    ChildFailed,
    ChildKilled,
    ChildStopped,
    ChildTooLarge,
    ChildTooSlow,
    kill_orphans,
)
from appliance.learning.estimate import Estimate, Pace, gate_seconds, pace, recipe
from appliance.learning.faults import Fault
from appliance.learning.judge import Judge
from appliance.learning.pin import load_pin
from appliance.learning.progress import RunProgress, Tracker, Watch
from appliance.learning.replay import ancestor, count_new, past, start
from appliance.learning.resumption import Resumption, was_paused
from appliance.learning.retry import (
    MEMORY,
    TIME,
    Retry,
    adjusted,
    end_run,
    end_stopped,
    end_untrained,
    give_back,
    load_retry,
    save_retry,
)
from appliance.learning.selection import Selection, describe, select
from appliance.learning.trainer import (
    CANDIDATE,
    EXAMPLES,
    Trainer,
    discard,
    load_settings,
    prepare,
)
from appliance.learning.yielding import Yielding
from appliance.logs import about
from appliance.model.bundle import Bundle
from appliance.sections import TrainConfig
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.runs import Run, Trigger

logger = logging.getLogger(__name__)

RUNS_READ = 20
"""Runs that are looked through for how long one takes."""
SAVING_SECONDS = 3.0
"""What a trainer has for a last checkpoint when the box stops; answers are finished meanwhile."""
BATCH_LIMIT = 2000
"""Examples a run takes at most; the others wait for the next."""

DISPUTED = "Somebody else was taught another answer to this before. Which one is right?"
"""Note of an example that contradicts another device's, or the owner's: see `set_disputes_aside`."""

Promote = Callable[[str, str, "tuple[int, ...] | None"], None]
"""`promote(name, reason, fingerprint)`: blocks until the adapter is in service, or raises."""
TryOut = Callable[[str, "str | None", Callable[[], bool], Callable[[int], None]], "Fault | None"]
"""`try_out(name, before, over, report)`: blocks for the length of the canary; see `canary.py`."""


class _NothingToTrain(Exception):
    """The selection left nothing; its text says why."""


class Runner:
    """Carries out runs, one at a time."""

    def __init__(
        self,
        home: Home,
        config: Config,
        store: Store,
        registry: Registry,
        bundle: Bundle,
        promote: Promote,
        events: EventBus,
        trainer: Sequence[str] | None = None,
        *,
        busy: Callable[[], bool] = lambda: False,
        try_out: TryOut,
    ) -> None:
        """`trainer`: a program instead of the backend's, for tests. It yields to `busy` requests."""
        self._home = home
        self._config = config
        self._store = store
        self._registry = registry
        self._bundle = bundle
        self._promote = promote
        self._events = events
        self._trainer = trainer
        self._try_out = try_out
        self._yielding = Yielding(busy, config.resources.busy_share)
        self._resumption = Resumption(home, config, store, registry, events)
        self._tracker = Tracker(events)
        self._child = Child()
        self._cancelled = False
        self._closing = False

    @property
    def progress(self) -> RunProgress | None:
        """Of the run going on."""
        return self._tracker.now

    # -- from outside -------------------------------------------------------------------------

    def begin(self, trigger: Trigger, retry: Retry | None = None) -> Run:
        """Create a run and give it its examples, in one step.

        Args:
            trigger: what caused it.
            retry: the batch to try again, parked ones included; otherwise all that is pending.

        Raises:
            Unavailable: the trainer's environment is missing, or the box is shutting down.
            Conflict: there is nothing to train on, or another run has not ended.
        """
        if self._closing:
            raise Unavailable("The box is shutting down.")
        if self._trainer is None:
            trainer_program(self._settings())
        if retry is None:
            ids = [example.id for example in self._store.examples.pending(BATCH_LIMIT)]
        else:
            ids = [*retry.ids[:BATCH_LIMIT]]
        if not ids:
            raise Conflict("The queue is empty: there is nothing to train on.")
        with self._store.transaction():
            for other in self._store.runs.unfinished():
                raise Conflict(f"{other.id} was cut off and is ended first; try again in a minute.")
            attempt = retry.attempt if retry else 1
            run = self._store.runs.create(trigger, len(ids), self._start(), attempt)
            held = self._store.examples.hold(run.id, ids)
            if not held:
                raise Conflict("The queue changed just now; try again.")
            run = self._store.runs.update(run.id, examples=len(held))
            if retry is not None:
                save_retry(self._store.settings, retry)  # what failed decides the settings
                if retry.run is not None:
                    run = self._store.runs.update(run.id, metrics={"retry_of": retry.run})
        failpoint("train.begun")
        self._new_child()
        self._tracker.enter(run.id, "preparing")
        self._events.publish(
            "run.started", run=run.id, trigger=trigger, examples=run.examples, attempt=attempt
        )
        return run

    def estimate(self, examples: int) -> Estimate | None:
        """What a run on so many new examples would take; None before the first run of this recipe."""
        settings = self._settings()
        known = self._pace(settings)
        if known is None:
            return None
        repeated = past(self._store, self._start()).count(examples, 0, settings)
        return known.estimate(examples + repeated)

    @property
    def memory_mb(self) -> float:
        """What the next run will need, whatever it trains on; 0 before the first of this recipe."""
        known = self._pace(self._settings())
        return known.memory_mb if known else 0.0

    def carry_out(self, run: Run) -> Run:
        """Train, judge, and promote or reject, from where it is. Never raises for what a run may meet."""
        with about(request="", run=run.id):  # who asked for it has been answered long ago
            return self._carry_out(run)

    def _carry_out(self, run: Run) -> Run:
        try:
            try:
                if run.state == "queued":
                    run = self._prepare(run)
                if run.state == "training":
                    run = self._train(run)
                run = self._settle(run, self._judge(run))
            except _NothingToTrain as nothing:
                run = end_untrained(self._store, run, str(nothing))
                self._tell(run)
                return run
            except ChildStopped:
                return self._stopped(run)
            except (ChildTooLarge, ChildKilled) as error:
                return self._give_back(run, "failed", str(error), [MEMORY])
            except ChildTooSlow as error:
                return self._give_back(run, "failed", str(error), [TIME])
            except ChildFailed as error:
                return self._give_back(run, "failed", str(error))
            except Exception as error:
                logger.exception("%s failed", run.id)
                return self._give_back(run, "failed", _reason(error))
            return self._conclude(run)
        except Exception:
            # Its outcome could not be stored (a full disk). The run stays unfinished in the store,
            # and `recover` takes it up when there is room again.
            logger.exception("%s could not be ended; it is taken up again later", run.id)
            return run
        finally:
            self._tracker.leave()

    def recover(self) -> list[Run]:
        """Finish, one way or the other, the runs that were cut off. Only while none is going on."""
        done = []
        for run in _each_named(self._store.runs.unfinished()):
            if orphans := kill_orphans(self._directory(run)):
                logger.warning("Killed %d program(s) that a run cut off had left behind", orphans)
            if not was_paused(run):
                logger.warning("%s was cut off while %s", run.id, run.state)
            self._new_child()
            try:
                if run.adapter is not None:
                    done.append(self._conclude(run))
                elif (obstacle := self._resumption.obstacle(run)) is not None:
                    paused = was_paused(run)
                    how = "stopped with the box" if paused else "cut off (power, kill or crash)"
                    done.append(self._give_back(run, "failed", f"It was {how}{obstacle}.", again=paused))
                else:
                    self._tracker.enter(run.id, "preparing")
                    done.append(self.carry_out(self._store.runs.get(run.id)))
            except Exception as error:
                logger.exception("%s could not be finished", run.id)
                if run.adapter is None or run.adapter == self._registry.current():
                    continue  # taken up again later: what is in service has been learned
                self._store.adapters.set_state(run.adapter, "rejected")
                done.append(self._give_back(run, "failed", _reason(error)))
            finally:
                self._tracker.leave()
        self._resumption.sweep()
        return done

    def cancel(self) -> None:
        """Stop the run going on; it ends as cancelled. Too late once its adapter is being switched to."""
        self._cancelled = True
        self._child.stop()

    def close(self) -> None:
        """Stop the run going on because the box shuts down: the next start goes on. Does not block."""
        self._closing = True
        self._child.stop(SAVING_SECONDS)

    # -- the steps ----------------------------------------------------------------------------

    def _prepare(self, run: Run) -> Run:
        """Decide what the run trains on and how, and keep that for its whole life."""
        directory = self._directory(run)
        directory.mkdir(mode=0o700, exist_ok=True)
        failpoint("train.directory")
        retry = load_retry(self._store.settings)
        settings = adjusted(self._settings(), run.attempt, retry.failed if retry else ())
        chosen = self._select(run).kept
        known, new = past(self._store, run.parent), count_new(chosen)
        count, draw = known.count(len(chosen), new, settings), settings.seed + len(known.runs)
        replay = self._store.examples.replay(count, draw, known.runs)
        freeze_batch(directory / EXAMPLES, chosen, replay, settings.heldout_share, settings.seed)
        failpoint("train.frozen")
        prepare(directory, settings)
        failpoint("train.prepared")
        metrics = self._store.runs.get(run.id).metrics or {}
        metrics |= {"repeated": len(replay), "anew": known.anew(new, settings)}
        return self._store.runs.update(run.id, state="training", started=time.time(), metrics=metrics)

    def _train(self, run: Run) -> Run:
        known = run.metrics or {}
        kind = recipe(load_settings(self._directory(run)), self._bundle.manifest.base_hash)
        examples = _chosen(run) + known.get("repeated", 0)
        anew = known.get("anew", False)
        watch = Watch(self._tracker, self._child, pace(self._store.runs.list(RUNS_READ), kind), examples)
        watch.begin(run.id)
        logger.info("Starting LoRA training subprocess")
        Trainer(self._trainer, self._bundle, self._child).train(
            run.id,
            self._directory(run),
            None if run.parent is None or anew else self._registry.path(run.parent),
            on_event=watch.hear,
            on_start=lambda pid: self._note_pid(run, pid),
            go_on=lambda step: self._resumption.take_up(run, step),
        )
        failpoint("train.trained")
        known = self._store.runs.get(run.id).metrics or {}
        metrics = {**known, **watch.metrics(), "recipe": kind}
        return self._store.runs.update(run.id, state="gating", metrics=metrics, pid=None)

    def _select(self, run: Run) -> Selection:
        """Decide what the run trains on, and store what it leaves out and why."""
        train = self._config.train
        with self._store.transaction():
            disputed = self._store.examples.set_disputes_aside(run.id, DISPUTED)
            self._store.runs.update(run.id, examples=run.examples - disputed)
        if disputed:
            logger.info("%s leaves %d examples to a person: others were taught otherwise", run.id, disputed)
        selection = select(
            self._store.examples.held(run.id),
            near_duplicate=train.near_duplicate,
            device_share=train.device_share,
            teachers=self._store.keys.teachers(),
        )
        if selection.left_out:
            with self._store.transaction():
                self._store.examples.leave_out(run.id, selection.left_out)
                known = self._store.runs.get(run.id).metrics or {}
                self._store.runs.update(run.id, metrics={**known, "left_out": selection.counts})
            logger.info("%s leaves out %s", run.id, describe(selection.counts))
        if not selection.kept:
            why = describe(selection.counts) or f"{disputed} wait for a person"
            raise _NothingToTrain(f"There is nothing to learn from ({why}).")
        return selection

    def _judge(self, run: Run) -> dict[str, Any]:
        """The gate's report. A gate that is killed begins again: a training that is done is worth that."""
        while True:
            try:
                return self._judge_once(run)
            except ChildKilled:
                if not self._resumption.judge_again(run):
                    raise

    def _judge_once(self, run: Run) -> dict[str, Any]:
        directory = self._directory(run)
        gate = gate_seconds(self._store.runs.list(RUNS_READ))
        self._tracker.enter(run.id, "gating", gate)
        judge = Judge(self._home, self._config, self._registry, self._bundle, self._child)
        report = judge.judge(
            directory / CANDIDATE,
            directory,
            current=run.parent,
            examples=directory / EXAMPLES,
            on_step=lambda step, steps: self._tracker.advance(
                step, steps, seconds_left=gate * (1 - step / max(steps, 1))
            ),
            on_start=lambda pid: self._note_pid(run, pid),
        )
        failpoint("gate.reported")
        metrics = self._store.runs.get(run.id).metrics or {}
        seconds = round(self._child.seconds, 1)
        self._store.runs.update(run.id, metrics={**metrics, "gate_seconds": seconds})
        return report

    def _settle(self, run: Run, report: dict[str, Any]) -> Run:
        """Store the verdict. From here on the run is finished even over a crash."""
        candidate = self._directory(run) / CANDIDATE
        name = self._registry.new_name()
        try:
            adapter = read_adapter(candidate, self._bundle.manifest)
        except AdapterInvalid as error:
            raise ChildFailed(f"The trainer wrote no usable adapter: {error.message}") from error
        with self._store.transaction():
            self._store.adapters.upsert(
                AdapterRow(
                    name=name,
                    created=time.time(),
                    sha256=adapter.sha256,
                    size=adapter.size,
                    base_hash=adapter.meta.base_hash,
                    rank=adapter.meta.rank,
                    run_id=run.id,
                    parent=ancestor(self._store, run.parent),
                    state="accepted" if report["passed"] else "rejected",
                    report=report,
                )
            )
            return self._store.runs.update(run.id, adapter=name, report=report, pid=None)

    def _conclude(self, run: Run) -> Run:
        """Act on the stored verdict; each step may have been done already before a crash."""
        name, report = run.adapter, run.report
        assert name is not None
        assert report is not None
        failpoint("gate.settled")
        self._place(run, name)
        failpoint("train.placed")
        if not report["passed"]:
            self._events.publish("adapter.rejected", adapter=name, run=run.id, reason=report["summary"])
            failed = [check["name"] for check in report["checks"] if not check["passed"]]
            return self._give_back(run, "rejected", report["summary"], failed)
        if (ended := self._canary(run, name)) is not None:
            return ended
        self._tracker.enter(run.id, "switching")
        serving = self._registry.current()
        if serving != name and self._start() != run.parent:
            # Somebody switched meanwhile, and meant it. The examples are learned anew from there.
            self._store.adapters.set_state(name, "rejected")
            reason = (
                f"{serving or 'base'} was put in service while the run trained from {run.parent or 'base'}."
            )
            return self._give_back(run, "rejected", reason, again=True)
        try:
            self._promote(name, f"learned from {_chosen(run)} examples", tuple(report["fingerprint"]))
        except Pinned:
            told = "It passed every check, and waits for you: what is in service is pinned."
            return self._learned(run, "accepted", told)
        except ShammahError as error:
            self._store.adapters.set_state(name, "rejected")
            return self._give_back(run, "failed", f"It could not be switched to: {error.message}")
        return self._learned(run, "promoted", report["summary"])

    def _canary(self, run: Run, name: str) -> Run | None:
        """Let the adapter answer a share of the requests first.

        Returns:
            The run, if it goes no further: rejected, cancelled, or left to the next start.
        """
        share, answers = self._config.gate.canary_share, self._config.gate.canary_answers
        before = self._registry.current()
        if not share or before == name or self._start() != run.parent or self._pinned():
            return None

        def over() -> bool:
            return self._child.stopped or self._registry.current() != before or self._pinned()

        self._tracker.enter(run.id, "canary")
        try:
            fault = self._try_out(name, before, over, lambda count: self._tracker.advance(count, answers))
        except ShammahError as error:
            self._store.adapters.set_state(name, "rejected")
            return self._give_back(run, "failed", f"It could not be tried out: {error.message}")
        if fault is not None:
            reason = f"It passed the gate, but not on {share:.0%} of the requests. {fault.reason}"
            with self._store.transaction():
                row = self._store.adapters.get(name)
                assert row is not None
                self._store.adapters.withdraw(name, row.sha256, fault.reason)
                self._store.examples.exclude_answers(name)
                run = give_back(self._store, self._config, run, "rejected", reason, [fault.by])
            self._events.publish("adapter.rejected", adapter=name, run=run.id, reason=fault.reason)
            self._tell(run)
            return run
        if self._paused:
            return run
        if self._child.stopped:
            self._store.adapters.set_state(name, "rejected")
            return self._stopped(run)
        return None

    def _place(self, run: Run, name: str) -> None:
        """Move the candidate among the adapters, unless that has been done."""
        candidate = self._directory(run) / CANDIDATE
        try:
            self._registry.path(name)
        except NotFound:
            self._registry.add(candidate, name)
        candidate.unlink(missing_ok=True)

    # -- the ends -----------------------------------------------------------------------------

    def _learned(self, run: Run, state: Literal["promoted", "accepted"], reason: str) -> Run:
        """What it was given has been learned, be it in service or waiting."""
        with self._store.transaction():
            self._store.examples.mark_used(run.id)
            save_retry(self._store.settings, None)
            run = end_run(self._store, run, state, reason)
        self._tell(run)
        return run

    def _give_back(
        self,
        run: Run,
        state: Literal["failed", "rejected"],
        reason: str,
        failed: Sequence[str] = (),
        *,
        again: bool = False,
    ) -> Run:
        """Release or park the examples, and tell; see `retry.give_back`."""
        run = give_back(self._store, self._config, run, state, reason, failed, again=again)
        self._tell(run)
        return run

    def _stopped(self, run: Run) -> Run:
        """A person has ended it, or it is left to the next start as it is."""
        if self._paused:
            return self._resumption.pause(run)
        run = end_stopped(self._store, self._config, run)
        self._tell(run)
        return run

    @property
    def _paused(self) -> bool:
        return self._closing and not self._cancelled

    def _tell(self, run: Run) -> None:
        failpoint("train.ended")
        discard(self._directory(run))
        logger.info("%s %s: %s", run.id, run.state, run.reason)
        self._events.publish(
            "run.finished", run=run.id, state=run.state, adapter=run.adapter, reason=run.reason
        )

    # -- small things -------------------------------------------------------------------------

    def _new_child(self) -> None:
        self._child, self._cancelled = Child(self._yielding, self._tracker.pause), False
        if self._closing:  # `close` may have stopped the one before
            self._child.stop()

    def _start(self) -> str | None:
        """What a run begun now goes on from; None for base."""
        return start(self._store, self._registry.current(), self._bundle.manifest.base_hash)

    def _pinned(self) -> bool:
        return load_pin(self._store.settings) is not None

    def _settings(self) -> TrainConfig:
        """Of the next run."""
        return decided(self._config.train, self._bundle)

    def _pace(self, settings: TrainConfig) -> Pace | None:
        """How earlier runs went that were as the next with these settings."""
        return pace(self._store.runs.list(RUNS_READ), recipe(settings, self._bundle.manifest.base_hash))

    def _directory(self, run: Run) -> Path:
        return self._home.runs / run.id

    def _note_pid(self, run: Run, pid: int) -> None:
        self._store.runs.update(run.id, pid=pid)
        failpoint("train.started")


def _each_named(runs: Sequence[Run]) -> Iterator[Run]:
    """One after the other; what is logged meanwhile is about it."""
    for run in runs:
        with about(run=run.id):
            yield run


def _chosen(run: Run) -> int:
    """How many of its examples the run trains on or is judged by: all but what it leaves out."""
    left_out: dict[str, int] = (run.metrics or {}).get("left_out", {})
    return run.examples - sum(left_out.values())


def _reason(error: Exception) -> str:
    expected = isinstance(error, ShammahError | OSError)
    return in_words(error) if expected else f"Unexpected: {error!r}"
