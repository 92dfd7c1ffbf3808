"""The gate's report: lines of checks, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Bound = Literal["most", "least"]


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: stable word.
        title: the same for people.
        measured: of the candidate.
        reference: of what it is compared with.
        limit: what `measured` has to keep to: the value that decided. None when no number did.
        bound: whether that is the most or the least it may be.
        detail: what was measured and by which rule it passed or not, in a sentence or two.
    """

    name: str
    title: str
    passed: bool
    detail: str
    measured: float | None = None
    reference: float | None = None
    limit: float | None = None
    bound: Bound = "most"


def percent(*shares: float) -> list[str]:
    """Shares as percentages, with as many digits as tell different ones apart."""
    for digits in range(6):
        told = [f"{share:.{digits}%}" for share in shares]
        if len(set(told)) == len(set(shares)):
            break
    return told


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
