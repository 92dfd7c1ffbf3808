"""A learning run from queue to verdict, such that it can be cut off at any line.

    queued ─▶ training ─▶ gating ─▶ promoted | rejected
                 └────────┴──▶ failed | cancelled | parked

What is known is in the store before the next thing happens, so `recover` can tell where a run was
cut off. Before the verdict is stored, the run has died: its examples go back (see `retry.py`). After
it, the run is finished forward: its adapter is put in place and in service, its examples are used.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.adapters.file import read_adapter
from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.errors import AdapterInvalid, Conflict, InvalidRequest, NotFound, ShammahError, Unavailable
from appliance.events import EventBus
from appliance.files import write_atomic
from appliance.home import Home
from appliance.learning.batch import freeze_batch
from appliance.learning.child import Child, ChildFailed, ChildStopped, Limits, kill_orphans
from appliance.learning.faults import Fault
from appliance.learning.judge import Judge
from appliance.learning.retry import Retry, adjusted, end_run, give_back, load_retry, save_retry
from appliance.learning.selection import Selection, describe, select
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example
from appliance.store.runs import Run, Trigger

logger = logging.getLogger(__name__)

TRAINER = (sys.executable, "-m", "appliance.learning.train.peft")
BATCH_LIMIT = 2000
"""Examples a run takes at most; the others wait for the next."""

Phase = Literal["preparing", "training", "gating", "canary", "switching"]
Promote = Callable[[str, str, "tuple[int, ...] | None"], None]
"""`promote(name, reason, fingerprint)`: blocks until the adapter is in service, or raises."""
TryOut = Callable[[str, "str | None", Callable[[], bool], Callable[[int], None]], "Fault | None"]
"""`try_out(name, before, over, report)`: blocks for the length of the canary; see `canary.py`."""

_SHARES: dict[Phase, tuple[float, float]] = {
    "preparing": (0.0, 0.0),
    "training": (0.0, 0.8),
    "gating": (0.8, 0.98),
    "canary": (0.98, 0.98),
    "switching": (0.98, 1.0),
}


class _NothingToTrain(Exception):
    """The selection left nothing; its text says why."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes:
        loss: of the last training step.
        fraction: of the whole run, 0 to 1, for a progress bar.
    """

    id: str
    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    fraction: float = 0.0


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
        trainer: Sequence[str] = TRAINER,
        *,
        try_out: TryOut,
    ) -> None:
        """`trainer` is the program to run; tests of its death give another."""
        self._home = home
        self._config = config
        self._store = store
        self._registry = registry
        self._bundle = bundle
        self._promote = promote
        self._events = events
        self._trainer = tuple(trainer)
        self._try_out = try_out
        self._child = Child()
        self._closing = False
        self.progress: RunProgress | None = None

    # -- from outside -------------------------------------------------------------------------

    def begin(self, trigger: Trigger, retry: Retry | None = None) -> Run:
        """Create a run and give it its examples, in one step.

        Args:
            trigger: what caused it.
            retry: the batch to try again; otherwise all that is pending.

        Raises:
            InvalidRequest: there is nothing to train on.
        """
        if self._closing:
            raise Unavailable("The box is shutting down.")
        pending = self._store.examples.pending(BATCH_LIMIT)
        if retry is not None:
            wanted = set(retry.ids)
            pending = [example for example in pending if example.id in wanted]
        if not pending:
            raise InvalidRequest("The queue is empty: there is nothing to train on.")
        with self._store.transaction():
            attempt = retry.attempt if retry else 1
            run = self._store.runs.create(trigger, len(pending), self._registry.current(), attempt)
            held = self._store.examples.hold(run.id, [example.id for example in pending])
            if not held:
                raise Conflict("The queue changed just now; try again.")
            run = self._store.runs.update(run.id, examples=len(held))
        self._child = Child()
        self._say(RunProgress(run.id, "preparing"))
        self._events.publish(
            "run.started", run=run.id, trigger=trigger, examples=run.examples, attempt=attempt
        )
        return run

    def carry_out(self, run: Run) -> Run:
        """Train, judge, and promote or reject. Never raises for what a run may meet."""
        try:
            try:
                self._train(run)
                run = self._settle(run, self._judge(run))
            except _NothingToTrain as nothing:
                return self._settle_untrained(run, str(nothing))
            except ChildStopped:
                return self._cancelled(run)
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
            self.progress = None

    def recover(self) -> list[Run]:
        """Finish, one way or the other, the runs that were cut off. Only while none is going on."""
        done = []
        for run in self._store.runs.unfinished():
            if orphans := kill_orphans(self._directory(run)):
                logger.warning("Killed %d program(s) that a run cut off had left behind", orphans)
            logger.warning("%s was cut off while %s", run.id, run.state)
            try:
                if run.adapter is None:
                    done.append(self._give_back(run, "failed", "It was cut off (power, kill or crash)."))
                else:
                    done.append(self._conclude(run))
            except Exception as error:
                logger.exception("%s could not be finished", run.id)
                if run.adapter is None or run.adapter == self._registry.current():
                    continue  # taken up again later: what is in service has been learned
                self._store.adapters.set_state(run.adapter, "rejected")
                done.append(self._give_back(run, "failed", _reason(error)))
            finally:
                self.progress = None
        return done

    def cancel(self) -> None:
        """Stop the run going on; it ends as cancelled. Too late once its adapter is being switched to."""
        self._child.stop()

    def close(self) -> None:
        """Stop the run going on because the box shuts down: its attempt does not count."""
        self._closing = True
        self._child.stop()

    # -- the steps ----------------------------------------------------------------------------

    def _train(self, run: Run) -> None:
        directory = self._directory(run)
        directory.mkdir(mode=0o700, exist_ok=True)
        retry = load_retry(self._store.settings)
        settings = adjusted(self._config.train, run.attempt, retry.failed if retry else ())
        chosen = self._select(run).kept
        replay = self._store.examples.replay(round(settings.replay_share * len(chosen)), settings.seed)
        freeze_batch(directory / "examples.jsonl", chosen, replay, settings.heldout_share, settings.seed)
        write_atomic(directory / "train.json", settings.model_dump_json(indent=1) + "\n")
        self._store.runs.update(run.id, state="training", started=time.time())
        command: list[str | Path] = [
            *self._trainer,
            "--bundle",
            self._bundle.path,
            "--examples",
            directory / "examples.jsonl",
        ]
        command += ["--out", directory / "candidate.safetensors", "--metrics", directory / "metrics.jsonl"]
        command += ["--settings", directory / "train.json", "--run", run.id]
        if run.parent is not None:
            command += ["--parent", self._registry.path(run.parent)]
        metrics = dict(self._store.runs.get(run.id).metrics or {})

        def relay(event: dict[str, Any]) -> None:
            match event.get("event"):
                case "start":
                    metrics.update(steps=event.get("steps"))
                    self._advance(run, "training", 0, event.get("steps"), None)
                case "step":
                    metrics.update(loss=event.get("loss"))
                    self._advance(run, "training", event.get("step"), event.get("steps"), event.get("loss"))
                case "done":
                    metrics.update({key: value for key, value in event.items() if key != "event"})

        logger.info("Starting LoRA training subprocess")
        self._child.run(
            [os.fspath(part) for part in command],
            log=directory / "log",
            limits=Limits(settings.nice, settings.memory_limit_mb, settings.time_limit_minutes * 60),
            on_event=relay,
            on_start=lambda pid: self._note_pid(run, pid),
        )
        if not (directory / "candidate.safetensors").is_file():
            raise ChildFailed("The trainer ended without writing an adapter.")
        self._store.runs.update(run.id, metrics=metrics, pid=None)

    def _select(self, run: Run) -> Selection:
        """Decide what the run trains on, and store what it leaves out and why."""
        train = self._config.train
        selection = select(
            self._store.examples.held(run.id),
            near_duplicate=train.near_duplicate,
            device_share=train.device_share,
        )
        if selection.left_out:
            with self._store.transaction():
                self._store.examples.leave_out(run.id, selection.left_out)
                self._store.runs.update(run.id, metrics={"left_out": selection.counts})
            logger.info("%s leaves out %s", run.id, describe(selection.counts))
        if not selection.kept:
            raise _NothingToTrain(f"There is nothing to learn from ({describe(selection.counts)}).")
        return selection

    def _judge(self, run: Run) -> dict[str, Any]:
        directory = self._directory(run)
        self._store.runs.update(run.id, state="gating")
        judge = Judge(self._home, self._config, self._registry, self._bundle, self._child)
        return judge.judge(
            directory / "candidate.safetensors",
            directory,
            current=run.parent,
            examples=directory / "examples.jsonl",
            on_step=lambda step, steps: self._advance(run, "gating", step, steps, None),
            on_start=lambda pid: self._note_pid(run, pid),
        )

    def _settle(self, run: Run, report: dict[str, Any]) -> Run:
        """Store the verdict. From here on the run is finished even over a crash."""
        candidate = self._directory(run) / "candidate.safetensors"
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
                    parent=run.parent,
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
        self._place(run, name)
        if not report["passed"]:
            self._events.publish("adapter.rejected", adapter=name, run=run.id, reason=report["summary"])
            failed = [check["name"] for check in report["checks"] if not check["passed"]]
            return self._give_back(run, "rejected", report["summary"], failed)
        if (ended := self._canary(run, name)) is not None:
            return ended
        self._say(RunProgress(run.id, "switching", fraction=_SHARES["switching"][0]))
        serving = self._registry.current()
        if serving not in (run.parent, name):
            # Somebody switched meanwhile, and meant it. The examples are learned anew from there.
            self._store.adapters.set_state(name, "rejected")
            reason = (
                f"{serving or 'base'} was put in service while the run trained from {run.parent or 'base'}."
            )
            return self._give_back(run, "rejected", reason, again=True)
        try:
            learned = run.examples - sum((run.metrics or {}).get("left_out", {}).values())
            self._promote(name, f"learned from {learned} examples", tuple(report["fingerprint"]))
        except ShammahError as error:
            self._store.adapters.set_state(name, "rejected")
            return self._give_back(run, "failed", f"It could not be switched to: {error.message}")
        with self._store.transaction():
            self._store.examples.mark_used(run.id)
            save_retry(self._store.settings, None)
            run = self._end(run, "promoted", report["summary"])
        self._tell(run)
        return run

    def _canary(self, run: Run, name: str) -> Run | None:
        """Let the adapter answer a share of the requests first.

        Returns:
            The run, if it goes no further: rejected, cancelled, or left to the next start.
        """
        share, answers = self._config.gate.canary_share, self._config.gate.canary_answers
        if not share or self._registry.current() != run.parent:
            return None

        def over() -> bool:
            return self._child.stopped or self._registry.current() != run.parent

        self._advance(run, "canary", 0, answers, None)
        try:
            fault = self._try_out(
                name, run.parent, over, lambda count: self._advance(run, "canary", count, answers, None)
            )
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
        if self._closing:
            return run
        if self._child.stopped:
            self._store.adapters.set_state(name, "rejected")
            return self._cancelled(run)
        return None

    def _place(self, run: Run, name: str) -> None:
        """Move the candidate among the adapters, unless that has been done."""
        candidate = self._directory(run) / "candidate.safetensors"
        try:
            self._registry.path(name)
        except NotFound:
            self._registry.add(candidate, name)
        candidate.unlink(missing_ok=True)

    # -- the ends -----------------------------------------------------------------------------

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
        (self._directory(run) / "candidate.safetensors").unlink(missing_ok=True)
        self._tell(run)
        return run

    def _cancelled(self, run: Run) -> Run:
        with self._store.transaction():
            ids: Sequence[Example] = self._store.examples.held(run.id)
            self._store.examples.release(run.id)
            if self._closing:
                reason = "The box was shut down."
                if run.attempt > 1:
                    earlier = load_retry(self._store.settings)
                    failed = earlier.failed if earlier else ()
                    kept = tuple(example.id for example in ids)
                    save_retry(self._store.settings, Retry(time.time(), kept, run.attempt, failed))
            else:
                reason = "It was cancelled."
                pause = self._config.lora.batch_timeout_minutes * 60
                save_retry(self._store.settings, Retry(time.time() + pause))
            run = self._end(run, "cancelled", reason)
        self._tell(run)
        return run

    def _settle_untrained(self, run: Run, reason: str) -> Run:
        """End a run without a trainer. Its examples leave the queue: they would be no better next time."""
        with self._store.transaction():
            self._store.examples.mark_used(run.id)
            save_retry(self._store.settings, None)
            run = self._end(run, "cancelled", reason)
        self._tell(run)
        return run

    def _end(self, run: Run, state: str, reason: str) -> Run:
        return end_run(self._store, run, state, reason)

    def _tell(self, run: Run) -> None:
        logger.info("%s %s: %s", run.id, run.state, run.reason)
        self._events.publish(
            "run.finished", run=run.id, state=run.state, adapter=run.adapter, reason=run.reason
        )

    # -- small things -------------------------------------------------------------------------

    def _directory(self, run: Run) -> Path:
        return self._home.runs / run.id

    def _note_pid(self, run: Run, pid: int) -> None:
        self._store.runs.update(run.id, pid=pid)

    def _advance(self, run: Run, phase: Phase, step: Any, steps: Any, loss: Any) -> None:
        first, last = _SHARES[phase]
        done = step / steps if isinstance(step, int) and isinstance(steps, int) and steps > 0 else 0.0
        number = float(loss) if isinstance(loss, int | float) else None
        self._say(
            RunProgress(
                run.id, phase, int(step or 0), int(steps or 0), number, first + (last - first) * min(done, 1)
            )
        )

    def _say(self, progress: RunProgress) -> None:
        self.progress = progress
        data = asdict(progress)
        self._events.publish("run.progress", run=data.pop("id"), **data)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, ShammahError) else f"Unexpected: {error!r}"
