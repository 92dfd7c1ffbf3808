"""The database: damage, references that lead nowhere, and whether its schema is this release's."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import ShammahError
from appliance.store.reading import inspect
from appliance.store.settings import last_rescue

LONG = 30 * 86400.0
"""So long it is told of what was done to the files under a running box."""

RESTORE = (
    "Stop the daemon and put the last good backup in its place: `shammah restore FILE` (they are in "
    "backups/). "
    "What is here now is kept aside."
)


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """A quick look reads the pages; a thorough one compares the indexes with the tables too."""
    path = box.home.store
    if not path.exists():
        if box.standing is not None:
            yield error(
                f"{path} is gone while the daemon runs.",
                "Stop the daemon before anything else is lost, then restore a backup: `shammah restore "
                "FILE`.",
            )
        else:
            yield note("There is no database yet; the first start makes it.")
        return
    try:
        found = inspect(path, thorough=not box.quick)
    except ShammahError as problem:
        yield error(problem.message, RESTORE)
        return
    if found.problems:
        yield error(f"{path.name} is damaged: {'; '.join(found.problems)}.", RESTORE)
    if found.orphans:
        yield error(f"{found.orphans} rows of {path.name} refer to others that are gone.", RESTORE)
    if found.schema > found.known:
        yield error(
            f"{path.name} was written by a newer release (schema {found.schema}; this one knows "
            f"{found.known}).",
            "Install that release again, or restore a backup from before the upgrade: `shammah restore "
            "FILE`.",
        )
    elif found.schema < found.known:
        yield (warning if box.standing else note)(
            f"{path.name} is of an older release (schema {found.schema} of {found.known}).",
            "Restart the daemon: each start brings it up to date."
            if box.standing
            else "The next start brings it up to date. The way back is a backup that the older release made.",
        )
    rescued = last_rescue(box.store.settings) if box.store is not None else None
    if rescued is not None and box.now - rescued.at < LONG:
        on = time.strftime("%Y-%m-%d %H:%M", time.localtime(rescued.at))
        told = (
            f"{', '.join(rescued.files)}: removed or replaced under the running box, {on}. Nothing is lost."
        )
        fix = f"Find what did that (a clean-up, a sync program): only the box may change {box.home.root}."
        if rescued.aside:
            told += f" What lay there is kept as {rescued.aside}."
            fix += f" `rm {shlex.quote(str(box.home.root / rescued.aside))}*` when nobody wants it."
        yield note(told, fix)
    if not (found.problems or found.orphans) and found.schema == found.known:
        how = "its pages are sound" if box.quick else "pages, indexes and references are sound"
        yield ok(f"{path.name}, schema {found.schema}: {how}.")
