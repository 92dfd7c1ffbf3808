"""One file that holds a home: what was collected and learned, the settings, the adapters. Not the models.

It is a gzipped tar whose first member, `manifest.json`, names every other with its size and SHA-256. The
database is copied as of one moment while the box goes on; nothing that was deleted before is in the copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance.adapters.file import MAX_BYTES, SUFFIX
from appliance.backup.tar import MOST_RATIO, Archive, opened
from appliance.errors import Conflict, InvalidRequest, NotFound, StorageFull
from appliance.failpoints import failpoint
from appliance.files import publish_file, remove_durably, storage_errors
from appliance.home import Home
from appliance.store import Store
from appliance.store.db import copy_database

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 32_000_000
_MOST_BYTES = (("config.toml", 1_000_000), ("tls/", 1_000_000), ("adapters/", MAX_BYTES))
"""Of what is read into memory whole."""
CHUNK = 1 << 20
SPARE_BYTES = 50_000_000
"""Kept free on the disk: a backup must not be what fills it."""
_NAME = re.compile(r"(backup|auto|brought)_(\d{8}T\d{6}Z(-\d+)?)\.tar\.gz", re.ASCII)
PERSON, BOX, ELSEWHERE = "backup", "auto", "brought"
"""How the name of an archive begins: who made it."""
_WORK = ".making-"
# Big, and of no use once a run has ended: weights in progress and their optimiser state.
_OF_RUNS = (".json", ".jsonl", ".log", "log")
_SAFE = re.compile(
    rf"store\.db|config\.toml|tls/authority\.pem|adapters/[A-Za-z0-9][\w.-]{{0,200}}{re.escape(SUFFIX)}"
    r"|runs/[A-Za-z0-9][\w.-]{0,100}/[A-Za-z0-9][\w.-]{0,100}",
    re.ASCII,
)


@dataclass(frozen=True)
class Member:
    """A file in the archive: its size in bytes and the hexadecimal SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself.

    Attributes:
        created: Unix time.
        version: of the release that made it.
        model: name of the bundle that was served.
        base_hash: of that bundle's weights.
        current: the adapter that was in service; None for the base model.
        files: by path in the archive, which is that under the home.
    """

    created: float
    version: str
    model: str
    base_hash: str
    current: str | None
    files: dict[str, Member] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(member.size for member in self.files.values())

    @property
    def adapters(self) -> int:
        """How many adapters it holds."""
        return sum(name.startswith("adapters/") for name in self.files)


@dataclass(frozen=True)
class Backup:
    """An archive in the home's `backups/`.

    Attributes:
        name: of the file.
        size: in bytes, packed.
        manifest: what it holds; None when that cannot be read.
    """

    name: str
    path: Path
    size: int
    manifest: Manifest | None

    @property
    def automatic(self) -> bool:
        """The box made it by itself, and removes it by itself."""
        return self.name.startswith(f"{BOX}_")

    @property
    def brought(self) -> bool:
        """It was made elsewhere, maybe by another box."""
        return self.name.startswith(f"{ELSEWHERE}_")

    @property
    def stamp(self) -> str:
        """When it was made, such that later ones are larger."""
        return stamp(self.name)


def create(home: Home, store: Store, model: str, base_hash: str) -> Backup:
    """Write a new archive, verified, into `backups/`. Takes as long as reading and packing it all.

    Args:
        home: what to back up.
        store: its open store.
        model: name of the bundle served.
        base_hash: of its weights.

    Raises:
        Conflict: another one is being made.
        StorageFull: there is no room for it; nothing is left behind.
    """
    made = _create(home, store.database.copy_to, model, base_hash, PERSON)
    assert made is not None
    return made


def create_automatic(home: Home, model: str, base_hash: str) -> Backup | None:
    """The same for the box itself, in a process that may stand still at any line: it locks nothing.

    Returns:
        The archive; None when nothing has changed since the last one.

    Raises:
        Conflict: another one is being made.
        StorageFull: there is no room for it; nothing is left behind.
        sqlite3.Error: the store cannot be read.
    """
    return _create(home, lambda target: copy_database(home.store, target), model, base_hash, BOX)


def _create(
    home: Home, copy_store: Callable[[Path], None], model: str, base_hash: str, maker: str
) -> Backup | None:
    with storage_errors("the backup"):
        home.backups.mkdir(exist_ok=True, mode=0o700)
        with _alone(home), _work_place(home) as work:
            snapshot = Path(work) / "store.db"
            _need_room(home.root, home.store.stat().st_size)
            copy_store(snapshot)
            failpoint("backup.copied")
            files = {"store.db": snapshot, **_files(home)}
            _need_room(home.root, sum(path.stat().st_size for path in files.values() if path.exists()))
            now = time.time()
            draft = Path(work) / "draft.tar.gz"
            current = home.current.readlink().name.removesuffix(SUFFIX) if home.current.is_symlink() else None
            manifest = Manifest(now, __version__, model, base_hash, current, _hashed(files))
            if maker == BOX and _same_as_last(home, manifest):
                return None
            _write(draft, files, manifest)
            failpoint("backup.packed")
            manifest = verify(draft)
            failpoint("backup.verified")
            draft.chmod(0o600)
            path = _free_name(home, now, maker)
            publish_file(draft, path)
            failpoint("backup.published")
    return Backup(path.name, path, path.stat().st_size, manifest)


def _same_as_last(home: Home, manifest: Manifest) -> bool:
    last = next((backup.manifest for backup in backups(home) if backup.automatic), None)
    if last is None:
        return False
    return replace(last, created=manifest.created, version=manifest.version) == manifest


def backups(home: Home) -> list[Backup]:
    """The archives there are, newest first."""
    found = []
    for path in home.backups.glob("*.tar.gz") if home.backups.is_dir() else ():
        if not _NAME.fullmatch(path.name) or not path.is_file():
            continue
        manifest = None
        with suppress(InvalidRequest, FileNotFoundError):
            manifest = read_manifest(path)
        with suppress(FileNotFoundError):
            found.append(Backup(path.name, path, path.stat().st_size, manifest))
    return sorted(found, key=lambda backup: (backup.stamp, backup.name), reverse=True)


def stamp(name: str) -> str:
    """When an archive of that name was made, such that later ones are larger; empty if it is no such name."""
    match = _NAME.fullmatch(name)
    return match[2] if match else ""


def made_at(name: str) -> float:
    """The same in Unix time; 0 if it is no such name."""
    text = stamp(name)[:16]
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() if text else 0.0


def find(home: Home, name: str) -> Path:
    """The archive of that name.

    Raises:
        NotFound: there is none.
    """
    path = home.backups / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise NotFound("There is no such backup.", param="name")
    return path


def delete(home: Home, name: str) -> None:
    """Remove an archive.

    Raises:
        NotFound: there is none of that name.
    """
    remove_durably(find(home, name))


def adopt(home: Home, draft: Path) -> Backup:
    """Take in an archive made elsewhere: verified, then moved into `backups/` under the time it was made.

    Args:
        home: where it goes.
        draft: a complete file on the home's file system.

    Raises:
        InvalidRequest: it is not a backup, or a damaged one; the draft is left alone.
    """
    with opened(draft) as tar:
        promised = _manifest(tar, draft).size
    if promised > shutil.disk_usage(home.root).total:
        raise InvalidRequest(f"This backup is of {promised / 1e9:,.0f} GB, and this disk is smaller.")
    manifest = verify(draft)
    home.backups.mkdir(exist_ok=True, mode=0o700)
    path = _free_name(home, manifest.created, ELSEWHERE)
    draft.chmod(0o600)
    publish_file(draft, path)
    return Backup(path.name, path, path.stat().st_size, manifest)


def clear_leftovers(home: Home) -> None:
    """Remove what a backup that was cut off left behind: it holds text. Not while one is being made."""
    if home.backups.is_dir():
        with suppress(Conflict), _alone(home):
            _clear(home)


def _clear(home: Home) -> None:
    for path in home.backups.glob(f"{_WORK}*"):
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """What an archive says of itself; its files are not looked at.

    Raises:
        InvalidRequest: it is not a backup.
        FileNotFoundError: it is not there.
    """
    with opened(path) as tar:
        return _manifest(tar, path)


def verify(path: Path) -> Manifest:
    """Read a whole archive and compare it with its manifest.

    Raises:
        InvalidRequest: it is not a backup, or a damaged one.
    """
    with opened(path) as tar:
        manifest = _manifest(tar, path)
        for _, stream in _members(tar, manifest):
            while stream.read(CHUNK):
                pass
    return manifest


def extract_store(path: Path, target: Path) -> Manifest:
    """Take the database alone out of an archive, compared with its manifest on the way.

    Raises:
        InvalidRequest: it is not a backup, or a damaged one; there may be part of a file.
        StorageFull: there is no room.
    """
    with storage_errors("what was in the backup"), opened(path) as tar:
        manifest = _manifest(tar, path)
        _need_room(target.parent, manifest.files["store.db"].size)
        for name, stream in _members(tar, manifest):
            if name == "store.db":
                with target.open("wb") as file:
                    target.chmod(0o600)
                    shutil.copyfileobj(stream, file, CHUNK)
                break
            while stream.read(CHUNK):
                pass
    return manifest


def unpack(path: Path, place: Path) -> Manifest:
    """Unpack an archive into an empty directory, comparing it with its manifest on the way.

    Raises:
        InvalidRequest: it is not a backup, or a damaged one; the directory may hold part of it.
        StorageFull: there is no room.
    """
    with storage_errors("what was in the backup"), opened(path) as tar:
        manifest = _manifest(tar, path)
        _need_room(place, manifest.size)
        for name, stream in _members(tar, manifest):
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with target.open("wb") as file:
                target.chmod(0o600)
                shutil.copyfileobj(stream, file, CHUNK)
    return manifest


@contextmanager
def _work_place(home: Home) -> Iterator[str]:
    _clear(home)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=home.backups) as work:
        yield work


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One at a time, here and in the command beside the daemon. Nobody waits: a press of a button too many
    would hold a thread that answers need."""
    directory = os.open(home.backups, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("A backup is being made already: wait until it is there.") from error
        yield
    finally:
        os.close(directory)


# -- writing ------------------------------------------------------------------------------------


def _files(home: Home) -> dict[str, Path]:
    # With the authority, devices go on trusting a restored box; it makes its certificate anew.
    found = {"config.toml": home.config, "tls/authority.pem": home.authority}
    for path in sorted(home.adapters.glob(f"*{SUFFIX}")):
        found[f"adapters/{path.name}"] = path
    for path in sorted(home.runs.glob("*/*")):
        if path.name.endswith(_OF_RUNS) and not path.name.startswith("."):
            found[f"runs/{path.parent.name}/{path.name}"] = path
    return {name: path for name, path in found.items() if path.is_file() and _SAFE.fullmatch(name)}


def _hashed(files: dict[str, Path]) -> dict[str, Member]:
    found = {}
    for name, path in files.items():
        with suppress(FileNotFoundError):  # an adapter or a run was removed just now
            found[name] = Member(path.stat().st_size, _sha256(path))
    return found


def _write(draft: Path, files: dict[str, Path], manifest: Manifest) -> None:
    """Pack. A file that changes or goes between hashing and this makes the archive fail its verification."""
    with tarfile.open(draft, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as tar:
        text = json.dumps(asdict(manifest), indent=1).encode()
        tar.addfile(_entry(MANIFEST, len(text), manifest.created), io.BytesIO(text))
        for name, member in manifest.files.items():
            with files[name].open("rb") as file:
                tar.addfile(_entry(name, member.size, manifest.created), file)


def _entry(name: str, size: int, when: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, int(when), 0o600
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _need_room(place: Path, size: int) -> None:
    needed = size + SPARE_BYTES
    if shutil.disk_usage(place).free < needed:
        raise StorageFull(f"The disk is too full: about {needed // 1_000_000:,} MB are needed.")


def _free_name(home: Home, when: float, maker: str) -> Path:
    stem = f"{maker}_{datetime.fromtimestamp(when, UTC):%Y%m%dT%H%M%SZ}"
    path, number = home.backups / f"{stem}.tar.gz", 1
    while path.exists():
        number += 1
        path = home.backups / f"{stem}-{number}.tar.gz"
    return path


# -- reading ------------------------------------------------------------------------------------


def _manifest(tar: Archive, path: Path) -> Manifest:
    first = tar.next()
    if first is None or first.name != MANIFEST or first.size > MANIFEST_BYTES:
        raise InvalidRequest("This is not a backup of Shammah: it does not begin with a manifest.")
    try:
        data: dict[str, Any] = json.loads(tar.read(first.size))
        if data["format"] != FORMAT:
            raise InvalidRequest(
                f"This backup was made by another release ({data.get('version')}), in a format unknown here."
            )
        files = {
            str(name): Member(int(member["size"]), str(member["sha256"]))
            for name, member in data["files"].items()
        }
        manifest = Manifest(
            created=float(data["created"]),
            version=str(data["version"]),
            model=str(data["model"]),
            base_hash=str(data["base_hash"]),
            current=None if data["current"] is None else str(data["current"]),
            files=files,
        )
        datetime.fromtimestamp(manifest.created, UTC)  # it becomes a name
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError,
    ) as error:  # fmt: skip
        raise InvalidRequest("The manifest of this backup cannot be read.") from error
    wrong = next((name for name in files if not _SAFE.fullmatch(name)), None)
    if wrong is not None or "store.db" not in files or min(member.size for member in files.values()) < 0:
        raise InvalidRequest("The manifest of this backup names files that have no place in one.")
    for name, member in files.items():
        if member.size > next((most for part, most in _MOST_BYTES if name.startswith(part)), member.size):
            raise InvalidRequest(f"This is not a backup of Shammah: its {name} is too large for one.")
    if manifest.size > path.stat().st_size * MOST_RATIO:
        raise InvalidRequest("This backup is damaged: it cannot hold all that its manifest tells of.")
    return manifest


class _Checked(io.RawIOBase):
    """A member's content, hashed as it is read; wrong at its end raises."""

    def __init__(self, name: str, tar: Archive, member: Member) -> None:
        self._name, self._tar, self._member = name, tar, member
        self._hash, self._read = hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._tar.read(size)
        self._hash.update(data)
        self._read += len(data)
        if not data and size:
            self.check()
        return data

    def check(self) -> None:
        if (self._read, self._hash.hexdigest()) != (self._member.size, self._member.sha256):
            raise InvalidRequest(f"This backup is damaged: {self._name} is not what it was.")


def _members(tar: Archive, manifest: Manifest) -> Iterator[tuple[str, _Checked]]:
    """The files, in the archive's order; each has to be read to its end before the next."""
    missing = dict(manifest.files)
    for entry in iter(tar.next, None):
        member = missing.pop(entry.name, None)
        if member is None or entry.size != member.size:
            name = entry.name[:200]
            raise InvalidRequest(f"This backup is damaged: {name!r} is not in its manifest like this.")
        checked = _Checked(entry.name, tar, member)
        yield entry.name, checked
        checked.check()
    if missing:
        raise InvalidRequest(f"This backup is damaged: {next(iter(missing))} is missing.")
