"""The files by which systemd runs this installation: those in `systemd/`, filled in.

Everything is decided here and nothing done: `commands/install.py` writes what this says.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import appliance
from appliance.errors import Unavailable
from appliance.network.listening import split_bind

HOME = Path("/var/lib/shammah")
USER = "shammah"
SERVICE, SOCKET = "shammah.service", "shammah-trainer.socket"
UNITS = (SERVICE, SOCKET, "shammah-trainer@.service", "shammah-training.slice")
SYSUSERS = Path("/etc/sysusers.d/shammah.conf")
COMMAND = Path("/usr/local/bin/shammah")
UNIT_DIRECTORY = Path("/etc/systemd/system")

PAGE_CACHE_MB = 1024
"""What the slice's limit counts and [train] memory_limit_mb does not: files read, and the launcher."""
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
"""What `ProtectHome=` hides. What the installation needs of it is shown to the unit."""


@dataclass(frozen=True)
class File:
    """One file of the installation."""

    path: Path
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Installation:
    """What the units have to know.

    Attributes:
        python: the interpreter that has the package.
        places: what it reads of the disk.
        arguments: of `shammah daemon`.
        memory_mb: [train] memory_limit_mb.
        port: what it listens on: below 1024 takes a capability.
    """

    python: Path
    places: tuple[Path, ...]
    arguments: tuple[str, ...]
    memory_mb: int
    port: int


def this_installation(bind: str | None, configured_bind: str, memory_mb: int) -> Installation:
    """What runs right now.

    Args:
        bind: an address to be given to the daemon.
        configured_bind: the one it takes otherwise.
        memory_mb: [train] memory_limit_mb.
    """
    package = Path(appliance.__file__).resolve().parents[1]
    return Installation(
        python=Path(sys.executable),
        places=(Path(sys.prefix), Path(sys.base_prefix).resolve(), package),
        arguments=("--bind", bind) if bind else (),
        memory_mb=memory_mb,
        port=min((port for _, port in split_bind(bind or configured_bind) if port), default=0),
    )


def files(installation: Installation) -> list[File]:
    """All files, filled in."""
    shown = _shown(installation.places)
    values = {
        "PYTHON": _quoted(installation.python),
        "DOCS": _docs().as_uri() if _docs().exists() else "https://pypi.org/project/shammah/",
        "ARGUMENTS": "".join(f" {argument}" for argument in installation.arguments),
        "CAPABILITIES": "CAP_NET_BIND_SERVICE" if 0 < installation.port < 1024 else "",
        "PROTECT_HOME": "tmpfs" if shown else "yes",
        "SHOWN": " ".join(_quoted(path) for path in shown),
        "MEMORY_MB": str(installation.memory_mb),
        "MEMORY_MAX_MB": str(installation.memory_mb + PAGE_CACHE_MB),
    }
    found = [File(UNIT_DIRECTORY / name, _filled(name, values)) for name in UNITS]
    found.append(File(SYSUSERS, _filled(SYSUSERS.name, values)))
    found.append(File(COMMAND, _filled("shammah.sh", values), 0o755))
    return found


def ours(file: File, text: str) -> bool:
    """Whether a file that is there is one of an earlier install, or somebody else's."""
    return file.path != COMMAND or ("appliance.cli" in text and "SHAMMAH_HOME" in text)


def check_readable(installation: Installation) -> None:
    """Whether the daemon's user can run what is installed.

    Raises:
        Unavailable: a directory on the way is closed to others.
    """
    shown = _shown(installation.places)
    for place in installation.places:
        if any(place.is_relative_to(path) for path in shown):
            continue  # the unit gets it put before its eyes
        for directory in (place, *place.parents):
            if not directory.stat().st_mode & stat.S_IXOTH:
                raise Unavailable(
                    f"The user {USER} could not run {installation.python}: {directory} is closed to others. "
                    f"Run `chmod o+x {directory}`, or move the installation."
                )


def _shown(places: tuple[Path, ...]) -> list[Path]:
    hidden = {place for place in places if any(place.is_relative_to(home) for home in _HIDDEN)}
    return sorted(place for place in hidden if not any(other in place.parents for other in hidden))


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (_templates() / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)


def _templates() -> Path:
    """Beside the package in a checkout, under the data prefix when installed."""
    checkout = Path(__file__).parents[1] / "systemd"
    installed = Path(sysconfig.get_path("data")) / "share" / "shammah" / "systemd"
    for root in (checkout, installed):
        if (root / SERVICE).is_file():
            return root
    raise FileNotFoundError(f"The units are neither in {checkout} nor in {installed}.")


def _docs() -> Path:
    return Path(__file__).parents[1] / "docs" / "operate.md"


def _quoted(path: Path) -> str:
    """As systemd and a shell take it; blanks are all that paths of an installation are allowed to have."""
    text = os.fspath(path)
    return f'"{text}"' if " " in text else text
