"""A box without HTTP, on a home of its own: real collection, feedback, selection, trainer and gate.

Only the switch is left out: nobody is served, so putting an adapter in service is making the link.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters.registry import Registry
from appliance.config import parse_config
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.collector import CollectedExchange, Collector
from appliance.learning.feedback import Feedback, give_feedback
from appliance.learning.judge import CACHE as GATE_CACHE
from appliance.learning.retry import load_retry
from appliance.learning.run import Runner
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.runs import Run
from lessons.answers import Answer


@dataclass(frozen=True)
class Attempt:
    """One run, from the queue to the gate's verdict.

    Attributes:
        run: as the store has it.
        adapter: what it trained, whatever the gate said.
        examples: the batch it trained on.
        tokens: useful ones (see `learning.py`), summed over the optimizer's steps.
        seconds: of the trainer, from the start of its work to the written file.
        peak_mb: of the trainer.
    """

    run: Run
    adapter: Path
    examples: Path
    tokens: int
    seconds: float
    peak_mb: int

    @property
    def verdict(self) -> str:
        """ "passed", or why not."""
        report = self.run.report or {}
        return "passed" if report.get("passed") else str(report.get("summary") or self.run.reason)


class Box:
    """What a home holds and does; `close` it. Examples go in at once, one after the other."""

    def __init__(self, bundle: Bundle, home: Home, settings: Sequence[str], gate_cache: Path) -> None:
        """`settings` are lines of the `[train]` section; `gate_cache` spares measuring base again."""
        self._config = parse_config("\n".join(["[train]", *settings]))
        self._home = home.ensure()
        self._gate_cache = gate_cache
        if gate_cache.exists():
            shutil.copyfile(gate_cache, home.runs / GATE_CACHE)
        self.store = Store.open(home)
        events = EventBus()
        self._collector = Collector(self.store, self._config, events)
        self._registry = Registry(home, bundle.manifest)
        self._runner = Runner(
            home,
            self._config,
            self.store,
            self._registry,
            bundle,
            self._promote,
            events,
            try_out=lambda *_: None,
        )
        self._exchanges = 0

    def close(self) -> None:
        """End the threads, close the files."""
        self._collector.stop()
        self.store.close()

    def exchange(self, question: str, answer: Answer) -> None:
        """A device asked, the box answered."""
        self._exchanges += 1
        self._collector.collect(
            CollectedExchange(
                completion_id=f"chatcmpl-{self._exchanges}",
                messages=[{"role": "user", "content": question}],
                query=question,
                response=answer.text,
                finish_reason=answer.finish,
                device=None,
                model="shammah",
                adapter=self.current,
                prompt_tokens=0,
                completion_tokens=0,
            )
        )
        self._collector.flush()

    def correct(self, question: str, wrong: str, right: str) -> None:
        """A person corrected an answer, with high weight."""
        word = Feedback(query=question, response=wrong, correction=right, weight="high")
        give_feedback(self.store, self._config, word, collector=self._collector)

    @property
    def current(self) -> str | None:
        """Name of the adapter in service; None is base."""
        return self._registry.current()

    @property
    def serving(self) -> Path | None:
        """Its file."""
        return self._registry.path(self.current) if self.current else None

    def learn(self, *, attempts: int | None = None) -> list[Attempt]:
        """Run on all that is pending, and again on what the gate rejected, as a live box would.

        Args:
            attempts: at most; by default as many as the box makes before it parks the batch.

        Raises:
            SystemExit: the trainer or the gate died.
        """
        done = [self._attempt(self._runner.begin("person"))]
        while done[-1].run.state == "rejected" and (attempts is None or len(done) < attempts):
            retry = load_retry(self.store.settings)
            done.append(self._attempt(self._runner.begin("retry", retry)))
        return done

    def _attempt(self, run: Run) -> Attempt:
        run = self._runner.carry_out(run)
        if run.adapter is None or run.metrics is None:
            raise SystemExit(f"{run.id} {run.state}: {run.reason}")
        place = self._home.runs / run.id
        self._gate_cache.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._home.runs / GATE_CACHE, self._gate_cache)
        return Attempt(
            run=run,
            adapter=self._registry.path(run.adapter),
            examples=place / "examples.jsonl",
            tokens=_tokens(place / "metrics.jsonl"),
            seconds=float(run.metrics["seconds"]),
            peak_mb=int(run.metrics["peak_mb"]),
        )

    def _promote(self, name: str, reason: str, fingerprint: tuple[int, ...] | None) -> None:
        self._registry.set_current(name)
        self.store.adapters.record_switch(name, reason, "benchmark")


def _tokens(metrics: Path) -> int:
    """What the optimizer's steps computed; a step that a resumed run repeats counts once."""
    events = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return sum({event["step"]: event["tokens"] for event in events if event.get("event") == "step"}.values())
