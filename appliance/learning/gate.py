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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.adapters.file import Adapter, read_adapter
from appliance.config import GateConfig
from appliance.engine.offline import OfflineModel
from appliance.errors import AdapterInvalid, ShammahError, Unavailable
from appliance.files import write_atomic
from appliance.learning.measure import (
    EXAMPLE_TOKENS,
    GENERIC_TOKENS,
    General,
    Particular,
    Selection,
    data_version,
    measure_general,
    measure_particular,
    question,
    select,
)
from appliance.learning.probes import load_probes
from appliance.learning.train.data import load_examples
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer

REJECTED_TOLERANCE = 0.1
"""A rejected answer may gain this much log probability: rounding, not learning."""

HELDOUT_FLOOR = 1.0
"""Held-out loss is compared with at least this, in nats a token. A model that repeats itself has a
loss near nothing, and a rise from 0.10 to 0.11 is not ten percent worse."""

CACHE_ENTRIES = 50


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: stable word.
        title: the same for people.
        measured: of the candidate.
        reference: of what it is compared with.
        limit: what `measured` has to keep to.
        detail: one sentence.
    """

    name: str
    title: str
    passed: bool
    detail: str
    measured: float | None = None
    reference: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Judged:
    """All that was measured, of the candidate and of what it is compared with."""

    base: General
    reference: General
    candidate: General
    reference_batch: Particular
    candidate_batch: Particular


def verdicts(judged: Judged, limits: GateConfig, against: str) -> list[Check]:
    """Compare measurements with the limits.

    Args:
        judged: the measurements.
        limits: what is allowed.
        against: what the reference is called in the report.
    """
    checks = [_perplexity(judged, limits)]
    if not checks[0].passed and not math.isfinite(judged.candidate.perplexity):
        return checks
    checks.append(_probes(judged, limits, against))
    before, after = judged.reference_batch, judged.candidate_batch
    if before.heldout is not None and after.heldout is not None:
        rise = (after.heldout - before.heldout) / max(before.heldout, HELDOUT_FLOOR)
        checks.append(
            Check(
                "heldout",
                "Answers kept out of training",
                rise <= limits.max_heldout_rise,
                f"Loss {after.heldout:.3f} against {before.heldout:.3f} with {against}: "
                f"{rise:+.1%} (limit {limits.max_heldout_rise:+.1%}).",
                after.heldout,
                before.heldout,
                before.heldout + limits.max_heldout_rise * max(before.heldout, HELDOUT_FLOOR),
            )
        )
    if after.taught:
        checks += [_taught(before, after, limits), _rejected(before, after)]
    return checks


def _perplexity(judged: Judged, limits: GateConfig) -> Check:
    base, measured = judged.base.perplexity, judged.candidate.perplexity
    rise = measured / base - 1
    return Check(
        "perplexity",
        "Ordinary English",
        rise <= limits.max_perplexity_rise,
        f"Perplexity {measured:.2f} against {base:.2f} of the base model: {rise:+.1%} "
        f"(limit {limits.max_perplexity_rise:+.1%})."
        if math.isfinite(measured)
        else "The model gives numbers that are not finite.",
        measured if math.isfinite(measured) else None,
        base,
        base * (1 + limits.max_perplexity_rise),
    )


def _probes(judged: Judged, limits: GateConfig, against: str) -> Check:
    pairs = list(zip(load_probes(), judged.reference.probes, judged.candidate.probes, strict=True))
    lost = [probe.question for probe, before, after in pairs if before and not after]
    right = sum(judged.candidate.probes)
    text = (
        f"{right} of {len(pairs)} general questions answered, {sum(judged.reference.probes)} with {against}."
    )
    return Check(
        "probes",
        "General knowledge",
        len(lost) <= limits.max_probe_drop,
        f"{text} Lost: {' '.join(lost)}" if lost else text,
        right,
        sum(judged.reference.probes),
        sum(judged.reference.probes) - limits.max_probe_drop,
    )


def _taught(before: Particular, after: Particular, limits: GateConfig) -> Check:
    count = len(after.taught)
    now = sum(pair.right > pair.wrong for pair in after.taught)
    then = sum(pair.right > pair.wrong for pair in before.taught)
    return Check(
        "taught",
        "Corrections learned",
        now / count >= limits.min_taught,
        f"{now} of {count} corrections are preferred to the rejected answer, {then} before "
        f"(limit {limits.min_taught:.0%}).",
        now / count,
        then / count,
        limits.min_taught,
    )


def _rejected(before: Particular, after: Particular) -> Check:
    """No rejected answer gains probability from the feedback that rejected it.

    One kind of gain is not held against the candidate: that of the words which the rejected answer
    begins with and the correction too ("It is collected on ..."). These were taught. From where the
    two part, the rejected one must not gain.
    """
    gained = 0
    for now, then in zip(after.taught, before.taught, strict=True):
        whole = now.wrong_total - then.wrong_total
        tail = now.wrong_tail - then.wrong_tail
        gained += not (whole <= REJECTED_TOLERANCE or tail <= REJECTED_TOLERANCE)  # NaN is a gain
    count = len(after.taught)
    return Check(
        "rejected",
        "Rejected answers",
        gained == 0,
        f"{gained} of {count} rejected answers became more likely."
        if gained
        else "No rejected answer became more likely.",
        gained,
        0,
        0,
    )


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
            return _report([check], [], started)
        reference = read_adapter(current, manifest) if current else None
        selection = select(load_examples(examples) if examples else [])
        general = 1 + len(load_probes())
        kept = {who: self._recall(who) for who in dict.fromkeys((None, reference, candidate))}
        self._steps = general * sum(value is None for value in kept.values()) + 2 * selection.steps
        base = kept[None] or self._general(None)
        ref_general = (kept[reference] or self._general(reference)) if reference else base
        ref_batch = self._particular(reference, selection)
        try:
            new_general = kept[candidate] or self._general(candidate)
            finite = math.isfinite(new_general.perplexity)
            new_batch = self._particular(candidate, selection) if finite else Particular(None, (), ())
        except Unavailable as error:
            return _report([Check("runtime", "Works on this runtime", False, error.message)], [], started)
        against = reference.name if reference else "the base model"
        structure = Check(
            "structure",
            "Structure of the file",
            True,
            f"{candidate.size / 1e6:.1f} MB, rank {candidate.meta.rank}, fits {manifest.name}; all finite.",
        )
        checks = verdicts(Judged(base, ref_general, new_general, ref_batch, new_batch), limits, against)
        answers = [
            {
                "question": question(example),
                "before": before,
                "after": after,
                "expected": example.target if example.taught else None,
            }
            for example, before, after in zip(
                selection.shown, ref_batch.answers, new_batch.answers, strict=False
            )
        ]
        report = _report([structure, *checks], answers, started)
        return {
            **report,
            "sha256": candidate.sha256,
            "reference": reference.name if reference else None,
            "fingerprint": list(new_general.fingerprint),
        }

    def _use(self, adapter: Adapter | None) -> OfflineModel:
        if self._model is None:
            capacity = max(GENERIC_TOKENS, EXAMPLE_TOKENS) + 64
            self._model = OfflineModel(self._bundle, adapter, threads=self._threads, capacity=capacity)
        else:
            self._model.use(adapter)
        return self._model

    def _general(self, adapter: Adapter | None) -> General:
        found = measure_general(self._use(adapter), self._tokenizer, self._tick)
        self._remember(adapter, found)
        return found

    def _particular(self, adapter: Adapter | None, selection: Selection) -> Particular:
        if not selection.steps:
            return Particular(None, (), ())
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

    def _recall(self, adapter: Adapter | None) -> General | None:
        try:
            entry = self._kept()[self._key(adapter)]
            return General(float(entry["perplexity"]), tuple(entry["probes"]), tuple(entry["fingerprint"]))
        except (KeyError, TypeError, ValueError):
            return None

    def _remember(self, adapter: Adapter | None, general: General) -> None:
        if self._cache is None or not math.isfinite(general.perplexity):
            return
        kept = {**self._kept(), self._key(adapter): asdict(general)}
        write_atomic(self._cache, json.dumps(dict(list(kept.items())[-CACHE_ENTRIES:])))


def _report(checks: Sequence[Check], answers: list[dict[str, Any]], started: float) -> dict[str, Any]:
    failed = [check for check in checks if not check.passed]
    if failed:
        summary = "Rejected. " + " ".join(f"{check.title}: {check.detail}" for check in failed)
    else:
        summary = f"Passed all {len(checks)} checks."
    return {
        "passed": not failed,
        "summary": summary,
        "checks": [asdict(check) for check in checks],
        "answers": answers,
        "seconds": round(time.monotonic() - started, 1),
    }


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
        report = gate.judge(args.adapter, args.current, args.examples, limits)
        write_atomic(args.out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except (ShammahError, OSError, ValueError) as error:
        _say(event="error", message=str(error))
        return 1
    _say(event="done", passed=report["passed"], summary=report["summary"], seconds=report["seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
