"""What learning does: counted from its events, and the last run from the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.registry import Collector

from appliance.events import Event, EventBus
from appliance.learning.guard import CAUSES
from appliance.learning.pin import load_pin
from appliance.learning.probation import load_probation
from appliance.learning.switch import APPLIANCE
from appliance.store import Store
from appliance.store.runs import RUN_STATES, Run

logger = logging.getLogger(__name__)

_ENDED = ("promoted", "accepted", "rejected", "failed", "cancelled", "parked")


class Learned(Collector):
    """Listens to events as long as the daemon lives."""

    def __init__(self, registry: CollectorRegistry, store: Store, events: EventBus) -> None:
        self._store = store

        def counter(name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
            made = Counter(f"shammah_{name}", text, [label], registry=registry)
            for value in values:  # from zero on, or the first of each could not be seen to happen
                made.labels(value)
            return made

        self._runs = counter("runs", "Training runs that ended, by outcome.", "state", _ENDED)
        self._seconds = Histogram(
            "shammah_run_seconds",
            "Time from a run's first step to its end, by outcome.",
            ["state"],
            buckets=(15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200),
            registry=registry,
        )
        self._verdicts = counter(
            "gate_verdicts", "Verdicts of the gate on adapters.", "verdict", ("accepted", "rejected")
        )
        self._deferrals = counter(
            "run_deferrals", "Runs that were put off, by what was short.", "cause", CAUSES
        )
        self._promotions = counter(
            "promotions", "Adapters, or base, put in service, by whom.", "by", ("box", "person")
        )
        self._rollbacks = counter(
            "rollbacks", "Switches back to what served before, by whom.", "by", ("box", "person")
        )
        self._probations = counter(
            "probations", "Adapters on probation that were judged.", "verdict", ("proved", "withdrawn")
        )
        self._feedback = counter(
            "feedback", "Feedback of people, by kind.", "kind", ("praise", "correction", "critique")
        )
        self._heard: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "run.finished": self._finished,
            "run.deferred": self._deferred,
            "adapter.accepted": lambda data: self._verdicts.labels("accepted").inc(),
            "adapter.rejected": lambda data: self._verdicts.labels("rejected").inc(),
            "adapter.promoted": self._promoted,
            "adapter.proved": lambda data: self._probations.labels("proved").inc(),
            "adapter.withdrawn": lambda data: self._probations.labels("withdrawn").inc(),
            "feedback.given": lambda data: self._feedback.labels(data["kind"]).inc(),
        }
        events.listen(self._hear)

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is is known at a scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The last run, and whether the adapter in service has to prove itself."""
        runs = self._store.runs.list(1)
        if runs:
            yield from _last(runs[0])
        for name, text, what in (
            ("adapter_probation", "1 while the adapter in service has to prove itself.", load_probation),
            ("adapter_pinned", "1 while only a person may switch.", load_pin),
        ):
            yield GaugeMetricFamily(f"shammah_{name}", text, value=what(self._store.settings) is not None)

    def _hear(self, event: Event) -> None:
        count = self._heard.get(event.name)
        if count is None:
            return
        try:
            count(event.data)
        except Exception:  # a listener must not raise, and a figure is not worth a run
            logger.exception("%s could not be counted", event.name)

    def _finished(self, data: Mapping[str, Any]) -> None:
        self._runs.labels(data["state"]).inc()
        if data["state"] in ("promoted", "accepted"):  # by then the gate has passed its adapter
            self._verdicts.labels("accepted").inc()
        run = self._store.runs.get(data["run"])
        if run.started is not None and run.ended is not None:
            self._seconds.labels(run.state).observe(max(run.ended - run.started, 0.0))

    def _deferred(self, data: Mapping[str, Any]) -> None:
        for cause in data["causes"]:
            self._deferrals.labels(cause).inc()

    def _promoted(self, data: Mapping[str, Any]) -> None:
        counter = self._rollbacks if data["back"] else self._promotions
        counter.labels("box" if data["actor"] == APPLIANCE else "person").inc()


def _last(run: Run) -> Iterator[Metric]:
    states: dict[str, bool] = {state: run.state == state for state in RUN_STATES}
    yield StateSetMetricFamily("shammah_last_run_state", "State of the newest run.", value=states)
    for name, text, value in (
        ("last_run_examples", "How many examples the newest run was given.", run.examples),
        ("last_run_created_timestamp_seconds", "When the newest run was created.", run.created),
        (
            "last_run_ended_timestamp_seconds",
            "When the newest run ended; absent while it goes on.",
            run.ended,
        ),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"shammah_{name}", text, value=value)
