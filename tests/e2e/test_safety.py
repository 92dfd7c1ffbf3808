"""The box and its data, with real daemons: backed up by itself, moved elsewhere, damaged, out of order."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from daemons import Daemon, StartDaemon, accept_adapter, install_bundle

from appliance.backup.archive import backups
from appliance.cli import cli
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.sections import HURRY
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.owner import set_password

QUIET = "[lora]\nenabled = false\n[storage]\nmin_free_mb = 0\n"
PASSWORD = "correct horse battery"
PAGE = 4096


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def metric(daemon: Daemon, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", daemon.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def command(home: Home, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("SHAMMAH_HOME", str(home.root))
    done = CliRunner().invoke(cli, [*words])
    assert done.exit_code == 0, done.output
    return done.output


def example(number: int) -> NewExample:
    text = f"Answer {number}. " + "x" * 400
    messages = [{"role": "user", "content": f"Question {number}?"}]
    return NewExample(
        kind="automatic",
        query=f"Question {number}?",
        response=text,
        target=text,
        weight=1.0,
        messages=messages,
    )


def log_in(daemon: Daemon) -> httpx.Cookies:
    """As the owner's browser does."""
    body, headers = {"password": PASSWORD}, {"Origin": daemon.url}
    response = httpx.post(f"{daemon.url}/login", data=body, headers=headers, timeout=60)
    assert response.status_code == 303, response.text
    return response.cookies


def populate(home: Home, count: int) -> None:
    store = Store.open(home.ensure())
    set_password(store, PASSWORD)
    with store.transaction():
        for number in range(count):
            store.examples.add(example(number))
    store.close()


def test_it_backs_itself_up(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On schedule, unless nothing has changed; old ones go; a copy elsewhere; a failure is said."""
    monkeypatch.setenv(HURRY, "1")
    elsewhere = tmp_path / "nas"
    elsewhere.mkdir()
    schedule = f"[backup]\nevery_hours = 0.0003\nkeep = 2\nkeep_weeks = 0\ncopy_to = '{elsewhere}'\n"
    daemon = start_daemon(QUIET + schedule)
    until(lambda: backups(daemon.home))
    first = backups(daemon.home)[0]
    assert first.automatic
    assert first.manifest is not None
    until(lambda: (elsewhere / first.name).is_file())
    assert metric(daemon, "shammah_backup_failed") == 0
    # Two more rounds, in which nothing has changed.
    time.sleep(5)
    assert len(backups(daemon.home)) == 1
    made_by_hand = daemon.home.backups / first.name.replace("auto_", "backup_")
    made_by_hand.write_bytes(first.path.read_bytes())
    for number in (2, 3):
        assert daemon.post("/v1/feedback", json={"query": f"{number}?", "response": "x"}).status_code == 200
        newest = backups(daemon.home)[0].name
        until(lambda newest=newest: backups(daemon.home)[0].name != newest)  # type: ignore[misc]
    until(lambda: not first.path.exists())
    assert made_by_hand.exists()
    assert len([found for found in backups(daemon.home) if found.automatic]) == 2
    until(lambda: sorted(path.name for path in elsewhere.iterdir() if path.name.startswith("auto_"))
          == sorted(found.name for found in backups(daemon.home) if found.automatic))  # fmt: skip
    # The command looks and tidies through the daemon.
    assert re.search(r"Backups +\d+ ", command(daemon.home, monkeypatch, "storage"))
    log = daemon.home.runs / "run_20260101T000000Z" / "checkpoint.safetensors"
    log.parent.mkdir()
    log.write_bytes(b"x" * 100_000)
    os.utime(log, (1, 1))
    assert "Would remove 1" in command(daemon.home, monkeypatch, "storage", "--prune", "--dry-run")
    assert log.exists()
    assert "Removed 1" in command(daemon.home, monkeypatch, "storage", "--prune")
    assert not log.exists()
    assert "Removed what may go: 0.1 MB" in daemon.get("/").text
    elsewhere.rename(tmp_path / "unplugged")
    until(lambda: metric(daemon, "shammah_backup_failed") == 1)
    assert f"{elsewhere} is not there" in daemon.log
    assert "The last automatic backup failed" in daemon.get("/").text
    daemon.kill()


def test_to_another_box(
    start_daemon: StartDaemon, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup of one home, restored in another by an operator: same answers, same history, same keys."""
    old, new = Home(tmp_path / "old").ensure(), Home(tmp_path / "new")
    populate(old, 5)
    install_bundle(old, bundle)
    accept_adapter(old, bundle, "adapter_20260101T000000Z", 1, "o_proj")
    old.config.write_text(QUIET + "[console]\nname = 'Kitchen'\n")
    command(old, monkeypatch, "adapters", "promote", "adapter_20260101T000000Z")
    key = re.search(r"sk-shammah-\S+", command(old, monkeypatch, "keys", "create", "tablet"))
    assert key

    questions = ("What is the capital of France?", "Name a colour.", "Say hello.")
    history = (
        ("adapters", "list", "--json"), ("queue", "export"), ("config", "show"), ("keys", "list", "--json"),
    )  # fmt: skip

    def seen(home: Home) -> tuple[list[str], list[str], list[str], int]:
        daemon = start_daemon(home=home)
        answers = [daemon.ask(question, store=False) for question in questions]
        headers = {"Authorization": f"Bearer {key[0]}"}
        status = daemon.get("/v1/models", headers=headers).status_code
        daemon.stop()
        told = [command(home, monkeypatch, *words) for words in history]
        told = [re.sub(r'"last_seen": \S+', "", text) for text in told]
        store = Store.open(home)
        audit = [entry.action for entry in store.audit.list() if entry.action != "backup.restored"]
        store.close()
        return answers, told, audit, status

    command(old, monkeypatch, "backup", "--output", str(tmp_path))
    archive = next(path for path in tmp_path.iterdir() if path.name.startswith("backup_"))
    install_bundle(new, bundle)
    command(new, monkeypatch, "restore", str(archive), "--yes")
    before, after = seen(old), seen(new)
    assert after[0] == before[0]
    assert after[1] == before[1]
    assert [action for action in after[2] if action != "backup.created"] == [
        action for action in before[2] if action != "backup.created"
    ]
    assert after[3] == before[3] == 200
    assert "adapter_20260101T000000Z" in after[1][0]


def test_damage_while_serving(start_daemon: StartDaemon, bundle: Bundle, tmp_path: Path) -> None:
    """Serving goes on, collecting pauses, it is said; the restart mends it, and nothing is lost."""
    home = Home(tmp_path / "home").ensure()
    populate(home, 3000)
    daemon = start_daemon(QUIET, home=home)
    with closing(sqlite3.connect(home.store)) as connection:
        pages = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = 'examples_query' AND pagetype = 'leaf'"
        )
        leaves = [row[0] for row in pages]
    assert len(leaves) > 10
    with home.store.open("r+b") as file:
        for page in leaves:
            file.seek((page - 1) * PAGE)
            file.write(b"\xa5" * PAGE)

    def teach() -> httpx.Response:
        return daemon.post("/v1/feedback", json={"query": "Q?", "response": "no", "correction": "yes"})

    refused = teach()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_damaged")
    assert daemon.ask("Say hello.", max_tokens=3)
    assert daemon.get("/health").status_code == 200
    until(lambda: metric(daemon, "shammah_store_damaged") == 1)
    until(lambda: metric(daemon, "shammah_collection_paused") == 1)
    cookies = log_in(daemon)
    front = daemon.get("/", cookies=cookies).text
    assert "The store is damaged in places" in front
    assert "Nothing is collected" in front
    daemon.kill()
    daemon.start()
    assert "All that was in it could be read" in daemon.log
    assert teach().status_code == 200
    cookies = log_in(daemon)
    assert "The store was damaged." in daemon.get("/", cookies=cookies).text
    page = daemon.get("/backup", cookies=cookies).text
    assert "I have read it" in page
    seen = httpx.post(f"{daemon.url}/backup/seen", cookies=cookies, headers={"Origin": daemon.url})
    assert seen.status_code == 303
    assert "The store was damaged." not in daemon.get("/", cookies=cookies).text
    daemon.kill()
    store = Store.open(home)
    assert store.examples.count() >= 3001
    assert {f"Question {number}?" for number in range(3000)} <= {
        found.query for found in store.examples.list(limit=5000)
    }
    store.database.check()
    store.close()
    (kept,) = home.root.glob("damaged_*")
    assert (kept / "store.db").is_file()


def test_a_broken_config_is_no_dead_end(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(QUIET + "[console]\nname = 'Kitchen'\n")
    daemon.stop()
    daemon.home.config.write_text("[lora\nenabled = maybe")
    daemon.start()
    front = daemon.get("/").text
    assert "Kitchen" in front
    assert "config.toml cannot be used" in front
    assert "config.toml cannot be used; other settings serve" in daemon.log
    assert "[lora" in daemon.get("/settings/text").text
    assert daemon.ask("Say hello.", max_tokens=3)
    # Put right as the console does it, it counts again.
    daemon.home.config.write_text(QUIET + "[console]\nname = 'Cellar'\n")
    assert "config.toml cannot be used" not in daemon.get("/").text
    daemon.kill()


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which the kernel makes read-only when it meets an error."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64_000_000)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted = ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)]
    done = subprocess.run(mounted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"this test mounts a loop device and so needs root: {done.stderr}"
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def make_read_only(place: Path) -> None:
    source = next(
        line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {place} " in line
    )
    Path(f"/sys/fs/ext4/{Path(source).name}/trigger_fs_error").write_text("tried by a test")


def test_a_disk_that_becomes_read_only(bundle: Bundle, real_disk: Path, start_daemon: StartDaemon) -> None:
    home = Home(real_disk / "home")
    home.root.mkdir()
    home.models.symlink_to(bundle.path.parent)
    populate(home, 10)
    daemon = start_daemon(QUIET, home=home)
    body = {"query": "Q?", "response": "no", "correction": "yes"}
    given = daemon.post("/v1/feedback", json=body).json()["id"]
    make_read_only(real_disk)
    for _ in range(3):
        refused = daemon.post("/v1/feedback", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_read_only"), (
            refused.text
        )
    assert daemon.ask("Say hello.", max_tokens=3)
    assert daemon.get("/health").status_code == 200
    until(lambda: metric(daemon, "shammah_collection_paused") == 1)
    cookies = log_in(daemon)
    assert "Nothing is collected: The disk is read-only" in daemon.get("/", cookies=cookies).text
    daemon.kill()
    # Mended as an operator would, all that was acknowledged is there.
    subprocess.run(["umount", str(real_disk)], check=True)
    image = real_disk.with_suffix(".img")
    assert subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, check=False).returncode in (
        0,
        1,
    )
    subprocess.run(["mount", "-o", "loop", str(image), str(real_disk)], check=True)
    daemon.start()
    store = Store.open(home)
    assert store.examples.get(given).correction == "yes"
    store.close()
    assert daemon.post("/v1/feedback", json={**body, "query": "Q2?"}).status_code == 200
    daemon.kill()


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_store_that_another_program_holds(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Feedback waits a little and is refused; who only asks notices nothing."""
    home = Home(tmp_path / "home").ensure()
    populate(home, 3)
    store = Store.open(home)
    secret = store.keys.create("tablet")[1]
    store.close()
    daemon = start_daemon(QUIET, home=home)
    headers = {"Authorization": f"Bearer {secret}"}
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(home.store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as locker:
        assert locker.stdout is not None
        assert locker.stdin is not None
        assert locker.stdout.readline() == b"locked\n"
        body = {"query": "Q?", "response": "no", "correction": "yes"}
        refused = daemon.post("/v1/feedback", json=body, headers=headers)
        assert refused.status_code == 503
        assert "in use by another program" in refused.text
        asked = {"model": "shammah", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        assert daemon.post("/v1/chat/completions", json=asked, headers=headers).status_code == 200
        cookies = log_in(daemon)
        assert "Log out" in daemon.get("/account", cookies=cookies).text
        locker.stdin.close()
    assert daemon.post("/v1/feedback", json=body, headers=headers).status_code == 200
    daemon.kill()
