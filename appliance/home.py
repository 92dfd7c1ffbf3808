"""Where things are: the paths under the home directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The appliance's home directory (`~/.shammah`, or `SHAMMAH_HOME`)."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """The home named by the environment."""
        return cls(Path(os.environ.get("SHAMMAH_HOME") or Path.home() / ".shammah").expanduser().absolute())

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

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
