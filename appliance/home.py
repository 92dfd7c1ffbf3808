"""Where things are: the paths under the home directory."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import NotWritable


@dataclass(frozen=True)
class Home:
    """The appliance's home directory (`~/.shammah`, or `SHAMMAH_HOME`)."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """The home named by the environment.

        Raises:
            NotWritable: it names none, and there is no other way to tell.
        """
        try:
            named = os.environ.get("SHAMMAH_HOME")
            return cls((Path(named).expanduser() if named else _home_of_user() / ".shammah").absolute())
        except RuntimeError as error:
            raise NotWritable(
                "This user has no home directory (HOME is not set): say in SHAMMAH_HOME where the box keeps "
                "its data."
            ) from error
        except FileNotFoundError as error:
            raise NotWritable(
                "The directory this runs in has been deleted: go to another, or name the home in full in "
                "SHAMMAH_HOME."
            ) from error

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def good_config(self) -> Path:
        """`config.toml` as it was when the daemon came up last."""
        return self.root / "config.last-good.toml"

    @property
    def store(self) -> Path:
        return self.root / "store.db"

    @property
    def queue(self) -> Path:
        """JSON-lines mirror of the pending examples."""
        return self.root / "training_queue.jsonl"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def current(self) -> Path:
        """Symlink to the adapter in service; absent means base."""
        return self.adapters / "current"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def tls(self) -> Path:
        """The box's own certificate authority and certificate."""
        return self.root / "tls"

    @property
    def authority(self) -> Path:
        """Key and certificate of the authority (mode 0600)."""
        return self.tls / "authority.pem"

    @property
    def certificate(self) -> Path:
        """Key and certificate that the authority has given the box (mode 0600)."""
        return self.tls / "certificate.pem"

    @property
    def daemon(self) -> Path:
        """JSON written by a running daemon: pid, address, local token (mode 0600)."""
        return self.root / "daemon.json"

    def ensure(self) -> Home:
        """Create the directories, private to this user. Idempotent."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (self.models, self.adapters, self.runs, self.logs):
            directory.mkdir(exist_ok=True, mode=0o700)
        return self

    def shut(self) -> int:
        """Close what earlier releases left readable for others; says how much that was.

        Models are left alone, which hold nothing of anybody; `config.toml` and the logs, whose modes are the
        owner's to choose; and what belongs to another user.
        """
        shut = 0
        tops = (self.adapters, self.runs, self.backups, self.tls)
        for path in (self.root, *self.root.glob("*"), *(each for top in tops for each in top.rglob("*"))):
            try:
                about = path.lstat()
                if path in (self.config, self.models, self.logs) or about.st_uid != os.geteuid():
                    continue
                if not stat.S_ISLNK(about.st_mode) and about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    path.chmod(stat.S_IMODE(about.st_mode) & stat.S_IRWXU)
                    shut += 1
            except OSError:  # it went just now, or the disk takes no writes: the doctor tells
                continue
        return shut

    def check_writable(self) -> None:
        """Whether this user may write here: what a wrong volume of a container is found out by.

        Raises:
            NotWritable: not so; the message says whose it is, and what to do.
        """
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        for place in (there, self.models, self.adapters, self.runs, self.logs):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise NotWritable(_why_not_writable(place))


def _home_of_user() -> Path:
    if os.environ.get("HOME"):
        return Path.home()
    try:  # empty, it would mean the directory this runs in
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise RuntimeError from error


def _why_not_writable(place: Path) -> str:
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return (
            f"{place} is on a read-only file system, and the box keeps there all it learns. Mount a writable "
            "volume there, or name another place in SHAMMAH_HOME."
        )
    me, group, owner = os.geteuid(), os.getegid(), place.stat().st_uid
    return (
        f"{place} cannot be written by user {me}, whom the daemon runs as; it belongs to user {owner}. Hand "
        f"it over once, as root (of the host, when this is a container): chown -R {me}:{group} {place}, or "
        "whatever is mounted there."
    )
