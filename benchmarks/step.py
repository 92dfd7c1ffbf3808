"""Where the time of one decoding step goes, by ONNX Runtime's own profile.

    .venv/bin/python benchmarks/step.py [--rows N] [--past N] [--threads N] [--bundle DIR] [--json FILE]

Decodes one token at a time for some sequences that have `--past` tokens each, on the session that serves,
and prints each operator's share of the time spent in operators. Profiling slows the many small ones a little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from appliance.engine import session as session_module
from appliance.engine.cache import KVCache
from appliance.engine.session import Session
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT

STEPS = 60


def profile(bundle: Bundle, rows: int, past: int, threads: int, place: Path) -> list[dict[str, Any]]:
    """Operators, the costliest first: times in a step, microseconds of it, share."""
    options_of = ort.SessionOptions

    def profiled() -> ort.SessionOptions:
        options = options_of()
        options.enable_profiling = True
        options.profile_file_prefix = str(place / "profile")
        return options

    session_module.ort.SessionOptions = profiled
    try:
        session = Session(bundle, None, KVCache(bundle.manifest, rows, past + STEPS + 2), threads=threads)
    finally:
        session_module.ort.SessionOptions = options_of
    tokens, ones = np.full(rows, 5, np.int64), np.ones(rows, np.int32)
    for step in range(STEPS):
        session.step(tokens, 0, np.full(rows, past + step, np.int32), ones, np.arange(rows))
    events = json.loads(Path(session._session.end_profiling()).read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            times[event["args"]["op_name"]] += 1
    total = sum(spent.values())
    return [
        {
            "operator": name,
            "times": times[name] / STEPS,
            "microseconds": round(spent[name] / STEPS),
            "share": round(spent[name] / total, 3),
        }
        for name, _ in spent.most_common()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the default one is kept")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--past", type=int, default=256, help="tokens that each sequence has already")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    bundle = (
        load_bundle(options.bundle)
        if options.bundle
        else import_model(DEFAULT, Home(options.cache.absolute()))
    )
    with tempfile.TemporaryDirectory() as place:
        found = profile(bundle, options.rows, options.past, options.threads, Path(place))
    print(f"{'operator':36}{'times':>8}{'us a step':>12}{'share':>9}")
    for row in found:
        print(f"{row['operator']:36}{row['times']:>8.0f}{row['microseconds']:>12}{row['share']:>9.1%}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
