"""kill -9 at every named step: the restart serves, nothing is lost, and the second try succeeds."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from daemons import Daemon, install_bundle
from faults.acts import ACTS, BACK_UP
from faults.conftest import MakeTrial
from faults.points import HANGS, IN_CHILD, POINTS
from faults.trial import CONFIG, Trial, backup_names, opened, until

import appliance
from appliance.failpoints import VARIABLE
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.migrations import STEPS, migrate

Tally = Callable[[str, int, int], None]
HANDFUL = ("collect.completion", "feedback.stored", "settings.written", "promote.linked", "backup.packed")
"""Tried in every run of the tests; all others by `make faults`."""

RUN = (
    "train.begun", "train.directory", "train.frozen", "train.prepared", "train.started", "train.loaded",
    "train.recovering", "train.stepped@2", "train.checkpoint@3", "train.checkpointed@2", "train.weights",
    "train.trained", "gate.begun", "gate.judged", "gate.written", "gate.reported", "gate.settled",
    "adapters.linked", "train.placed", "promote.swapped", "promote.stated", "promote.linked",
    "train.ended",
)  # fmt: skip
"""In the order in which one run comes by. After a kill at `promote.linked` the switch is done."""
FORGET = ("forget.back", "forget.committed", "forget.cleaned", "forget.removed", "forget.scrubbed")
STAGE = ("restore.unpacked", "restore.checked", "restore.noted")
PLACE = (
    "restore.moved", "restore.moved@3", "restore.aside", "restore.placed", "restore.placed@2",
    "restore.finished",
)  # fmt: skip
MIGRATE = ("migrate.copied", "migrate.begun", "migrate.applied", "migrate.committed")


def bare(point: str) -> str:
    return point.partition("@")[0]


def test_every_failpoint_is_in_the_table_and_is_tried() -> None:
    code = "".join(path.read_text() for path in Path(appliance.__path__[0]).rglob("*.py"))
    assert set(re.findall(r'\bfailpoint\("([^"]+)"\)', code)) == set(POINTS)
    assert len(re.findall(r"\bfailpoint\((?!name: str)", code)) == len(re.findall(r'\bfailpoint\("', code))
    assert {*ACTS, *map(bare, (*RUN, *FORGET, *STAGE, *PLACE, *MIGRATE)), *HANGS} == set(POINTS)
    assert set(POINTS) >= IN_CHILD


@pytest.mark.parametrize(
    "point", [pytest.param(name, marks=() if name in HANDFUL else pytest.mark.faults) for name in ACTS]
)
def test_everyday(box: Trial, point: str, tally: Tally) -> None:
    """What people and devices do, cut off and done again."""
    act = ACTS[point]
    if box.daemon.process is None or box.daemon.process.poll() is not None:
        box.daemon.start()
    box.arm(f"{point}=kill")
    tally(f"kill: {point.partition('.')[0]}", 1, 0)
    box.attempt(lambda: act.do(box))
    box.dies(point)
    box.daemon.start()
    box.check(point)
    assert act.do(box) == 200
    until(lambda: act.done(box), f"the second try after {point}", 30)
    box.check(f"the second try after {point}")
    tally(f"kill: {point.partition('.')[0]}", 0, 1)


@pytest.mark.faults
def test_nothing_is_left_over(box: Trial) -> None:
    """After all these kills."""
    box.check_tidy()


@pytest.mark.faults
def test_a_run_is_cut_off_everywhere(trial: MakeTrial, small: Bundle, tally: Tally) -> None:
    """One batch, killed at each step on its way to service; then forgotten, killed at each step of that."""
    box = trial(model=small)
    for _ in range(4):
        assert box.teach().status_code == 200
    began = time.monotonic()
    for number, point in enumerate(RUN):
        name = bare(point)
        tally(f"kill: {name.partition('.')[0]}", 1, 0)
        box.arm(f"{name}=kill{point.removeprefix(name)}")
        if number == 0:
            box.attempt(lambda: box.daemon.post("/v1/training/run"))
        if name == "train.recovering":
            box.daemon.kill()
            box.daemon.start(wait=False)
        if name in IN_CHILD:
            box.child_dies(name)
        else:
            box.dies(name)
            # What the start takes up waits until it has been looked at.
            box.arm("train.recovering=hang")
            box.daemon.start()
        box.check(point)
        tally(f"kill: {name.partition('.')[0]}", 0, 1)
        print(f"{time.monotonic() - began:6.1f} s  {point}", flush=True)
    box.arm()
    run = box.settled()
    assert run.state == "promoted", run
    box.check("the run")
    with opened(box.home) as store:
        assert {store.examples.get(example).state for example in box.acknowledged} == {"used"}
        assert [switch.to for switch in store.adapters.switches(10)] == [run.adapter]
    forget_everywhere(box, tally)
    box.check_tidy()


def forget_everywhere(box: Trial, tally: Tally) -> None:
    gone = min(box.acknowledged)
    path = f"/v1/training/examples/{gone}?retrain=true"

    def forget() -> int:
        return httpx.delete(box.daemon.url + path, timeout=120).status_code

    with opened(box.home) as store:
        word = store.examples.get(gone).query
    for point in FORGET:
        tally("kill: forget", 1, 0)
        box.arm(f"{point}=kill")
        if point in FORGET[:2]:
            box.attempt(forget)
        else:  # the start goes on with what was cut off
            box.daemon.kill()
            box.daemon.start(wait=False)
        box.dies(point)
        if point == FORGET[1]:
            box.acknowledged.discard(gone)
        if point in (FORGET[0], FORGET[-1]):
            box.daemon.start()
            box.check(point)
        tally("kill: forget", 0, 1)
    assert box.daemon.get("/v1/adapters").json()["current"] is None
    assert forget() == 200
    box.check("forgetting")
    with opened(box.home) as store:
        assert {store.examples.get(example).state for example in box.acknowledged} == {"pending"}
    box.daemon.stop()
    for file in box.home.root.rglob("*"):
        if file.is_file() and "models" not in file.parts:
            assert word.encode() not in file.read_bytes(), file
    box.daemon.start()


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(name, marks=() if name == "restore.moved@3" else pytest.mark.faults)
        for name in (*STAGE, *PLACE)
    ],
)
def test_a_restore(box: Trial, point: str, tally: Tally, bundle: Bundle, tmp_path: Path) -> None:
    """Cut off anywhere there is the one home or the other, whole."""
    name, _, times = point.partition("@")
    if box.daemon.process is None or box.daemon.process.poll() is not None:
        box.daemon.start()
    tally("kill: restore", 1, 0)
    assert BACK_UP.do(box) == 200
    archive = backup_names(box.daemon.get("/backup").text)[-1]
    kept = set(box.acknowledged)
    assert box.teach().status_code == 200
    later = box.acknowledged - kept
    if point in STAGE:
        box.arm(f"{name}=kill")
        box.attempt(lambda: box.form("/backup/restore", name=archive))
        box.dies(name)
    else:
        assert box.form("/backup/restore", name=archive).status_code == 303
        box.daemon.stop()
        box.arm(f"{name}=kill@{times or 1}")
        box.daemon.start(wait=False)
        box.dies(name)
    restored = point not in STAGE[:2]
    if restored:
        box.acknowledged = kept
    box.daemon.start()
    box.check(point)
    with opened(box.home) as store:
        there = {example.id for example in store.examples.list(limit=10_000)}
    assert bool(later & there) != restored
    for aside in box.home.root.glob("before-restore_*"):
        shutil.rmtree(aside)
    if not restored:
        assert box.form("/backup/restore", name=archive).status_code == 303
        box.daemon.stop()
        box.acknowledged = kept
        box.daemon.start()
        box.check(f"the second try after {point}")
    box.check_tidy()
    tally("kill: restore", 0, 1)


def old_home(home: Home, bundle: Bundle) -> None:
    """One of the first release, with an example that waits."""
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    connection = sqlite3.connect(home.store, isolation_level=None)
    migrate(connection, STEPS[:1])
    connection.execute(
        "INSERT INTO examples (id, created, kind, state, query, response, target, weight, messages,"
        " finish_reason, source, query_key, response_key, target_key, context_key)"
        " VALUES ('ex_old', 1e9, 'correction', 'pending', 'Who?', 'Nobody.', 'Ada.', 10,"
        " '[{\"role\": \"user\", \"content\": \"Who?\"}]', 'stop', 'api', 'q', 'r', 't', 'c')"
    )
    connection.close()


@pytest.mark.faults
@pytest.mark.parametrize("point", MIGRATE)
def test_a_migration(point: str, bundle: Bundle, tmp_path: Path, tally: Tally) -> None:
    """Cut off before, in and after each step the database is of one schema, and goes on from there."""
    for number in range(1, 2 if point == "migrate.copied" else len(STEPS)):  # copied once, before all steps
        home = Home(tmp_path / f"home{number}").ensure()
        old_home(home, bundle)
        tally("kill: migrate", 1, 0)
        environment = {"SHAMMAH_HOME": str(home.root), VARIABLE: f"{point}=kill@{number}"}
        command = [sys.executable, "-m", "appliance.cli", "queue", "show", "--json"]
        killed = subprocess.run(command, env={**_environment(), **environment}, check=False)
        assert killed.returncode == -9
        connection = sqlite3.connect(home.store)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        assert version == number + (point == "migrate.committed")
        connection.close()
        environment[VARIABLE] = ""
        done = subprocess.run(
            command, env={**_environment(), **environment}, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "ex_old" in done.stdout
        tally("kill: migrate", 0, 1)
    box = Trial(Daemon(home), bundle, {"ex_old"})
    box.daemon.start()
    box.check(point)
    box.check_tidy()
    box.daemon.kill()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != VARIABLE}
