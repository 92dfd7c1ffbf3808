"""What lies in the home is broken, for real, and the doctor says so: with a fix, and without touching it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemons import accept_adapter

from appliance.adapters.file import AdapterMeta, tensor_key, write_adapter
from appliance.backup import archive
from appliance.doctor.examine import CHECKS, Report
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.migrations import STEPS, migrate

from .conftest import example, opened

if TYPE_CHECKING:
    from .conftest import Look

NAME = "adapter_20261120T071500Z"


def everything(home: Home) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_mode)
        for path in home.root.rglob("*")
    }


def replaced(path: Path, change: Callable[[bytearray], None]) -> None:
    """A changed copy in the place of a file that others share by hard links."""
    data = bytearray(path.read_bytes())
    change(data)
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def test_a_sound_home(home: Home, report: Callable[..., Report], bundle: Bundle) -> None:
    accept_adapter(home, bundle, NAME, 1, only="v_proj")
    home.current.symlink_to(f"{NAME}.safetensors")
    with opened(home) as store:
        store.examples.add(example())
        archive.create(home, store, bundle.name, bundle.manifest.base_hash)
    before = everything(home)
    found = report(quick=False)
    assert [one for one in found.findings if one.level == "error"] == []
    assert everything(home) == before  # it looked, and nothing else
    said = {check.id: " ".join(one.seen for one in found.of(check.id)) for check in CHECKS}
    assert "which is served: all files have their hash" in said["models"]
    assert f"{NAME} is in service: whole" in said["adapters"]
    assert "pages, indexes and references are sound" in said["database"]
    assert "was read through just now" in said["backups"]
    assert "Nothing is left" in said["leftovers"]
    assert json.loads(json.dumps(found.to_json()))["healthy"] is True


def test_an_empty_home(tmp_path: Path) -> None:
    from appliance.doctor.box import looked_at
    from appliance.doctor.examine import examine

    with looked_at(Home(tmp_path / "nowhere"), None, quick=False) as box:
        found = examine(box)
    # Somebody else may listen on the default port of the machine that tests.
    assert {one.check for one in found.findings if one.level == "error"} <= {"ports"}
    assert not (tmp_path / "nowhere").exists()


# -- models -------------------------------------------------------------------------------------


def test_a_flipped_byte_in_the_model(home: Home, look: Look, bundle: Bundle) -> None:
    replaced(home.models / bundle.name / "tokenizer.json", flip)
    (found,) = look("models", quick=False)
    assert found.level == "error"
    assert "tokenizer.json is damaged (its hash differs)" in found.seen
    assert "shammah model import" in found.fix
    assert look("models", quick=True)[0].level == "ok"  # it compares no hashes, and says so
    assert "have their size" in look("models", quick=True)[0].seen


def test_a_model_that_is_cut_off(home: Home, look: Look, bundle: Bundle) -> None:
    replaced(home.models / bundle.name / "tokenizer.json", lambda data: data.__delitem__(slice(-1, None)))
    assert look("models")[0].level == "error"
    assert "memory" not in {one.check for one in look("memory")}  # it cannot be told then


def test_another_model_that_is_broken(home: Home, look: Look) -> None:
    other = home.models / "other"
    other.mkdir()
    (other / "manifest.json").write_text("{")
    worst, _ = look("models", quick=False)
    assert worst.level == "warning"
    assert "not the one that is served" in worst.seen
    home.config.write_text('[model]\nname = "absent"\n')
    worst = look("models")[0]
    assert worst.level == "error"
    assert "shammah model use" in worst.fix


# -- adapters -----------------------------------------------------------------------------------


def test_a_dangling_current(home: Home, look: Look) -> None:
    home.current.symlink_to("gone.safetensors")
    found = look("adapters")[0]
    assert found.level == "error"
    assert "'gone', which is gone" in found.seen
    assert "shammah adapters rollback" in found.fix
    home.current.unlink()
    home.current.symlink_to("/etc/passwd")
    assert "out of the directory" in look("adapters")[0].seen
    home.current.unlink()
    home.current.mkdir()
    assert "not a symbolic link" in look("adapters")[0].seen


def test_what_is_in_service_must_have_passed(home: Home, look: Look, bundle: Bundle) -> None:
    accept_adapter(home, bundle, NAME, 1, only="v_proj")
    home.current.symlink_to(f"{NAME}.safetensors")
    assert look("adapters")[0].level == "ok"
    with opened(home) as store:
        store.adapters.set_state(NAME, "rejected")
    assert "did not pass the gate" in look("adapters")[0].seen
    with opened(home) as store:
        store.adapters.set_state(NAME, "accepted")
    path = home.adapters / f"{NAME}.safetensors"
    accept_adapter(home, bundle, "other", 2, only="v_proj")
    (home.adapters / "other.safetensors").replace(path)
    found = look("adapters")
    assert found[0].level == "error"
    assert "not the one that passed the gate" in found[0].seen
    assert "1 adapter that passed the gate has no file: other" in found[1].seen
    replaced(path, lambda data: data.__delitem__(slice(-100, None)))
    assert "not a whole safetensors file" in look("adapters")[0].seen


def test_every_file_is_read(home: Home, look: Look, bundle: Bundle) -> None:
    for seed, name in enumerate(("one", "two")):
        accept_adapter(home, bundle, name, seed, only="v_proj")
    (home.adapters / "junk.safetensors").write_bytes(b"junk")
    part = bundle.manifest.ports[0].parts[0]
    import numpy as np

    tensors = {tensor_key(part.module, side): np.ones((2, 2), np.float32) for side in "AB"}
    write_adapter(home.adapters / "foreign.safetensors", tensors, AdapterMeta("0" * 64, 2, 2.0))
    (home.adapters / "two.safetensors").write_bytes((home.adapters / "one.safetensors").read_bytes())
    found = [one.seen for one in look("adapters", quick=False)]
    assert any("junk.safetensors is not a whole" in seen for seen in found)
    assert any("two.safetensors is not the file that the checks saw" in seen for seen in found)
    assert any("1 adapter belongs to a model that is not on this box" in seen for seen in found)
    assert any("2 adapters read and whole" in seen for seen in found)
    assert len(look("adapters", quick=True)) == 1


# -- database -----------------------------------------------------------------------------------


def test_a_corrupt_page(home: Home, look: Look) -> None:
    with opened(home) as store:
        for number in range(300):
            store.examples.add(example(f"Question {number}?"))
        store.database.scrub()
    data = bytearray(home.store.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    noise = random.Random(1)
    for number in range(20, len(data) // page - 1, 5):  # the schema's own pages are before these
        data[number * page : number * page + 64] = noise.randbytes(64)
    home.store.write_bytes(data)
    before = everything(home)
    for quick in (False, True):
        found = look("database", quick=quick)[0]
        assert found.level == "error"
        assert "damaged" in found.seen
        assert "shammah restore FILE" in found.fix
    assert everything(home) == before
    home.store.write_bytes(b"no database at all" * 1000)
    assert look("database")[0].level == "error"


def test_references_that_lead_nowhere(home: Home, look: Look) -> None:
    with opened(home) as store:
        store.examples.add(example())
    connection = sqlite3.connect(home.store)
    row = next(
        (table, key)
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for key in connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
        if table == "examples"
    )
    connection.execute(f"UPDATE examples SET {row[1][3]} = 'nobody'")
    connection.commit()
    connection.close()
    found = look("database")[0]
    assert found.level == "error"
    assert "1 rows" in found.seen


def test_schemas_of_other_releases(home: Home, look: Look, report: Callable[..., Report]) -> None:
    connection = sqlite3.connect(home.store)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()
    found = look("database")[0]
    assert found.level == "error"
    assert "newer release" in found.seen
    for path in home.root.glob("store.db*"):
        path.unlink()
    connection = sqlite3.connect(home.store, isolation_level=None)
    migrate(connection, STEPS[:3])
    connection.close()
    home.store.chmod(0o600)
    before = everything(home)
    (found,) = look("database")
    assert found.level == "note"
    assert f"schema 3 of {len(STEPS)}" in found.seen
    assert report().worst != "error"  # what needs the store is left out
    assert everything(home) == before  # above all, it was not brought up to date


def test_a_store_in_use_is_read_beside(home: Home, look: Look) -> None:
    with opened(home) as store:
        store.examples.add(example())
        with store.transaction():
            store.examples.add(example("Not committed?"))
            assert look("database", quick=False)[0].level == "ok"


# -- permissions --------------------------------------------------------------------------------


def test_permissions(home: Home, look: Look) -> None:
    assert look("permissions")[0].level == "ok"
    home.store.chmod(0o644)
    found = look("permissions")[0]
    assert (found.level, found.fix) == ("warning", f"`chmod go= {home.store}`")
    home.root.chmod(0o755)
    first, second = look("permissions")
    assert {first.level, second.level} == {"error"}
    for one in (first, second):
        subprocess.run(one.fix.strip("`"), shell=True, check=True)
    assert look("permissions")[0].level == "ok"  # the fixes are commands that fix


def test_files_of_another_user(home: Home, look: Look) -> None:
    os.chown(home.config, 65534, 65534)
    (found,) = look("permissions")
    assert found.level == "error"
    assert "home/config.toml" in found.seen
    subprocess.run(found.fix.strip("`"), shell=True, check=True)
    assert look("permissions")[0].level == "ok"


# -- disk ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Home]:
    """A home on a file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(f"tests of full disks mount a small tmpfs, which needs root: {done.stderr.strip()}")
    yield Home(place)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_and_one_that_is_read_only(small_disk: Home) -> None:
    from appliance.doctor.box import looked_at
    from appliance.doctor.disk import look

    def levels() -> list[tuple[str, str]]:
        with looked_at(small_disk, None, quick=True) as box:
            return [(one.level, one.seen) for one in look(box, lambda done: None)]

    ((level, seen),) = levels()
    assert (level, "runs are put off" in seen) == ("warning", True)
    small_disk.config.write_text("[resources]\nmin_free_disk_mb = 10\n")
    ((level, seen),) = levels()
    assert level == "ok"
    assert "GB are free" in seen
    (small_disk.root / "filler").write_bytes(bytes(40_000_000))
    ((level, seen),) = levels()
    assert (level, "The disk is full" in seen) == ("error", True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.root)], check=True)
    assert "can only be read" in levels()[0][1]


# -- leftovers ----------------------------------------------------------------------------------


def test_leftovers(home: Home, look: Look) -> None:
    assert look("leftovers")[0].level == "ok"
    long_ago = time.time() - 40 * 86400
    for name in (".config.toml.x1", "adapters/.a.incoming", "models/.import-abc/file", "backups/.making-1/f"):
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1_000_000))
        os.utime(path, (long_ago, long_ago))
        os.utime(path.parent, (long_ago, long_ago))
    (home.root / ".fresh.tmp").write_text("being written just now")
    (found,) = look("leftovers")
    assert found.level == "warning"
    assert "4.0 MB" in found.seen
    subprocess.run(found.fix.strip("`"), shell=True, check=True)
    assert look("leftovers")[0].level == "ok"
    assert (home.root / ".fresh.tmp").exists()


def test_a_restore_in_between_and_one_of_long_ago(home: Home, look: Look, bundle: Bundle) -> None:
    from appliance.backup.restore import cancel, stage

    with opened(home) as store:
        made = archive.create(home, store, bundle.name, bundle.manifest.base_hash)
    stage(home, made.path, "owner")
    assert "waits for the next start" in look("leftovers")[0].seen
    cancel(home)
    (home.root / ".restore").mkdir()
    assert "not prepared to its end" in look("leftovers")[0].seen
    (home.root / ".restore").rmdir()
    (home.root / "before-restore_20200101T000000Z").mkdir()
    assert look("leftovers")[0].level == "note"


# -- backups ------------------------------------------------------------------------------------


def test_backups(home: Home, look: Look, bundle: Bundle) -> None:
    assert look("backups")[0].level == "note"  # and nothing that would be lost
    with opened(home) as store:
        store.examples.add(example())
        assert look("backups")[0].level == "warning"
        made = archive.create(home, store, bundle.name, bundle.manifest.base_hash)
    assert look("backups", quick=False)[0].level == "ok"
    # Its beginning can be read, so that a quick look is content; the end is gone.
    data = made.path.read_bytes()
    made.path.write_bytes(data[:-200])
    assert look("backups")[0].level == "ok"
    found = look("backups", quick=False)
    assert [one.level for one in found] == ["error", "warning"]
    made.path.write_bytes(b"nothing")
    assert "damaged" in look("backups")[0].seen
    made.path.unlink()
    with opened(home) as store:
        made = archive.create(home, store, bundle.name, bundle.manifest.base_hash)
    assert "0 seconds old" in look("backups")[0].seen or look("backups")[0].level == "ok"


# -- settings -----------------------------------------------------------------------------------


def test_settings(home: Home, look: Look) -> None:
    assert look("config")[0].level == "ok"
    home.config.write_text('[train]\nbackend = "ort"\nort_python = "/nowhere/python"\n')
    assert "train.ort_python: " in look("config")[0].seen
    assert "cannot learn" in look("trainer")[0].seen
    home.config.write_text("[train]\nbackend = 7\n[lora]\nenable = true\n")
    found = look("config")
    assert [one.level for one in found] == ["error", "error"]
    assert "did you mean `enabled`?" in " ".join(one.seen for one in found)
