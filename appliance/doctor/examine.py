"""All checks in their order, and what came of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from appliance import __version__
from appliance.doctor import (
    adapters,
    backups,
    certificates,
    clock,
    config,
    daemon,
    database,
    disk,
    learning,
    leftovers,
    memory,
    models,
    permissions,
    ports,
    trainer,
    unit,
)
from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import LEVELS, Finding, Level, worst
from appliance.errors import ShammahError

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Takes what is looked at, and how much of the whole is done, from 0 to 1."""


@dataclass(frozen=True)
class Check:
    """One thing that is looked at.

    Attributes:
        id: a word; stable, for programs.
        title: for people.
        weight: its share of a whole examination's time, roughly.
    """

    id: str
    title: str
    look: Callable[[Box, Tell], Iterable[Finding]]
    weight: float = 1.0


CHECKS = (
    Check("config", "Settings", config.look),
    Check("daemon", "Daemon", daemon.look),
    Check("ports", "Address", ports.look),
    Check("unit", "Service", unit.look),
    Check("permissions", "Permissions", permissions.look),
    Check("disk", "Disk", disk.look),
    Check("memory", "Memory", memory.look),
    Check("clock", "Clock", clock.look),
    Check("certificates", "Certificates", certificates.look),
    Check("models", "Models", models.look, 20),
    Check("adapters", "Adapters", adapters.look, 5),
    Check("database", "Database", database.look, 5),
    Check("backups", "Backups", backups.look, 5),
    Check("trainer", "Trainer", trainer.look, 5),
    Check("learning", "Learning", learning.look),
    Check("leftovers", "Leftovers", leftovers.look),
)
"""What the box stands on first: when that is wrong, much of the rest is too."""


@dataclass(frozen=True)
class Report:
    """What an examination found.

    Attributes:
        at: when it ended, in Unix time.
        quick: hashes were not compared.
        findings: in the order of the checks.
    """

    at: float
    quick: bool
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Level:
        return worst(self.findings)

    def count(self, level: Level) -> int:
        """How many findings are of that level."""
        return sum(finding.level == level for finding in self.findings)

    def of(self, check: str) -> tuple[Finding, ...]:
        """What that check found."""
        return tuple(finding for finding in self.findings if finding.check == check)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "healthy": self.worst != "error",
            "version": __version__,
            "at": self.at,
            "quick": self.quick,
            "counts": {level: self.count(level) for level in LEVELS},
            "findings": [
                {"check": one.check, "level": one.level, "seen": one.seen, "fix": one.fix}
                for one in self.findings
            ],
        }


def examine(box: Box, progress: Progress = lambda title, done: None) -> Report:
    """Make all checks. One that fails is a finding itself, and hinders no other."""
    whole = sum(check.weight for check in CHECKS)
    begun, findings = 0.0, []
    for check in CHECKS:
        start, share = begun / whole, check.weight / whole

        def tell(done: float, title: str = check.title, start: float = start, share: float = share) -> None:
            progress(title, start + share * done)

        tell(0.0)
        findings += [replace(finding, check=check.id) for finding in _findings(check, box, tell)]
        begun += check.weight
    progress("Done", 1.0)
    return Report(time.time(), box.quick, tuple(findings))


def _findings(check: Check, box: Box, tell: Tell) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check.look(box, tell))
    except PermissionError as problem:
        found.append(
            Finding(
                "error",
                f"{problem.filename or 'Something'} cannot be read.",
                "Run this as the user that the daemon runs as, or as root.",
            )
        )
    except (ShammahError, OSError) as problem:
        found.append(
            Finding("warning", f"This could not be looked at: {problem}", "Try again; the log may say more.")
        )
    except Exception as problem:  # of whatever is broken, the rest must still be told
        logger.exception("The check of %s failed", check.id)
        told = f"{type(problem).__name__}: {problem}"
        found.append(
            Finding("warning", f"This check failed itself ({told}).", "This is a bug: please report it.")
        )
    return found
