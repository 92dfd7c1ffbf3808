"""The clock: set by the network, not before what was already written, not set while the daemon runs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import appliance
from appliance.doctor.box import Box, Standing, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import ShammahError
from appliance.store.reading import newest

SLACK = 120.0
"""Seconds that clocks may differ by without meaning anything."""
DAY = 86400.0
SET = "Set the clock, let it be set by the network (`timedatectl set-ntp true`), and restart the daemon."
_UNSYNCHRONISED = 5  # what adjtimex returns then


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """When runs start, when logins and certificates end, what is thrown away: all go by it."""
    wrong = False
    latest = None
    if box.store is not None:
        with suppress(ShammahError):
            latest = newest(box.store.database)
    if latest is not None and latest > box.now + SLACK:
        wrong = True
        yield error(
            f"The clock is {span(latest - box.now)} behind the newest entry in the store: it is wrong now, "
            f"or was "
            "when that was written.",
            SET,
        )
    installed = Path(appliance.__file__).stat().st_mtime
    if installed > box.now + DAY:
        wrong = True
        yield error(f"The clock is {span(installed - box.now)} behind the installation of this program.", SET)
    if box.standing is not None and (jump := _jump(box.standing, box.now)):
        wrong = True
        yield warning(
            f"The clock was set {span(abs(jump))} {'ahead' if jump > 0 else 'back'} since the daemon "
            f"started.",
            "If it is right now, restart the daemon, so that its timers go by it.",
        )
    synchronised = network_time()
    if synchronised is False:
        yield warning(
            "The clock is not set by the network, and will drift.",
            "`timedatectl set-ntp true`; where that is unknown, install systemd-timesyncd or chrony. In a "
            "container the host's clock counts.",
        )
    elif synchronised is None:
        yield note("Whether the clock is set by the network cannot be told here.")
    elif not wrong:
        yield ok("The clock is set by the network.")


def network_time() -> bool | None:
    """Whether the clock is in step with others; None when that cannot be told."""
    command = shutil.which("timedatectl")
    if command is not None and Path("/run/systemd/system").exists():
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                [command, "show", "--property=NTPSynchronized", "--value"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
            return said.stdout.strip() == "yes"
    # The kernel's own word, which also holds in a container.
    room = ctypes.create_string_buffer(1024)  # of a structure of some 200 bytes; zeros ask without setting
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(room)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _UNSYNCHRONISED


def _jump(standing: Standing, now: float) -> float:
    """Seconds that the clock was set by since the daemon started; 0 when it was not.

    It wrote down its start by two clocks, of which nobody sets the second.
    """
    if standing.booted is None:
        return 0.0
    lasted = time.clock_gettime(time.CLOCK_BOOTTIME) - standing.booted
    jump = now - standing.started - lasted
    return jump if abs(jump) > SLACK else 0.0


def span(seconds: float) -> str:
    """A time for people, in its largest unit."""
    for unit, size in (("day", DAY), ("hour", 3600.0), ("minute", 60.0)):
        if seconds > 0.995 * size:
            count = round(seconds / size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{round(seconds)} seconds"
