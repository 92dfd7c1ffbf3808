"""How fast the box serves, against its peers, on the same weights, threads and machine.

    make peers                                   # once: llama.cpp, onnxruntime-genai, transformers
    .venv/bin/python benchmarks/serve.py [--rounds 5] [--threads 2] [--json FILE]
    .venv/bin/python benchmarks/serve.py --peers shammah llama.cpp --only decode prefill

All contestants run as servers on loopback and are measured by the same client, in turn: row by row
A B C, then B C A, so that what else happens on the machine falls on all of them. They are started
afresh in every round; the first round is thrown away, and medians of the others are reported, with
the ratio to llama.cpp. Nothing of yours is touched: our daemon lives in a temporary home.

Rows (`--only`): `decode` and `prefill` of one client; `first`, the time to the first token after a
system prompt that is new or seen before; `mixed1` to `mixed16`, clients with prompts and answers of
mixed lengths; `stall`, what a long prompt does to seven running answers; `adapter`, ours with a
LoRA adapter of rank 16 on every linear layer and without. Every round adds the start (process to first
token, files in the page cache), the peak memory (sum over the processes, KV cache included) and the
share of a core that a contestant takes while it has nothing to do.

onnxruntime-genai and transformers have no server: a wrapper answers one request at a time, so rows of
several clients leave them out. They keep no prefix between requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
from contestants import LLAMA, OURS, Contestant, Running, contestants, running
from hardware import measure_part, processor
from load import LoadError, Prompts
from peers import CACHE, LLAMA_SOURCE, peers
from rows import ROWS, Row

from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.model.tokenizer import Tokenizer

COLD, MEMORY, IDLE = "start to first token, s", "peak memory, MB", "idle, % of a core"
SHARE = "decode, % of the bandwidth limit"
DECODE = "decode, 1 client, tok/s"
SPINS = 5.0  # an idle server above this share of a core (in percent) disturbs the others


@dataclass(frozen=True)
class Sample:
    """One number of one contestant in one round."""

    round: int
    contestant: str
    label: str
    value: float


def plan(rows: Sequence[Row], names: Sequence[str], turn: int) -> Iterator[tuple[Row, str]]:
    """The order of one round: row by row, and with every row and round another contestant begins."""
    for number, row in enumerate(rows):
        first = (turn + number) % len(names)
        for name in [*names[first:], *names[:first]]:
            yield row, name


def applies(row: Row, contestant: Contestant) -> bool:
    """Whether a row makes sense for a contestant."""
    return (contestant.parallel or not row.parallel) and (contestant.name == OURS or not row.ours)


async def one_round(
    turn: int, playing: Sequence[Contestant], rows: Sequence[Row], prompts: Prompts
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
        idle = dict.fromkeys(servers, 0.0)
        waited = dict.fromkeys(servers, 0.0)
        for row, name in plan(rows, list(servers), turn):
            server = servers[name]
            if not applies(row, server.contestant):
                continue
            began = time.perf_counter()
            before = {other: servers[other].cpu_seconds() for other in servers if other != name}
            numbers = await row.measure(server, prompts)
            samples += [Sample(turn, name, label, value) for label, value in numbers.items()]
            for other, seconds in before.items():
                idle[other] += servers[other].cpu_seconds() - seconds
                waited[other] += time.perf_counter() - began
            print(f"round {turn}: {row.name} {name}", file=sys.stderr, flush=True)
        for name, server in servers.items():
            samples.append(Sample(turn, name, MEMORY, server.peak_bytes() / 1e6))
            if waited[name]:
                samples.append(Sample(turn, name, IDLE, 100 * idle[name] / waited[name]))
    return samples


def summarise(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Medians: label -> contestant -> number, in the order they were first measured."""
    values: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        values.setdefault(sample.label, {}).setdefault(sample.contestant, []).append(sample.value)
    return {
        label: {name: statistics.median(numbers) for name, numbers in by_name.items()}
        for label, by_name in values.items()
    }


def bandwidth_share(
    medians: dict[str, dict[str, float]], playing: Sequence[Contestant], bandwidth: float
) -> dict[str, float]:
    """Decoding as a share of what reading the weights once a token would allow, in percent."""
    found = medians.get(DECODE, {})
    return {
        contestant.name: 100 * found[contestant.name] * contestant.weights / bandwidth
        for contestant in playing
        if contestant.name in found
    }


def table(medians: dict[str, dict[str, float]], names: Sequence[str]) -> str:
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


async def measure(
    playing: Sequence[Contestant], rows: Sequence[Row], rounds: int, prompts: Prompts
) -> list[Sample]:
    """All rounds; the first warms up and is thrown away."""
    samples: list[Sample] = []
    for turn in range(rounds + 1):
        measured = await one_round(turn, playing, rows, prompts)
        if turn:
            samples += measured
        print(f"round {turn} of {rounds} done", file=sys.stderr, flush=True)
    return samples


def choose(bundle: Bundle, cache: Path, wanted: Sequence[str] | None, threads: int) -> list[Contestant]:
    """The contestants asked for, or all that are set up."""
    known = contestants(bundle, peers(cache), threads)
    missing = [name for name, make in known.items() if make is None and (not wanted or name in wanted)]
    if missing:
        print(f"Not set up (`make peers`): {', '.join(missing)}", file=sys.stderr)
        if wanted:
            sys.exit(1)
    return [make() for name, make in known.items() if make is not None and (not wanted or name in wanted)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the default one and the peers are")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="contestants (default: all set up)")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    return parser.parse_args()


def _stop(*_: object) -> None:
    """End by an exception, so that servers and their homes go too; nothing interrupts that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, _stop)
    options.cache.mkdir(parents=True, exist_ok=True)
    bundle = (
        load_bundle(options.bundle)
        if options.bundle
        else import_model(DEFAULT, Home(options.cache.absolute()))
    )
    tokenizer = Tokenizer(bundle)
    playing = choose(bundle, options.cache, options.peers, options.threads)
    rows = [ROWS[name] for name in options.only]
    load = os.getloadavg()[0]
    bandwidth = measure_part("memory", options.threads)["read bandwidth, GB/s"] * 1e9
    prompts = Prompts(lambda text: len(tokenizer.encode_prompt(text)))
    try:
        samples = asyncio.run(measure(playing, rows, options.rounds, prompts))
    except LoadError as error:
        sys.exit(str(error))
    medians = summarise(samples)
    if share := bandwidth_share(medians, playing, bandwidth):
        medians[SHARE] = share
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "read_bandwidth": bandwidth,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "llama.cpp": f"from {LLAMA_SOURCE}",
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    print(table(medians, [contestant.name for contestant in playing]))
    for contestant in playing:
        print(f"{contestant.name}: {contestant.about}; {contestant.weights / 1e6:.0f} MB of weights a token")
    print(
        f"medians of {options.rounds} rounds, {options.threads} threads, (ratio to {LLAMA}); "
        f"{machine['processor']}, {machine['cores']} cores, reads {bandwidth / 1e9:.1f} GB/s; "
        f"load {load:.1f} before, {machine['load_after']:.1f} after; {machine['date']}"
    )
    for name, idle in medians.get(IDLE, {}).items():
        if idle > SPINS:
            print(f"{name} took {idle:.0f}% of a core while idle: it disturbed the others.")
    if options.json:
        report: dict[str, Any] = {
            "machine": machine,
            "base_hash": bundle.manifest.base_hash,
            "rounds": options.rounds,
            "contestants": {c.name: {"about": c.about, "weight_bytes": c.weights} for c in playing},
            "medians": medians,
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
