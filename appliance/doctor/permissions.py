"""Who may read and write the home: it holds private text, keys and the owner's password (as hashes)."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, ok, warning

SECRETS = (
    "store.db",
    "store.db-wal",
    "store.db-shm",
    "daemon.json",
    "training_queue.jsonl",
    "backups/*.tar.gz",
    "before-restore_*",
    "runs/*/*.jsonl",
)
OTHERS = stat.S_IRWXG | stat.S_IRWXO
MOST = 50_000
"""Files that are looked at: beyond, nobody waits for the rest."""


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """The home's own mode shuts everything in it, so what lies open inside weighs less."""
    root = box.home.root
    if not root.exists():
        return
    about = root.stat()
    shut = not about.st_mode & OTHERS
    if not shut:
        yield error(
            f"Others on this machine can look into {root} (mode {_mode(about.st_mode)}).",
            f"`chmod 700 {shlex.quote(str(root))}`",
        )
    secret = [path for pattern in SECRETS for path in sorted(root.glob(pattern))]
    secret += [path for path in sorted(root.glob("tls/*")) if _holds_key(path)]
    wide = [path for path in secret if _open_to_others(path)]
    if wide:
        names = ", ".join(str(path.relative_to(root)) for path in wide[:3])
        yield (warning if shut else error)(
            f"Others may read {names}{', …' if len(wide) > 3 else ''} (mode {_mode(wide[0].stat().st_mode)})"
            f"{', were the directory not shut' if shut else ''}.",
            f"`chmod go= {' '.join(shlex.quote(str(path)) for path in wide[:10])}`",
        )
    owner = _user_of_daemon(box, about.st_uid)
    foreign = _not_owned_by(root, owner)
    if foreign:
        count = f"{len(foreign)} files and directories" if len(foreign) > 1 else "1 file or directory"
        yield error(
            f"{count} in {root} belong{'s' if len(foreign) == 1 else ''} to another user than "
            f"{_name(owner)}, "
            f"whom the daemon runs as: "
            f"{foreign[0].relative_to(root.parent)}{', …' if len(foreign) > 1 else ''}.",
            f"`chown -R {_name(owner)} {shlex.quote(str(root))}`",
        )
    if shut and not wide and not foreign:
        yield ok(f"Only {_name(owner)} can read what is in {root}.")


def _user_of_daemon(box: Box, otherwise: int) -> int:
    if box.standing is not None:
        with suppress(psutil.Error):
            return int(psutil.Process(box.standing.pid).uids().effective)
    return otherwise


def _not_owned_by(root: Path, owner: int) -> list[Path]:
    found: list[Path] = []
    seen = 0
    for directory, directories, files in os.walk(root):
        for name in (".", *files, *directories):
            seen += 1
            path = Path(directory, name)
            with suppress(OSError):  # it went just now
                if path.lstat().st_uid != owner and path not in found:
                    found.append(path)
        if seen > MOST:
            break
    return found


def _holds_key(path: Path) -> bool:
    return path.is_file() and b"PRIVATE KEY-----" in path.read_bytes()


def _open_to_others(path: Path) -> bool:
    try:
        return not path.is_symlink() and bool(path.stat().st_mode & OTHERS)
    except OSError:
        return False


def _mode(mode: int) -> str:
    return f"{stat.S_IMODE(mode):03o}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
