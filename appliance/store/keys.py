"""API keys of devices. Only a hash is stored: a copy of the database opens no door."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from appliance.errors import Conflict, InvalidRequest, NotFound, Unavailable
from appliance.failpoints import failpoint
from appliance.store.db import Database
from appliance.store.rows import from_json, to_json, update_row, valid_text

PREFIX = "sk-shammah-"
NAME_LIMIT = 64
MAX_RATE = 6000
MAX_MODELS = 200
MODEL_LIMIT = 200
SEEN_SECONDS = 300.0
"""`last_seen` is at most this stale. Exact times would cost a disk flush for every request."""
SEEN_WAIT = 0.1
"""Seconds that a request waits, at most, for others who write, to have that noted."""


@dataclass(frozen=True)
class Device:
    """A device that may talk to the appliance.

    Attributes:
        collect: whether its exchanges become examples.
        models: the models it may name, as the API calls them; None for all.
        rate: how many requests it may send in a minute; None for as many as any device.
        teach: whether it may teach others: its word counts for all, as the owner's does.
    """

    id: str
    name: str
    created: float
    last_seen: float | None
    collect: bool
    revoked: bool
    models: tuple[str, ...] | None = None
    rate: int | None = None
    teach: bool = False


DeviceList: TypeAlias = list[Device]

_COLUMNS = ", ".join(Device.__dataclass_fields__)


def _device(row: sqlite3.Row) -> Device:
    models = from_json(row["models"])
    return Device(
        **{
            **dict(row),
            "collect": bool(row["collect"]),
            "revoked": bool(row["revoked"]),
            "teach": bool(row["teach"]),
            "models": None if models is None else tuple(models),
        }
    )


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
        secret = PREFIX + secrets.token_urlsafe(32)
        device = Device(f"dev_{secrets.token_hex(8)}", _valid_name(name), time.time(), None, collect, False)
        with _unique(device.name), self._db.transaction("devices") as tx:
            tx.execute(
                "INSERT INTO devices (id, name, sha256, created, collect) VALUES (?, ?, ?, ?, ?)",
                (device.id, device.name, _hash(secret), device.created, device.collect),
            )
            failpoint("keys.added")
        failpoint("keys.stored")
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
            with self._db.transaction("devices", wait=SEEN_WAIT) as tx:
                tx.execute("UPDATE devices SET last_seen = ? WHERE id = ?", (now, device.id))
        except Unavailable:
            # A disk in trouble is no reason to lock the device out, or to have it wait.
            return device
        return replace(device, last_seen=now)

    def list(self) -> DeviceList:
        """All devices, revoked ones too, oldest first."""
        return [_device(row) for row in self._db.all(f"SELECT {_COLUMNS} FROM devices ORDER BY created, id")]

    def get(self, device_id: str) -> Device:
        """One of them.

        Raises:
            NotFound: there is no such device.
        """
        row = self._db.one(f"SELECT {_COLUMNS} FROM devices WHERE id = ?", (device_id,))
        if row is None:
            raise _unknown(device_id)
        return _device(row)

    def change(
        self,
        device_id: str,
        *,
        name: str,
        collect: bool,
        models: Collection[str] | None,
        rate: int | None,
        teach: bool | None = None,
    ) -> Device:
        """Say what a device is called and may do, all at once; returns it as it is then.

        `teach` stays as it is when it is not given.

        Raises:
            NotFound: there is no such device.
            InvalidRequest: the name, a model's name or the rate cannot be, or it could use no model at all.
            Conflict: another device has the name, or the key is revoked: it may do nothing any more.
        """
        name = _valid_name(name)
        if models is not None:
            _check_models(models)
        if rate is not None and not 1 <= rate <= MAX_RATE:
            raise InvalidRequest(f"A limit is 1 to {MAX_RATE} requests a minute, or none.", param="rate")
        fields = {
            "name": name,
            "collect": collect,
            "models": None if models is None else to_json(list(dict.fromkeys(models)), "models"),
            "rate": rate,
        } | ({} if teach is None else {"teach": teach})
        with _unique(name), self._db.transaction("devices") as tx:
            if self.get(device_id).revoked:
                raise Conflict("The key of this device is revoked; there is nothing to change any more.")
            update_row(tx, "devices", ("id", device_id), fields, fields)
            return self.get(device_id)

    def revoke(self, device_id: str) -> None:
        """End a device's key for good.

        Raises:
            NotFound: there is no such device.
        """
        with self._db.transaction("devices") as tx:
            if not update_row(tx, "devices", ("id", device_id), {"revoked": True}, ("revoked",)):
                raise _unknown(device_id)
        failpoint("keys.revoked")

    def good(self, device_ids: Collection[str]) -> frozenset[str]:
        """Those of them whose keys are not revoked."""
        marks = ", ".join("?" * len(device_ids))
        rows = self._db.all(
            f"SELECT id FROM devices WHERE revoked = 0 AND id IN ({marks})", tuple(device_ids)
        )
        return frozenset(row["id"] for row in rows)

    def teachers(self) -> frozenset[str]:
        """The devices that may teach others."""
        return frozenset(row["id"] for row in self._db.all("SELECT id FROM devices WHERE teach"))

    def count(self) -> int:
        """How many keys are good."""
        return int(self._db.value("SELECT count(*) FROM devices WHERE revoked = 0"))


def _unknown(device_id: str) -> NotFound:
    return NotFound(f"There is no device {device_id!r}.", param="id")


@contextmanager
def _unique(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise Conflict(
            f"There is a device named {name!r} already: choose another name, or revoke its key first.",
            param="name",
        ) from error


def _valid_name(name: str) -> str:
    name = valid_text(name, "name").strip()
    if not name or len(name) > NAME_LIMIT or not name.isprintable():
        raise InvalidRequest(f"A device's name has 1 to {NAME_LIMIT} printable characters.", param="name")
    return name


def _check_models(models: Collection[str]) -> None:
    if not models:
        raise InvalidRequest("Allow the device one model at least, or revoke its key.", param="models")
    if len(models) > MAX_MODELS or any(not 0 < len(name) <= MODEL_LIMIT for name in models):
        raise InvalidRequest(
            f"A device is allowed all models, or up to {MAX_MODELS} by name.", param="models"
        )
