"""Figures that are read where they are when somebody asks: a room offers a function, and no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

Read = Callable[[], float | Mapping[str, float] | None]
"""The value; by label, where there is one; None while there is none to tell."""


@dataclass(frozen=True)
class Reading:
    """One figure.

    Attributes:
        name: as Prometheus has it; one that ends in `_total` only ever rises.
        text: what it is, for people.
        read: quick, for it is called at every scrape, from a thread.
        label: what tells its values apart; empty when there is one.
    """

    name: str
    text: str
    read: Read
    label: str = ""


class Readings(Collector):
    """All that was offered. What cannot be read is left out, and everything else is told."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self._failed: set[str] = set()

    def offer(self, name: str, text: str, read: Read, label: str = "") -> None:
        """Tell this figure from now on; see `Reading`. A name offered again is another's."""
        self._readings[name] = Reading(name, text, read, label)

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is is known at a scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        for reading in list(self._readings.values()):
            try:
                found = reading.read()
            except Exception as error:
                if reading.name not in self._failed:
                    self._failed.add(reading.name)
                    logger.warning("%s cannot be read: %s", reading.name, error)
                continue
            self._failed.discard(reading.name)
            if found is not None:
                yield _family(reading, found)


def _family(reading: Reading, found: float | Mapping[str, float]) -> Metric:
    kind = CounterMetricFamily if reading.name.endswith("_total") else GaugeMetricFamily
    labels = [reading.label] if reading.label else []
    family: CounterMetricFamily | GaugeMetricFamily = kind(reading.name, reading.text, labels=labels)
    for value, number in found.items() if isinstance(found, Mapping) else [("", found)]:
        family.add_metric([value] if labels else [], number)
    return family
