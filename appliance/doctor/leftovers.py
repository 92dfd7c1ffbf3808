"""What interrupted work left behind, and what waits to be finished or deleted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from appliance.backup import restore
from appliance.doctor.box import Box, Tell
from appliance.doctor.disk import size_of
from appliance.doctor.finding import Finding, note, ok, warning
from appliance.learning.resumption import was_paused

OLD = 3600.0
"""Seconds after which nobody writes to a temporary file any more."""
LONG = 30 * 86400.0
TEMPORARY = (
    ".*",
    "adapters/.*",
    "runs/*/.*",
    "backups/.*",
    "backups/draft.tar.gz",
    "models/.import-*",
    "models/*/.*",
)
KEPT = (".lock", ".restore", ".restore.json")
"""Hidden names that are no leftovers; the second and third are told of otherwise."""


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Starts and imports clear away most by themselves."""
    root = box.home.root
    if not root.exists():
        return
    clean = True
    stale = [path for pattern in TEMPORARY for path in sorted(root.glob(pattern)) if _stale(path, box.now)]
    if stale:
        clean = False
        names = ", ".join(str(path.relative_to(root)) for path in stale[:3])
        yield warning(
            f"Interrupted work left {sum(map(size_of, stale)) / 1e6:,.1f} MB in "
            f"{names}{', …' if len(stale) > 3 else ''}.",
            f"`rm -r {' '.join(shlex.quote(str(path)) for path in stale[:10])}`",
        )
    if restore.pending(box.home):
        clean = False
        yield note(
            "A restore waits for the next start.",
            "Restart the daemon to carry it out; *Settings, Backup* in the console can give it up.",
        )
    elif (root / ".restore").exists():
        clean = False
        yield warning(
            "A restore was not prepared to its end.", f"Begin it again, or `rm -r {root / '.restore'}`."
        )
    for aside in restore.asides(box.home):
        if box.now - aside.at > LONG:
            clean = False
            yield note(
                f"{aside.name}, from before a restore, takes {aside.size / 1e6:,.0f} MB.",
                f"`rm -r {shlex.quote(str(root / aside.name))}` when nobody wants it back.",
            )
    broken = root / "config.toml.broken"
    if broken.exists():
        clean = False
        yield note(
            f"{broken.name} holds settings that could not be used.",
            f"`rm {shlex.quote(str(broken))}` when it is mended.",
        )
    dead = list(_dead_runs(box))
    if dead:
        clean = False
        told = f"{', '.join(dead[:3])} {'was' if len(dead) == 1 else 'were'} cut off."
        if box.standing is None:
            yield note(told, "The next start goes on with it, or gives its examples back to the queue.")
        else:
            yield warning(told, "Restart the daemon: it goes on, or gives its examples back to the queue.")
    if clean:
        yield ok("Nothing is left of interrupted work.")


def _stale(path: Path, now: float) -> bool:
    with suppress(OSError):
        return path.name not in KEPT and path.lstat().st_mtime < now - OLD
    return False


def _dead_runs(box: Box) -> Iterator[str]:
    """Runs without a verdict that no process works on."""
    if box.store is None:
        return
    learning = box.standing.learning if box.standing else {}
    going_on = (learning.get("run") or {}).get("id")
    for run in box.store.runs.unfinished():
        alive = run.pid is not None and psutil.pid_exists(run.pid)
        young = box.now - run.created < OLD and box.standing is not None
        if run.id != going_on and not alive and not young and not was_paused(run):
            yield run.id
