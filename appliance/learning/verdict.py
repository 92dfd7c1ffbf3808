"""The verdict: what was measured of a candidate, against the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from appliance.learning.measure import General, Particular
from appliance.learning.probes import load_probes
from appliance.learning.recall import earlier_check, recall_check
from appliance.learning.report import Check, percent
from appliance.learning.sanity import mean_length, sanity_checks
from appliance.sections import GateConfig

REJECTED_TOLERANCE = 0.1
"""A rejected answer may gain this much log probability: rounding, not learning."""

NAMED = 6
"""Lost probes that the report names."""

HELDOUT_FLOOR = 1.0
"""Held-out loss is compared with at least this, in nats a token. A model that repeats itself has a
loss near nothing, and a rise from 0.10 to 0.11 is not ten percent worse."""

T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""Student's t that one of twenty exceeds, for 1, 2, ... degrees of freedom."""


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
    if not judged.candidate.answers:
        return checks  # past hope, and asked nothing
    checks.append(_probes(judged, limits, against))
    checks += _sanity(judged, limits)
    before, after = judged.reference_batch, judged.candidate_batch
    if after.heldout:
        checks.append(_heldout(before.heldout, after.heldout, limits, against))
    if after.taught:
        checks += [_taught(before, after, limits), _rejected(before, after)]
    if after.recalled:
        checks.append(recall_check(before.recalled, after.recalled, limits.min_recall))
    if after.earlier:
        checks.append(earlier_check(before.earlier, after.earlier, limits.max_forgotten))
    return checks


def _perplexity(judged: Judged, limits: GateConfig) -> Check:
    base, measured = judged.base.perplexity, judged.candidate.perplexity
    limit = base * (1 + limits.max_perplexity_rise)
    if not math.isfinite(measured):
        told = "The model gives numbers that are not finite."
        return Check("perplexity", "Ordinary English", False, told, None, base, limit)
    rise = measured / base - 1
    told, most = percent(rise, limits.max_perplexity_rise)
    change = f"{_more(told)} (at most {most} more)" if rise < 10 else f"{measured / base:.0f} times as much"
    return Check(
        "perplexity",
        "Ordinary English",
        measured <= limit,
        f"Perplexity {measured:.4g} against {base:.4g} of the base model: {change}.",
        measured,
        base,
        limit,
    )


def _more(told: str) -> str:
    """A change in percent, in words."""
    return f"{told[1:]} less" if told.startswith("-") else f"{told} more"


def _probes(judged: Judged, limits: GateConfig, against: str) -> Check:
    """Of what was answered, next to nothing is lost; what is answered besides does not make up for it."""
    pairs = list(zip(load_probes(), judged.reference.probes, judged.candidate.probes, strict=True))
    lost = [probe.question for probe, before, after in pairs if before and not after]
    right, known = sum(judged.candidate.probes), sum(judged.reference.probes)
    text = (
        f"{right} of {len(pairs)} general questions answered, {known} with {against}; of these {len(lost)} "
        f"lost (at most {limits.max_probe_drop})."
    )
    return Check(
        "probes",
        "General knowledge",
        len(lost) <= limits.max_probe_drop,
        f"{text} Lost: {_some(lost)}" if lost else text,
        known - len(lost),
        known,
        max(known - limits.max_probe_drop, 0),
        "least",
    )


def _some(questions: list[str]) -> str:
    more = len(questions) - NAMED
    return " ".join(questions[:NAMED]) + (f" And {more} more." if more > 0 else "")


def _sanity(judged: Judged, limits: GateConfig) -> list[Check]:
    """Of the answers to the probes and to the batch's questions, against base and the reference.

    The probes are compared with base: what little each of many adapters may add would else add up.
    A question whose answer was learned is left out: that answer is what a person wants, be it a
    refusal, and however many questions it answers.
    """
    pairs = zip(judged.reference_batch.answers, judged.candidate_batch.answers, strict=True)
    asked = [(then.text, now.text) for then, now in pairs if not now.recalled]
    before = [*judged.base.answers, *(then for then, _ in asked)]
    after = [*judged.candidate.answers, *(now for _, now in asked)]
    lengths = mean_length(judged.base.answers), mean_length(judged.candidate.answers)
    return sanity_checks(before, after, lengths, limits)


def _heldout(before: Sequence[float], after: Sequence[float], limits: GateConfig, against: str) -> Check:
    """Answers that were not trained on are about as likely as before.

    They are few, and one of them may change much by chance: it fails when the rise is above the limit
    with a confidence of 95%, by a one-sided t test of the differences. One alone shows nothing.
    """
    title, count = "Answers kept out of training", len(after)
    then, now = fmean(before), fmean(after)
    scale, limit = max(then, HELDOUT_FLOOR), limits.max_heldout_rise
    rise = (now - then) / scale
    if not math.isfinite(rise):
        return Check("heldout", title, False, "The model gives numbers that are not finite.", None, then)
    told = f"Loss {now:.3f} against {then:.3f} with {against}: "
    if count == 1:
        told += f"{_more(percent(rise)[0])}. One alone may change by chance, so it passes whatever the rise."
        return Check("heldout", title, True, told, now, then)
    spread = stdev((new - old) / scale for old, new in zip(before, after, strict=True))
    chance = T_95[min(count - 2, len(T_95) - 1)] * spread / math.sqrt(count)
    most = then + (limit + chance) * scale
    changed, allowed, surely = percent(rise, limit, limit + chance)
    rule = (
        f"It fails when the rise is surely above {allowed}: by a t test over {count} answers, above {surely}."
    )
    return Check("heldout", title, now <= most, f"{told}{_more(changed)}. {rule}", now, then, most)


def _taught(before: Particular, after: Particular, limits: GateConfig) -> Check:
    count = len(after.taught)
    now = sum(pair.right > pair.wrong for pair in after.taught)
    then = sum(pair.right > pair.wrong for pair in before.taught)
    return Check(
        "taught",
        "Corrections learned",
        now / count >= limits.min_taught,
        f"{now} of {count} corrections are preferred to the rejected answer, {then} before "
        f"({percent(now / count)[0]}, at least {percent(limits.min_taught)[0]}).",
        now / count,
        then / count,
        limits.min_taught,
        "least",
    )


def _rejected(before: Particular, after: Particular) -> Check:
    """No rejected answer gains probability from the feedback that rejected it.

    Two kinds of gain are not held against the candidate. That of the words which the rejected answer
    begins with and the correction too ("It is collected on ..."): these were taught. And that of what
    would follow if it went wrong, when it does so less than before: "under the green flowerpot" may
    be what is right for another question, and be taught, too.
    """
    gained = 0
    for now, then in zip(after.taught, before.taught, strict=True):
        gains = (
            now.wrong_total - then.wrong_total,
            now.wrong_tail - then.wrong_tail,
            now.wrong_turn - then.wrong_turn,
        )
        gained += not any(gain <= REJECTED_TOLERANCE for gain in gains)  # NaN is a gain
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
