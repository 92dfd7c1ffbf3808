"""Backups: whether there is a good one, and how much would be lost with it alone."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.backup.archive import Backup, backups, verify
from appliance.backup.automatic import SETTLE_SECONDS
from appliance.doctor.box import Box, Tell
from appliance.doctor.clock import span
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import InvalidRequest

OLD = 8 * 86400.0
"""Seconds; a weekly one that was made is younger."""
FIRST = 600.0
"""Seconds that the first one may take, and wait for a run to end."""
MAKE = "`shammah backup --output DIR` makes one, and puts a copy on another disk."


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """A quick look believes the newest one; a whole one reads it through."""
    if box.store is None and not box.home.backups.is_dir():
        return
    found = backups(box.home)
    damaged = [backup for backup in found if backup.manifest is None]
    good = [backup for backup in found if backup.manifest is not None]
    if good and not box.quick and not _whole(good[0]):
        damaged.append(good.pop(0))
    for backup in damaged:
        yield (warning if good else error)(f"{backup.name} is damaged.", f"`rm {backup.path}`. {MAKE}")
    if not good:
        if not damaged and box.store is not None and _nothing_to_lose(box):
            yield note("There is no backup yet, and nothing that would be lost.")
        elif not damaged and _about_to_begin(box):
            yield note(
                "There is no backup yet. The box makes the first by itself, some minutes after its start."
            )
        else:
            yield warning("There is no good backup: with this disk all that was learned is lost.", MAKE)
        return
    newest = good[0].manifest
    assert newest is not None
    age = box.now - newest.created
    if age > OLD:
        yield warning(f"The newest good backup is {span(age)} old.", MAKE)
    else:
        read = "" if box.quick else ", and was read through just now"
        yield ok(f"The newest backup is {span(max(age, 0))} old, of release {newest.version}{read}.")


def _whole(backup: Backup) -> bool:
    try:
        verify(backup.path)
    except (InvalidRequest, OSError):
        return False
    return True


def _about_to_begin(box: Box) -> bool:
    """Whether the daemon has not run for as long as its first backup waits, and takes."""
    every = box.config.backup.every_hours * 3600
    if not every or box.standing is None or box.standing.problem:
        return False
    return 0 <= box.now - box.standing.started < min(SETTLE_SECONDS, every / 10) + FIRST


def _nothing_to_lose(box: Box) -> bool:
    assert box.store is not None
    return not any(box.store.examples.counts().values()) and box.store.runs.count() == 0
