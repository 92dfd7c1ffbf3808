"""The gate's report: lines of checks, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


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


def build_report(checks: Sequence[Check], answers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The report as it is stored; passed when every check did."""
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
        "seconds": round(seconds, 1),
    }
