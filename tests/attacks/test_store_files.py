"""What others delete, replace or move under a running box: nothing it has acknowledged is lost.

A real daemon, files taken away as a clean-up, a sync program or a hand would, then `kill -9`: all that was
answered with success is counted at the next start.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, install_bundle
from faults.trial import CONFIG, Trial, opened, serving

from appliance.home import Home
from appliance.model.bundle import Bundle

FILES = ("store.db", "store.db-wal", "store.db-shm")


@pytest.fixture(scope="module")
def box(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A daemon that collects nothing by itself; each test leaves it running or dead."""
    home = Home(tmp_path_factory.mktemp("taken") / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(serving(small, CONFIG))
    trial = Trial(Daemon(home), small)
    trial.daemon.start()
    yield trial
    trial.daemon.kill()


@pytest.fixture(autouse=True)
def up(box: Trial) -> None:
    if box.daemon.process is None or box.daemon.process.poll() is not None:
        box.daemon.start()


def teach(box: Trial, count: int) -> None:
    """Each is acknowledged, or the test fails."""
    for _ in range(count):
        answer = box.teach()
        assert answer.status_code == 200, answer.text


def all_there(box: Trial) -> None:
    """After `kill -9` and before the next start as well as after it."""
    box.daemon.kill()
    box.daemon.start()
    with opened(box.home) as store:
        states = {example: store.examples.get(example).state for example in box.acknowledged}
    assert set(states.values()) == {"pending"}, states
    with sqlite3.connect(box.home.store) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def delete(home: Home, *names: str) -> None:
    for name in names:
        (home.root / name).unlink()


def empty_ones(home: Home, *names: str) -> None:
    """As a careless restore does it: others of the same name."""
    for name in names:
        (home.root / name).unlink()
        (home.root / name).touch()


def older(home: Home, *names: str) -> None:
    """A copy made a moment ago is moved over the database."""
    copy = home.root / "copy"
    shutil.copyfile(home.store, copy)
    copy.replace(home.store)


Harm = Callable[..., None]


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (delete, ("store.db-wal",)),
        (delete, ("store.db-shm",)),
        (delete, ("store.db",)),
        (delete, FILES),
        (empty_ones, ("store.db-wal",)),
        (empty_ones, FILES),
        (older, ()),
    ],
)
def test_what_is_acknowledged_survives_its_files(box: Trial, harm: Harm, names: tuple[str, ...]) -> None:
    teach(box, 5)
    before = box.daemon.log.count("removed or replaced while in use")
    harm(box.home, *names)
    teach(box, 6)
    assert box.daemon.log.count("removed or replaced while in use") > before
    assert (box.home.store.stat().st_mode & 0o777) == 0o600
    all_there(box)


def test_nobody_has_to_write_for_it_to_be_seen(box: Trial) -> None:
    teach(box, 3)
    delete(box.home, *FILES)
    deadline = time.monotonic() + 20
    while not box.home.store.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    all_there(box)


def test_an_orderly_stop_saves_it_too(box: Trial) -> None:
    teach(box, 3)
    delete(box.home, *FILES)
    assert box.daemon.stop() == 0
    all_there(box)


def test_what_lay_there_instead_is_kept(box: Trial) -> None:
    """Somebody has put another database there and means it: ours is served, his is not thrown away."""
    teach(box, 2)
    with sqlite3.connect(box.home.root / "other") as connection:
        connection.execute("CREATE TABLE his (words)")
        connection.execute("INSERT INTO his VALUES ('mine')")
    connection.close()
    (box.home.root / "other").replace(box.home.store)
    teach(box, 1)
    (kept,) = [
        path
        for path in box.home.root.glob("store.db.replaced_*")
        if "CREATE TABLE his" in path.read_bytes().decode("latin-1")
    ]
    with sqlite3.connect(kept) as connection:
        assert connection.execute("SELECT words FROM his").fetchone() == ("mine",)
    connection.close()
    all_there(box)


def test_the_doctor_tells(box: Trial) -> None:
    delete(box.home, "store.db-wal")
    teach(box, 1)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "doctor", "--quick"],
        env={"SHAMMAH_HOME": str(box.home.root), "PATH": "/usr/bin:/bin", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "store.db-wal: removed or replaced under the running box" in done.stdout, done.stdout


def test_a_home_that_is_moved_away_takes_nothing_until_it_is_back(box: Trial) -> None:
    teach(box, 2)
    elsewhere = box.home.root.with_name("elsewhere")
    box.home.root.rename(elsewhere)
    try:
        answer = box.teach()
        assert answer.status_code == 503
        assert "is not there any more" in answer.json()["error"]["message"]
    finally:
        elsewhere.rename(box.home.root)
    deadline = time.monotonic() + 30
    while box.teach().status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    all_there(box)


def test_a_command_beside_the_daemon_only_refuses(box: Trial) -> None:
    """Of two that made it good, one would undo what the other did."""
    with opened(box.home) as store:
        store.settings.set("theirs", "1")
        delete(box.home, *FILES)
        teach(box, 1)
        with pytest.raises(Exception, match="removed or replaced while in use") as refused:
            store.settings.set("theirs", "2")
        assert getattr(refused.value, "status", None) == 503
    all_there(box)


def test_the_queue_s_mirror_comes_back(box: Trial) -> None:
    teach(box, 1)
    box.home.queue.unlink()
    deadline = time.monotonic() + 20
    while not box.home.queue.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(box.home.queue.read_text().splitlines()) >= 1


def test_without_its_lock_there_is_still_one_daemon_to_a_home(box: Trial) -> None:
    (box.home.root / "daemon.lock").unlink()
    box.home.daemon.unlink(missing_ok=True)
    second = Daemon(box.home, output=box.home.root.with_name("second.out"))
    second.start(wait=False)
    try:
        assert second.process is not None
        assert second.process.wait(60) == 1
        assert "A daemon is already running" in second.log
    finally:
        second.kill()
    assert box.daemon.get("/ready").status_code == 200


def test_directories_and_files_come_back(box: Trial) -> None:
    """Adapters, runs, logs, the file by which commands find the daemon."""
    for name in ("adapters", "runs", "logs"):
        shutil.rmtree(box.home.root / name)
    box.home.daemon.unlink(missing_ok=True)
    deadline = time.monotonic() + 30
    wanted: list[Path] = [box.home.adapters, box.home.runs, box.home.logs / "shammah.log", box.home.daemon]
    while not all(path.exists() for path in wanted):
        assert time.monotonic() < deadline, [path for path in wanted if not path.exists()]
        time.sleep(0.1)
    assert box.daemon.ask("Still here?", max_tokens=2, store=False)
    assert "Traceback" not in box.daemon.log
