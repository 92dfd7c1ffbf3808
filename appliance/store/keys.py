"""API keys of devices. Only a hash is stored: a copy of the database opens no door."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass, replace
from typing import TypeAlias

from appliance.errors import Conflict, InvalidRequest, NotFound, Unavailable
from appliance.store.db import Database
from appliance.store.rows import valid_text

PREFIX = "sk-shammah-"
NAME_LIMIT = 64
SEEN_SECONDS = 300.0
"""`last_seen` is at most this stale. Exact times would cost a disk flush for every request."""


@dataclass(frozen=True)
class Device:
    """A device that may talk to the appliance.

    Attributes:
        collect: whether its exchanges become examples.
    """

    id: str
    name: str
    created: float
    last_seen: float | None
    collect: bool
    revoked: bool


DeviceList: TypeAlias = list[Device]

_COLUMNS = ", ".join(Device.__dataclass_fields__)


def _device(row: sqlite3.Row) -> Device:
    return Device(**{**dict(row), "collect": bool(row["collect"]), "revoked": bool(row["revoked"])})


def _hash(secret: str) -> str:
    # The secret has 256 random bits: there is nothing to guess, so no slow hash is needed.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """The table `devices`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def create(self, name: str, collect: bool = True) -> tuple[Device, str]:
        """A new device and its key, which cannot be shown again.

        Raises:
            InvalidRequest: the name is blank, too long, or has line breaks or other control characters.
            Conflict: a device of that name has a key already.
        """
        name = valid_text(name, "name").strip()
        if not name or len(name) > NAME_LIMIT or not name.isprintable():
            raise InvalidRequest(f"A device's name has 1 to {NAME_LIMIT} printable characters.", param="name")
        secret = PREFIX + secrets.token_urlsafe(32)
        device = Device(f"dev_{secrets.token_hex(8)}", name, time.time(), None, collect, False)
        try:
            with self._db.transaction("devices") as tx:
                tx.execute(
                    "INSERT INTO devices (id, name, sha256, created, collect) VALUES (?, ?, ?, ?, ?)",
                    (device.id, device.name, _hash(secret), device.created, device.collect),
                )
        except sqlite3.IntegrityError as error:
            raise Conflict(
                f"There is a device named {name!r}: revoke its key first.", param="name"
            ) from error
        return device, secret

    def verify(self, secret: str) -> Device | None:
        """The device whose key this is; None for an unknown or revoked one."""
        if not secret.startswith(PREFIX):
            return None
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM devices WHERE sha256 = ? AND revoked = 0", (_hash(secret),)
        )
        if row is None:
            return None
        device, now = _device(row), time.time()
        if device.last_seen is not None and 0 <= now - device.last_seen < SEEN_SECONDS:
            return device
        try:
            with self._db.transaction("devices") as tx:
                tx.execute("UPDATE devices SET last_seen = ? WHERE id = ?", (now, device.id))
        except Unavailable:
            # A full disk is no reason to lock the device out.
            return device
        return replace(device, last_seen=now)

    def list(self) -> DeviceList:
        """All devices, revoked ones too, oldest first."""
        return [_device(row) for row in self._db.all(f"SELECT {_COLUMNS} FROM devices ORDER BY created, id")]

    def set_collect(self, device_id: str, collect: bool) -> None:
        """Say whether the device's exchanges become examples.

        Raises:
            NotFound: there is no such device.
        """
        self._change(device_id, "collect", collect)

    def revoke(self, device_id: str) -> None:
        """End a device's key for good.

        Raises:
            NotFound: there is no such device.
        """
        self._change(device_id, "revoked", True)

    def count(self) -> int:
        """How many keys are good."""
        return int(self._db.value("SELECT count(*) FROM devices WHERE revoked = 0"))

    def _change(self, device_id: str, column: str, value: bool) -> None:
        with self._db.transaction("devices") as tx:
            changed = tx.execute(f"UPDATE devices SET {column} = ? WHERE id = ?", (value, device_id)).rowcount
            if not changed:
                raise NotFound(f"There is no device {device_id!r}.", param="id")
