"""The daemon: whether it answers, and whether it is this program."""

from __future__ import annotations

from collections.abc import Iterator

from appliance import __version__
from appliance.doctor.box import Box, Tell, written_down
from appliance.doctor.finding import Finding, error, note, ok, warning

LOG = "The log says why: `tail -n 50 {log}`."


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """What it says of itself."""
    daemon = box.standing
    log = LOG.format(log=box.home.logs / "shammah.log")
    if daemon is None:
        left = written_down(box.home)
        if left is None:
            yield note("No daemon runs on this home.", "`shammah daemon` starts one.")
        else:
            yield warning(
                f"No daemon runs on this home, and the last one (process {left.pid}) did not take leave: it "
                "crashed or was killed.",
                f"Start it: `shammah daemon`. Nothing that was acknowledged is lost. {log}",
            )
        return
    if daemon.problem:
        yield error(f"Process {daemon.pid} does not answer: {daemon.problem}", f"Restart it. {log}")
        return
    if not daemon.healthy:
        yield error("The daemon hangs: a step of the model does not end.", f"Restart it. {log}")
    elif not daemon.ready:
        yield error(
            "The daemon runs, but does not answer requests.", f"It may be starting or stopping. {log}"
        )
    else:
        yield ok(f"Process {daemon.pid} serves {daemon.host} port {daemon.port}, healthy and ready.")
    if daemon.version not in ("", __version__):
        yield warning(
            f"The daemon is of release {daemon.version}, this command of {__version__}.",
            "Restart the daemon, so that it runs what is installed.",
        )
