"""From samples to what is printed and kept: medians, ratios to llama.cpp, and whether to believe them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import onnxruntime
from contestants import LLAMA, Contestant
from hardware import processor
from peers import LLAMA_SOURCE
from rounds import DISTURBED, IDLE, Sample

Medians = dict[str, dict[str, float]]

SHARE = "decode, % of the bandwidth limit"
DECODE = "decode, 1 client, tok/s"
SPINS = 5.0  # an idle server above this share of a core (in percent) disturbs the others


def summarise(samples: Sequence[Sample]) -> Medians:
    """Medians: label -> contestant -> number, in the order they were first measured."""
    values: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        values.setdefault(sample.label, {}).setdefault(sample.contestant, []).append(sample.value)
    return {
        label: {name: statistics.median(numbers) for name, numbers in by_name.items()}
        for label, by_name in values.items()
    }


def bandwidth_share(medians: Medians, playing: Sequence[Contestant], bandwidth: float) -> dict[str, float]:
    """Decoding as a share of what reading the weights once a token would allow, in percent."""
    found = medians.get(DECODE, {})
    return {
        contestant.name: 100 * found[contestant.name] * contestant.weights / bandwidth
        for contestant in playing
        if contestant.name in found
    }


def table(medians: Medians, names: Sequence[str]) -> str:
    """For people: a line a label, a column a contestant, with the ratio to llama.cpp."""
    width = max(map(len, medians)) + 2
    lines = [" " * width + "".join(f"{name:>20}" for name in names)]
    for label, by_name in medians.items():
        cells = [_cell(by_name, name) for name in names]
        lines.append(f"{label:{width}}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _cell(by_name: dict[str, float], name: str) -> str:
    if name not in by_name:
        return "-"
    number = by_name[name]
    text = f"{number:.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    if name == LLAMA or not by_name.get(LLAMA):
        return text
    return f"{text} ({number / by_name[LLAMA]:.2f}x)"


@dataclass(frozen=True)
class Report:
    """One run of the benchmark.

    Attributes:
        bandwidth: bytes a second that the machine reads.
    """

    samples: Sequence[Sample]
    playing: Sequence[Contestant]
    rounds: int
    threads: int
    bandwidth: float
    base_hash: str

    @property
    def medians(self) -> Medians:
        """The medians, and the share of the bandwidth limit that follows from them."""
        medians = summarise(self.samples)
        share = bandwidth_share(medians, self.playing, self.bandwidth)
        return medians | ({SHARE: share} if share else {})

    def text(self) -> str:
        """For people."""
        lines = [table(self.medians, [contestant.name for contestant in self.playing]), ""]
        lines += [
            f"{contestant.name}: {contestant.about}; {contestant.weights / 1e6:.0f} MB of weights a token"
            for contestant in self.playing
        ]
        lines.append(
            f"Medians of {self.rounds} rounds on {self.threads} threads, with the ratio to {LLAMA}; "
            f"{processor()}, {os.cpu_count()} cores, reads {self.bandwidth / 1e9:.1f} GB/s; "
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        )
        return "\n".join(lines + self._doubts())

    def data(self) -> dict[str, Any]:
        """For programs: everything that was measured, and on what."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="minutes"),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": self.threads,
            "read_bandwidth": self.bandwidth,
            "versions": {
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
                LLAMA: f"in {LLAMA_SOURCE}",
            },
            "base_hash": self.base_hash,
            "rounds": self.rounds,
            "contestants": {c.name: {"about": c.about, "weight_bytes": c.weights} for c in self.playing},
            "medians": self.medians,
            "samples": [asdict(sample) for sample in self.samples],
        }

    def _doubts(self) -> list[str]:
        doubts = []
        measured = {(sample.label, sample.contestant) for sample in self.samples}
        disturbed = {(s.label, s.contestant) for s in self.samples if s.others > DISTURBED}
        if disturbed:
            worst = max(sample.others for sample in self.samples)
            doubts.append(
                f"NOT A QUIET MACHINE: other programs took up to {worst:.1f} cores while {len(disturbed)} of "
                f"the {len(measured)} numbers were measured (--json says which; --patience repeats them)."
            )
        for name, idle in summarise(self.samples).get(IDLE, {}).items():
            if idle > SPINS:
                doubts.append(f"{name} took {idle:.0f}% of a core while idle and so disturbed the others.")
        return doubts
