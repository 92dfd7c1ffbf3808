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
import sys
from collections.abc import Sequence
from pathlib import Path

from contestants import GENAI, LLAMA, OURS, TRANSFORMERS, Contestant, contestants
from ending import end_by_exception
from hardware import measure_part
from load import LoadError, Prompts
from peers import CACHE, peers
from report import Report
from rounds import measure
from rows import ROWS

from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.model.tokenizer import Tokenizer


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
    names = [OURS, LLAMA, GENAI, TRANSFORMERS]
    parser.add_argument("--peers", nargs="+", choices=names, help="contestants (default: all set up)")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--patience",
        type=int,
        default=0,
        metavar="N",
        help="repeat a measurement that other programs disturb up to N times",
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    return parser.parse_args()


def read_bandwidth(threads: int) -> float:
    """Bytes a second."""
    return float(measure_part("memory", threads)["read bandwidth, GB/s"]) * 1e9


def main() -> None:
    options = arguments()
    end_by_exception()
    options.cache.mkdir(parents=True, exist_ok=True)
    bundle = (
        load_bundle(options.bundle)
        if options.bundle
        else import_model(DEFAULT, Home(options.cache.absolute()))
    )
    tokenizer = Tokenizer(bundle)
    playing = choose(bundle, options.cache, options.peers, options.threads)
    rows = [ROWS[name] for name in options.only]
    bandwidth = read_bandwidth(options.threads)
    prompts = Prompts(lambda text: len(tokenizer.encode_prompt(text)))
    try:
        samples = asyncio.run(measure(playing, rows, options.rounds, options.patience, prompts))
    except LoadError as error:
        sys.exit(str(error))
    # What disturbs only makes it smaller, so the greater of two is nearer the truth.
    bandwidth = max(bandwidth, read_bandwidth(options.threads))
    report = Report(samples, playing, options.rounds, options.threads, bandwidth, bundle.manifest.base_hash)
    print(report.text())
    if options.json:
        options.json.write_text(json.dumps(report.data(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
