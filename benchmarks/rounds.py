"""Rounds: everyone is started, every row is measured in turn, everyone is ended."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from contestants import OURS, Contestant, Running, running
from hardware import machine_seconds
from load import LoadError, Prompts
from rows import Numbers, Row

COLD, MEMORY, IDLE = "start to first token, s", "peak memory, MB", "idle, % of a core"
DISTURBED = 0.15  # cores taken by other programs, above which a measurement is not worth much


@dataclass(frozen=True)
class Sample:
    """One number of one contestant in one round.

    Attributes:
        others: cores that programs outside the benchmark took meanwhile.
    """

    round: int
    contestant: str
    label: str
    value: float
    others: float = 0.0


@dataclass(frozen=True)
class Usage:
    """Processor time so far: of each server, of all the benchmark, of the whole machine."""

    at: float
    servers: dict[str, float]
    mine: float
    machine: float

    @classmethod
    def now(cls, servers: Mapping[str, Running]) -> Usage:
        each = {name: server.cpu_seconds() for name, server in servers.items()}
        own = psutil.Process().cpu_times()
        mine = own.user + own.system + sum(each.values())
        return cls(time.perf_counter(), each, mine, machine_seconds())

    def others(self, before: Usage) -> float:
        """Cores that everything else took since `before`."""
        return max(0.0, self.machine - before.machine - self.mine + before.mine) / (self.at - before.at)


def plan(rows: Sequence[Row], names: Sequence[str], turn: int) -> Iterator[tuple[Row, str]]:
    """The order of one round: row by row, and with every row and round another contestant begins."""
    for number, row in enumerate(rows):
        first = (turn + number) % len(names)
        for name in [*names[first:], *names[:first]]:
            yield row, name


def applies(row: Row, contestant: Contestant) -> bool:
    """Whether a row makes sense for a contestant."""
    return (contestant.parallel or not row.parallel) and (contestant.name == OURS or not row.ours)


async def measure(
    playing: Sequence[Contestant], rows: Sequence[Row], rounds: int, patience: int, prompts: Prompts
) -> list[Sample]:
    """All rounds; the first warms up and is thrown away."""
    samples: list[Sample] = []
    for turn in range(rounds + 1):
        measured = await one_round(turn, playing, rows, patience if turn else 0, prompts)
        if turn:
            samples += measured
        print(f"round {turn} of {rounds} done", file=sys.stderr, flush=True)
    return samples


async def one_round(
    turn: int, playing: Sequence[Contestant], rows: Sequence[Row], patience: int, prompts: Prompts
) -> list[Sample]:
    """Start everyone, measure every row, read the memory, end everyone."""
    samples: list[Sample] = []
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shammah-benchmark-")))
        servers: dict[str, Running] = {}
        first = turn % len(playing)
        for contestant in [*playing[first:], *playing[:first]]:
            server = await stack.enter_async_context(running(contestant, root / contestant.name))
            servers[contestant.name] = server
            samples.append(Sample(turn, contestant.name, COLD, server.cold))
        idle, waited = dict.fromkeys(servers, 0.0), dict.fromkeys(servers, 0.0)
        for row, name in plan(rows, list(servers), turn):
            if not applies(row, servers[name].contestant):
                continue
            before = Usage.now(servers)
            try:
                numbers, others = await _patiently(row, servers, name, patience, prompts)
            except (LoadError, OSError) as error:  # the other rows are still worth having
                print(f"round {turn}: {row.name} {name} FAILED: {error}", file=sys.stderr, flush=True)
                continue
            after = Usage.now(servers)
            samples += [Sample(turn, name, label, value, others) for label, value in numbers.items()]
            for other in servers.keys() - {name}:
                idle[other] += after.servers[other] - before.servers[other]
                waited[other] += after.at - before.at
            note = f", others took {others:.1f} cores" if others > DISTURBED else ""
            print(f"round {turn}: {row.name} {name}{note}", file=sys.stderr, flush=True)
        for name, server in servers.items():
            samples.append(Sample(turn, name, MEMORY, server.peak_bytes() / 1e6))
            if waited[name]:
                samples.append(Sample(turn, name, IDLE, 100 * idle[name] / waited[name]))
    return samples


async def _patiently(
    row: Row, servers: Mapping[str, Running], name: str, patience: int, prompts: Prompts
) -> tuple[Numbers, float]:
    """Measure, again up to `patience` times while other programs disturb; the least disturbed counts."""
    best: tuple[Numbers, float] | None = None
    for _ in range(patience + 1):
        before = Usage.now(servers)
        numbers = await row.measure(servers[name], prompts)
        others = Usage.now(servers).others(before)
        if best is None or others < best[1]:
            best = numbers, others
        if others <= DISTURBED:
            break
    assert best is not None
    return best
