"""One file out, the same home back: whole, refused when damaged, safe against the power going anywhere."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.backup import archive, restore
from appliance.errors import Conflict, InvalidRequest, NotFound, ShammahError, StorageFull, Unavailable
from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.owner import create_session, session_valid, set_password, verify_password

FIRST = "adapter_20260101T000000Z"


def example(query: str) -> NewExample:
    return NewExample(kind="automatic", query=query, response="A", target="A", weight=1.0, messages=[])


def fill(home: Home, what: str) -> None:
    """A home with a past that can be told by `what`."""
    home.ensure()
    store = Store.open(home)
    store.examples.add(example(what))
    if not store.audit.list(1):
        set_password(store, "correct horse battery")
    store.close()
    home.config.write_text(f'[console]\nname = "{what}"\n')
    (home.adapters / f"{FIRST}.safetensors").write_bytes(what.encode() * 1000)
    home.current.unlink(missing_ok=True)
    home.current.symlink_to(f"{FIRST}.safetensors")
    run = home.runs / "run_20260101T000000Z"
    run.mkdir(exist_ok=True)
    (run / "report.json").write_text(json.dumps({"what": what}))
    (run / "checkpoint.pt").write_bytes(b"0" * 1000)
    home.queue.write_text(what)


def told(home: Home) -> tuple[str, ...]:
    """What the home says of itself, wherever it is kept."""
    store = Store.open(home)
    queries = [found.query for found in store.examples.list(limit=10)]
    store.close()
    report = json.loads((home.runs / "run_20260101T000000Z" / "report.json").read_text())
    return (
        *queries,
        home.config.read_text().split('"')[1],
        (home.adapters / f"{FIRST}.safetensors").read_bytes()[:3].decode(),
        report["what"],
        home.current.readlink().name,
    )


def expected(what: str) -> tuple[str, ...]:
    return (what, what, what, what, f"{FIRST}.safetensors")


@pytest.fixture
def made(home: Home) -> archive.Backup:
    """A backup of a home that tells "one"; the home has gone on to "two"."""
    fill(home, "one")
    store = Store.open(home)
    create_session(store, 1)
    backup = archive.create(home, store, "smollm2-135m-instruct", "abc")
    store.close()
    home.store.unlink()
    for extra in home.root.glob("store.db-*"):
        extra.unlink()
    fill(home, "two")
    return backup


def test_what_it_holds(home: Home, made: archive.Backup) -> None:
    assert made.manifest is not None
    assert set(made.manifest.files) == {
        "store.db",
        "config.toml",
        f"adapters/{FIRST}.safetensors",
        "runs/run_20260101T000000Z/report.json",
    }
    assert (made.manifest.current, made.manifest.model, made.manifest.adapters) == (
        FIRST,
        "smollm2-135m-instruct",
        1,
    )
    assert [backup.manifest for backup in archive.backups(home)] == [made.manifest]
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert not list(home.backups.glob(".making-*"))


def test_deleted_text_is_not_in_it(home: Home) -> None:
    home.ensure()
    store = Store.open(home)
    secret = store.examples.add(example("the secret of the seven seals"))
    for number in range(50):
        store.examples.add(example(f"question {number}"))
    store.forgotten.erase(store.forgotten.traces([secret.id]), {})
    backup = archive.create(home, store, "m", "h")
    store.close()
    with tarfile.open(backup.path) as tar:
        database = tar.extractfile("store.db")
        assert database is not None
        content = database.read()
    assert b"question 49" in content
    assert b"seven seals" not in content


def test_there_and_back(home: Home, made: archive.Backup) -> None:
    assert told(home) == expected("two")
    manifest = restore.stage(home, made.path, "owner")
    assert (manifest, restore.pending(home)) == (made.manifest, True)
    assert told(home) == expected("two"), "nothing happens before the next start"
    assert restore.finish_restore(home)
    assert told(home) == expected("one")
    assert not restore.pending(home)
    assert not home.queue.exists(), "it is made anew from the database"
    store = Store.open(home)
    assert verify_password(store, "correct horse battery")
    assert [entry.action for entry in store.audit.list()] == ["backup.restored"]
    store.close()
    # What was there before can be had again.
    (aside,) = restore.asides(home)
    assert aside.size > 0
    restore.stage_aside(home, aside.name)
    with pytest.raises(Conflict):
        restore.delete_aside(home, aside.name)
    assert restore.finish_restore(home)
    assert told(home) == expected("two")
    (aside,) = restore.asides(home)
    restore.delete_aside(home, aside.name)
    assert restore.asides(home) == []
    with pytest.raises(NotFound):
        restore.stage_aside(home, aside.name)


def test_sessions_do_not_come_back(home: Home) -> None:
    home.ensure()
    store = Store.open(home)
    set_password(store, "correct horse battery")
    token = create_session(store, 1)
    backup = archive.create(home, store, "smollm2-135m-instruct", "h")
    store.close()
    restore.stage(home, backup.path, "owner")
    restore.finish_restore(home)
    store = Store.open(home)
    assert not session_valid(store, token)
    store.close()


@pytest.mark.parametrize("in_it", [True, False], ids=["with", "without"])
def test_devices_go_on_trusting_a_restored_box(home: Home, in_it: bool) -> None:
    home.tls.mkdir(parents=True)
    if in_it:
        home.authority.write_text("the authority of before")
    fill(home, "one")
    store = Store.open(home)
    backup = archive.create(home, store, "smollm2-135m-instruct", "h")
    store.close()
    home.authority.write_text("another authority")
    home.certificate.write_text("its certificate")
    restore.stage(home, backup.path, "owner")
    assert restore.finish_restore(home)
    assert home.authority.read_text() == ("the authority of before" if in_it else "another authority")
    assert not in_it or home.authority.stat().st_mode & 0o777 == 0o600
    assert home.certificate.exists() is not in_it, "one that the authority did not give is made anew"
    (aside,) = restore.asides(home)
    restore.stage_aside(home, aside.name)
    assert restore.finish_restore(home)
    assert home.authority.read_text() == "another authority"


def test_given_up(home: Home, made: archive.Backup) -> None:
    restore.stage(home, made.path, "owner")
    restore.cancel(home)
    assert not restore.finish_restore(home)
    assert told(home) == expected("two")
    assert not list(home.root.glob(".restore*"))


def test_not_under_a_running_daemon(home: Home, made: archive.Backup) -> None:
    import fcntl

    restore.stage(home, made.path, "owner")
    with (home.root / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not restore.finish_restore(home)
    assert told(home) == expected("two")
    assert restore.pending(home)


class Cut(BaseException):
    """The power goes."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """`cut[0] = n`: the n-th change of the directory tree from now on does not happen any more."""
    left = [10**9]

    def counted(name: str) -> None:
        real = getattr(Path, name)

        def act(self: Path, *arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return real(self, *arguments, **named)

        monkeypatch.setattr(Path, name, act)

    for name in ("rename", "unlink", "mkdir", "replace"):
        counted(name)
    yield left
    left[0] = 10**9


def test_cut_off_anywhere_it_is_one_or_the_other(home: Home, made: archive.Backup, cut: list[int]) -> None:
    """Both halves: before the note everything is as it was; after it every start goes on, to the end."""
    tried = 0
    while True:
        cut[0] = tried
        try:
            restore.stage(home, made.path, "owner")
            break
        except Cut:
            cut[0] = 10**9
            if restore.pending(home):  # the note is the last line
                break
            assert told(home) == expected("two")
            assert not restore.finish_restore(home)
        tried += 1
    assert tried > 5
    cuts = 0
    for allowed in range(100):
        cut[0] = allowed % 4
        try:
            if restore.finish_restore(home):
                break
            if not restore.pending(home):  # cut off after the last line that mattered
                break
        except Cut:
            cuts += 1
    cut[0] = 10**9
    restore.finish_restore(home)
    assert cuts > 4
    assert told(home) == expected("one")


def test_a_backup_cut_off_leaves_nothing(home: Home, cut: list[int]) -> None:
    fill(home, "one")
    store = Store.open(home)
    for allowed in range(30):
        cut[0] = allowed
        try:
            archive.create(home, store, "m", "h")
            break
        except Cut:
            cut[0] = 10**9
            assert archive.backups(home) == []
    cut[0] = 10**9
    store.close()
    assert allowed > 0
    assert len(archive.backups(home)) == 1
    archive.clear_leftovers(home)
    assert len(list(home.backups.iterdir())) == 1


def rewritten(path: Path, target: Path, change: str) -> None:
    """A copy of an archive with something wrong in it."""
    with tarfile.open(path) as tar:
        members = [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    manifest = json.loads(members[0][1])
    if change == "content":
        members[-1] = (members[-1][0], b"x" * members[-1][0].size)
    elif change == "missing":
        members.pop()
    elif change == "stranger":
        members.append((tarfile.TarInfo("adapters/other.safetensors"), b""))
    elif change == "climbing":
        manifest["files"]["adapters/../../evil.safetensors"] = {"size": 1, "sha256": "0" * 64}
    elif change == "absolute":
        manifest["files"]["/etc/passwd"] = {"size": 1, "sha256": "0" * 64}
    elif change == "format":
        manifest["format"] = 99
    elif change == "link":
        entry = tarfile.TarInfo(members[-1][0].name)
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members[-1] = (entry, b"")
    elif change == "no manifest":
        members.pop(0)
    elif change == "no database":
        del manifest["files"]["store.db"]
        members = [member for member in members if member[0].name != "store.db"]
    elif change == "time":
        manifest["created"] = 1e30
    elif change == "config":
        text = b"[nonsense]\n"
        members = [(entry, text if entry.name == "config.toml" else body) for entry, body in members]
        import hashlib

        manifest["files"]["config.toml"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    with tarfile.open(target, "w:gz") as tar:
        for entry, body in members:
            if entry.name == "manifest.json":
                body = json.dumps(manifest).encode()
            if entry.isreg():
                entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))


CHANGES = ["content", "missing", "stranger", "climbing", "absolute", "format", "link", "no manifest",
           "no database", "time", "config"]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_archive_is_refused(home: Home, made: archive.Backup, tmp_path: Path, change: str) -> None:
    bad = tmp_path / "bad.tar.gz"
    rewritten(made.path, bad, change)
    with pytest.raises(ShammahError):
        restore.stage(home, bad, "owner")
    assert not restore.pending(home)
    assert not (home.root / ".restore").exists()
    assert told(home) == expected("two")
    if change != "config":
        with pytest.raises(InvalidRequest):
            archive.adopt(home, bad)
        assert len(archive.backups(home)) == 1


@pytest.mark.parametrize("kept", [0, 3, 5, 20, 0.5, 0.99])
def test_a_torn_archive_is_refused(home: Home, made: archive.Backup, tmp_path: Path, kept: float) -> None:
    data = made.path.read_bytes()
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(InvalidRequest):
        restore.stage(home, torn, "owner")
    assert told(home) == expected("two")


@pytest.mark.parametrize("text", [b"", b"hello", gzip.compress(b"hello")], ids=["empty", "text", "gzip"])
def test_something_else_is_refused(home: Home, tmp_path: Path, text: bytes) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(text)
    with pytest.raises(InvalidRequest):
        archive.adopt(home.ensure(), other)


def test_a_newer_schema_is_refused(home: Home, made: archive.Backup, tmp_path: Path) -> None:
    import hashlib
    import sqlite3

    place = tmp_path / "unpacked"
    place.mkdir()
    archive.unpack(made.path, place)
    newer = sqlite3.connect(place / "store.db")
    newer.execute("PRAGMA user_version = 9999")
    newer.commit()
    newer.close()
    body = (place / "store.db").read_bytes()
    target = tmp_path / "newer.tar.gz"
    with tarfile.open(made.path) as old, tarfile.open(target, "w:gz") as tar:
        for entry in old:
            content = old.extractfile(entry).read()  # type: ignore[union-attr]
            if entry.name == "manifest.json":
                data = json.loads(content)
                data["files"]["store.db"] = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
                content = json.dumps(data).encode()
            elif entry.name == "store.db":
                content = body
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(Unavailable, match="newer release"):
        restore.stage(home, target, "owner")
    assert told(home) == expected("two")


def test_another_model_has_to_be_here(home: Home) -> None:
    home.ensure()
    home.config.write_text('[model]\nname = "another-model"\n')
    store = Store.open(home)
    backup = archive.create(home, store, "another-model", "h")
    store.close()
    with pytest.raises(InvalidRequest, match="another-model"):
        restore.stage(home, backup.path, "owner")


def test_no_room(home: Home, made: archive.Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(home.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    with pytest.raises(StorageFull, match="MB are needed"):
        restore.stage(home, made.path, "owner")
    store = Store.open(home)
    with pytest.raises(StorageFull):
        archive.create(home, store, "m", "h")
    store.close()
    assert len(archive.backups(home)) == 1
    assert not (home.root / ".restore").exists()


@pytest.mark.parametrize("name", ["", "..", "../store.db", "backup_20260101T000000Z.tar.gz/..", "x"])
def test_names_from_outside(home: Home, name: str) -> None:
    home.ensure()
    for act in (archive.find, archive.delete, restore.stage_aside, restore.delete_aside):
        with pytest.raises(NotFound):
            act(home, name)


def test_two_restores_at_once_do_not_mix(
    home: Home, made: archive.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two tabs: what comes while one is prepared is refused, and takes nothing of it away."""
    unpack, refused = restore.unpack, []

    def meanwhile(path: Path, place: Path) -> archive.Manifest:
        for act in (
            lambda: restore.stage(home, made.path, "owner"),
            lambda: restore.cancel(home),
            lambda: restore.stage_aside(home, "before-restore_20260101T000000Z"),
            lambda: restore.delete_aside(home, "before-restore_20260101T000000Z"),
        ):
            with pytest.raises(Conflict, match="just now"):
                act()
            refused.append(act)
        return unpack(path, place)

    monkeypatch.setattr(restore, "unpack", meanwhile)
    restore.stage(home, made.path, "owner")
    assert len(refused) == 4
    assert restore.pending(home)
    restore.cancel(home)
    assert not restore.pending(home)


def test_deleting_what_was_before_may_be_cut_off(
    home: Home, made: archive.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is nothing to put back."""
    restore.stage(home, made.path, "owner")
    assert restore.finish_restore(home)
    (aside,) = restore.asides(home)
    monkeypatch.setattr(restore.shutil, "rmtree", lambda *args, **options: None)  # the power goes here
    restore.delete_aside(home, aside.name)
    assert restore.asides(home) == []
    monkeypatch.undo()
    restore.cancel(home)
    assert not [path for path in home.root.iterdir() if aside.name in path.name]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_larger_than_memory(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 300_000_000
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1_000_000))
    with pytest.raises(InvalidRequest, match="header that is too large"):
        archive.verify(path)


def test_a_backup_beside_another_one(home: Home, made: archive.Backup) -> None:
    """The command and the console, at the same time: neither clears away what the other writes."""
    store = Store.open(home)
    lock = os.open(home.backups, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="already"):
        archive.create(home, store, "m", "h")
    os.close(lock)
    archive.create(home, store, "m", "h")
    store.close()
