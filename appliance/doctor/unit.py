"""What starts the box again after a crash or a power cut: systemd, or a container's restart policy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning

UNIT = "shammah.service"
ASKED = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NRestarts",
    "Result",
    "WatchdogUSec",
    "MainPID",
    "NeedDaemonReload",
)
OFTEN = 3
_BOOTED = Path("/run/systemd/system")  # as sd_booted(3) tells
_MARKS = {"/run/.containerenv": "Podman", "/.dockerenv": "Docker"}


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Ask systemd where it is in charge."""
    command = shutil.which("systemctl")
    if command is None or not _BOOTED.exists():
        if inside := container():
            yield ok(f"In a container ({inside}): its restart policy says whether the box is started again.")
        else:
            yield note(
                "systemd is not in charge here, so nothing starts the box again after a crash or a power "
                "cut.",
                "Have whatever supervises programs on this machine run `shammah daemon`.",
            )
        return
    try:
        said = subprocess.run(
            [command, "show", UNIT, f"--property={','.join(ASKED)}"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as problem:
        yield note(f"systemd does not answer: {problem}", f"`systemctl status {UNIT}`")
        return
    yield from judge(properties(said), None if box.standing is None else box.standing.pid)


def properties(said: str) -> dict[str, str]:
    """What `systemctl show` printed, by name."""
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def judge(unit: Mapping[str, str], daemon: int | None) -> Iterator[Finding]:
    """What the unit's state means.

    Args:
        unit: its properties.
        daemon: the process that serves this home, if one does.
    """
    log = f"`journalctl --unit {UNIT} --lines 50` says why."
    if unit.get("LoadState") in (None, "not-found"):
        yield note(
            "The box is not installed as a service: nothing starts it again after a crash or a power cut.",
            "`shammah install` does that.",
        )
        return
    if unit["LoadState"] != "loaded":
        yield error(f"{UNIT} cannot be loaded ({unit['LoadState']}).", f"`systemd-analyze verify {UNIT}`")
        return
    state, main = unit.get("ActiveState", ""), int(unit.get("MainPID") or 0)
    if state == "failed":
        yield error(
            f"{UNIT} failed ({unit.get('Result', 'unknown')}), and is not started any more.",
            f"{log} Then `systemctl reset-failed {UNIT}` and `systemctl start {UNIT}`.",
        )
    elif state == "activating":
        yield warning(f"{UNIT} is starting ({unit.get('SubState', '')}).", f"If it stays so: {log}")
    elif state != "active" and daemon is not None:
        yield note(f"{UNIT} is installed but does not run: the daemon of this home was started otherwise.")
    elif state != "active":
        yield warning(f"{UNIT} is installed but does not run.", f"`systemctl start {UNIT}`")
    elif daemon is not None and main not in (0, daemon):
        yield note(f"{UNIT} runs process {main}, which serves another home than this one.")
    else:
        yield ok(f"{UNIT} runs.")
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "alias", "generated"):
        yield warning(f"{UNIT} is not started when the machine starts.", f"`systemctl enable {UNIT}`")
    if (restarts := int(unit.get("NRestarts") or 0)) > 0:
        times = "once" if restarts == 1 else f"{restarts} times"
        found = f"{UNIT} died and was started again {times} since it was last started by hand."
        yield warning(found, log) if restarts >= OFTEN else note(found, log)
    if state == "active" and unit.get("WatchdogUSec") in ("0", "infinity"):
        yield note(
            f"{UNIT} has no watchdog: one that hangs is not started again.", "`shammah install` sets one."
        )
    if unit.get("NeedDaemonReload") == "yes":
        yield warning(f"The file of {UNIT} was changed since systemd read it.", "`systemctl daemon-reload`")


def container() -> str:
    """Which kind of container this is; empty when it is none that can be told."""
    for mark, name in _MARKS.items():
        if Path(mark).exists():
            return name
    told = os.environ.get("container", "")  # noqa: SIM112  (so systemd and podman write it)
    if not told:
        try:
            told = Path("/run/systemd/container").read_text(encoding="utf-8").strip()
        except OSError:
            told = ""
    return told or ("Kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else "")
