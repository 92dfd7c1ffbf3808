"""The gate: judges a candidate adapter before it may serve. A child program.

    python -m appliance.learning.gate --bundle DIR --adapter FILE [--current FILE] [--examples FILE]
        --limits FILE --out report.json [--cache FILE] [--threads N]

Structure first, then behaviour on the session code that will serve it, compared with base and with
the adapter in service. It prints its progress as JSON lines and writes the report; its exit code
is 0 whatever the verdict, and 1 with an {"event": "error"} line when it could not come to one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.adapters.file import Adapter, read_adapter
from appliance.engine.offline import OfflineModel
from appliance.errors import AdapterInvalid, ShammahError, Unavailable
from appliance.failpoints import failpoint
from appliance.files import in_words, write_atomic
from appliance.learning.measure import (
    EXAMPLE_TOKENS,
    GENERIC_TOKENS,
    NOTHING,
    SHOWN,
    General,
    Particular,
    Selection,
    data_version,
    measure_general,
    measure_particular,
    select,
)
from appliance.learning.probes import load_probes
from appliance.learning.report import Check, build_report
from appliance.learning.train.data import load_examples
from appliance.learning.verdict import Judged, verdicts
from appliance.logs import configure_child
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import GateConfig

HOPELESS = 3.0
"""Times the perplexity of base: a candidate above it is rejected without being asked anything."""

CACHE_ENTRIES = 50


class Gate:
    """One judgement: loads the models one after the other, for memory is short."""

    def __init__(
        self, bundle: Bundle, *, cache: Path | None, threads: int, progress: Callable[[int, int, str], None]
    ) -> None:
        self._bundle = bundle
        self._tokenizer = Tokenizer(bundle)
        self._cache = cache
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._steps = 1
        self._model: OfflineModel | None = None

    def judge(
        self, path: Path, current: Path | None, examples: Path | None, limits: GateConfig
    ) -> dict[str, Any]:
        """The report on the adapter at `path`."""
        started = time.monotonic()
        manifest = self._bundle.manifest
        try:
            candidate = read_adapter(path, manifest)
        except AdapterInvalid as error:
            check = Check("structure", "Structure of the file", False, error.message)
            return build_report([check], [], time.monotonic() - started)
        reference = read_adapter(current, manifest) if current else None
        selection = select(load_examples(examples) if examples else [])
        general = 1 + len(load_probes())
        kept = {who: self._look_up(who) for who in dict.fromkeys((None, reference, candidate))}
        self._steps = general * sum(value is None for value in kept.values()) + 2 * selection.steps
        base = kept[None] or self._general(None)
        ref_general = (kept[reference] or self._general(reference)) if reference else base
        try:
            new_general = kept[candidate] or self._general(candidate, HOPELESS * base.perplexity)
            new_batch = self._particular(candidate, selection) if new_general.answers else NOTHING
        except Unavailable as error:
            return build_report(
                [Check("runtime", "Works on this runtime", False, error.message)],
                [],
                time.monotonic() - started,
            )
        ref_batch = self._particular(reference, selection) if new_general.answers else NOTHING
        against = reference.name if reference else "the base model"
        structure = Check(
            "structure",
            "Structure of the file",
            True,
            f"{candidate.size / 1e6:.1f} MB, rank {candidate.meta.rank}, fits {manifest.name}; all finite.",
        )
        checks = verdicts(Judged(base, ref_general, new_general, ref_batch, new_batch), limits, against)
        answers = [
            {"question": now.question, "before": then.text, "after": now.text, "expected": now.expected}
            for then, now in zip(ref_batch.answers[:SHOWN], new_batch.answers[:SHOWN], strict=False)
        ]
        report = build_report([structure, *checks], answers, time.monotonic() - started)
        return {
            **report,
            "sha256": candidate.sha256,
            "reference": reference.name if reference else None,
            "answered": [
                probe.question
                for probe, passed in zip(load_probes(), new_general.probes, strict=False)
                if passed
            ],
            "fingerprint": list(new_general.fingerprint),
        }

    def _use(self, adapter: Adapter | None) -> OfflineModel:
        if self._model is None:
            capacity = max(GENERIC_TOKENS, EXAMPLE_TOKENS) + 64
            self._model = OfflineModel(self._bundle, adapter, threads=self._threads, capacity=capacity)
        else:
            self._model.use(adapter)
        return self._model

    def _general(self, adapter: Adapter | None, worst: float = math.inf) -> General:
        found = measure_general(self._use(adapter), self._tokenizer, self._tick, worst)
        self._remember(adapter, found)
        return found

    def _particular(self, adapter: Adapter | None, selection: Selection) -> Particular:
        if not selection.steps:
            return NOTHING
        return measure_particular(self._use(adapter), self._tokenizer, selection, self._tick)

    def _tick(self, phase: str) -> None:
        self._progress(self._done, self._steps, phase)
        self._done += 1

    def _key(self, adapter: Adapter | None) -> str:
        who = adapter.sha256 if adapter else "base"
        return f"{self._bundle.manifest.base_hash}:{who}:{data_version()}"

    def _kept(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._cache.read_text(encoding="utf-8")) if self._cache else {}
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _look_up(self, adapter: Adapter | None) -> General | None:
        try:
            entry = self._kept()[self._key(adapter)]
            return General(
                float(entry["perplexity"]),
                tuple(entry["probes"]),
                tuple(entry["answers"]),
                tuple(entry["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def _remember(self, adapter: Adapter | None, general: General) -> None:
        if self._cache is None or not general.answers:
            return
        kept = {**self._kept(), self._key(adapter): asdict(general)}
        write_atomic(self._cache, json.dumps(dict(list(kept.items())[-CACHE_ENTRIES:])))


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="gate", description="Judge an adapter.")
    parser.add_argument("--bundle", type=Path, required=True, help="the model it is for")
    parser.add_argument("--adapter", type=Path, required=True, help="the candidate")
    parser.add_argument("--current", type=Path, help="the adapter in service; base when left out")
    parser.add_argument("--examples", type=Path, help="the run's examples.jsonl")
    parser.add_argument("--limits", type=Path, required=True, help="JSON of the [gate] section")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--cache", type=Path, help="where general measurements are kept")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    args = parser.parse_args(argv)

    def progress(step: int, steps: int, phase: str) -> None:
        _say(event="step", step=step, steps=steps, phase=phase)

    try:
        limits = GateConfig.model_validate_json(args.limits.read_bytes())
        gate = Gate(load_bundle(args.bundle), cache=args.cache, threads=args.threads, progress=progress)
        failpoint("gate.begun")
        report = gate.judge(args.adapter, args.current, args.examples, limits)
        failpoint("gate.judged")
        write_atomic(args.out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        failpoint("gate.written")
    except (ShammahError, OSError, ValueError) as error:
        _say(event="error", message=in_words(error))
        return 1
    _say(event="done", passed=report["passed"], summary=report["summary"], seconds=report["seconds"])
    return 0


if __name__ == "__main__":
    configure_child()
    sys.exit(main())
