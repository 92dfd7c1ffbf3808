"""A trainer that is killed goes on from its checkpoint and ends with the same adapter."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemons import Daemon, install_bundle
from faults.trial import CONFIG, serving
from safetensors.numpy import load_file

from appliance.failpoints import VARIABLE
from appliance.home import Home
from appliance.learning.resumption import JUDGED_AGAIN, may_go_on
from appliance.learning.retry import load_retry
from appliance.learning.train import checkpoint
from appliance.learning.train.checkpoint import Checkpoint
from appliance.model.bundle import Bundle
from appliance.sections import TrainConfig
from appliance.store import Store
from appliance.store.runs import Trigger

from .box import FREE, Box, running
from .test_runs import OFF, PROTOCOL, Cut, fill, first, ids, trainer, writes
from .test_trainer import ROWS

STATE = {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "0.step": np.float32(7)}
LIVES = Path(__file__).with_name("lives.py")
KILLS = 20


def arguments(place: Path, bundle: Bundle, **settings: Any) -> list[str]:
    """What the trainer is given, on a small batch in `place`."""
    place.mkdir()
    (place / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "train.json").write_text(TrainConfig(**settings).model_dump_json())
    given = ["--bundle", str(bundle.path), "--run", "run_1"]
    for name, file in [
        ("examples", "examples.jsonl"),
        ("settings", "train.json"),
        ("out", "candidate.safetensors"),
        ("metrics", "metrics.jsonl"),
        ("checkpoint", checkpoint.NAME),
    ]:
        given += [f"--{name}", str(place / file)]
    return given


def live(trainer: list[str], lives: list[tuple[str, int] | None]) -> list[dict[str, Any]]:
    """Have the trainer live and die so; see lives.py."""
    asked = json.dumps({"trainer": trainer, "lives": lives})
    done = subprocess.run(
        [sys.executable, str(LIVES), asked], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return [line for line in said if "life" in line]


@pytest.mark.faults
def test_killed_twenty_times_it_ends_as_if_it_had_not_been(tmp_path: Path, bundle: Bundle) -> None:
    quick = {"layers": 0.2, "epochs": 2, "batch_tokens": 28, "nice": 0, "checkpoint_seconds": 0}
    (whole,) = live(arguments(tmp_path / "whole", bundle, **quick), [None])
    assert whole["life"] == 0
    events = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    steps = next(event["steps"] for event in events if event["event"] == "start")
    assert steps >= 24, "too short a run to be killed that often"

    # Of training and checkpoints the moments of two steps, so that the steps suffice for all lives.
    moments = whole["moments"]
    reach = {name: moments[name] for name in ("load", "start", "end")}
    reach |= {name: 2 * moments[name] // steps for name in ("training", "checkpoint")}
    chosen = random.Random(20261125)
    phases = ["load", "start", "training", "training", "checkpoint", "checkpoint"] * 3
    chosen.shuffle(phases)
    phases += ["end"] * (KILLS - len(phases))  # where a trainer is until it has written its adapter
    deaths = [(phase, chosen.randint(1, reach[phase])) for phase in phases]
    lives = live(arguments(tmp_path / "killed", bundle, **quick), [*deaths, None])
    assert [line["life"] for line in lives] == [-9] * KILLS + [0], deaths

    events = [json.loads(line) for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event["event"] == "resumed"]
    assert resumed == sorted(resumed)
    assert len(set(resumed)) >= 4
    assert resumed[-1] == steps
    one, two = (load_file(tmp_path / name / "candidate.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    # A kill may leave a temporary file of the adapter; the checkpoint never more than one.
    assert len([name for name in left if checkpoint.NAME in name]) <= 2


# --- the file


def bound(path: Path, *parts: bytes, every: float = 0) -> Checkpoint:
    made = Checkpoint(path, every)
    made.bind(*parts)
    return made


def test_a_checkpoint_is_valid_for_what_it_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    assert bound(path, b"batch").load() is None
    assert checkpoint.steps_done(path) == 0
    bound(path, b"batch", b"base").save(7, STATE)
    found = bound(path, b"batch", b"base").load()
    assert found is not None
    assert found[0] == checkpoint.steps_done(path) == 7
    assert found[1].keys() == STATE.keys()
    assert all(np.array_equal(found[1][name], STATE[name]) for name in STATE)
    for parts in ([b"batch"], [b"base", b"batch"], [b"batchb", b"ase"], [b"batch", b"base", b""]):
        assert bound(path, *parts).load() is None


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_checkpoint_is_none(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / checkpoint.NAME
    bound(path).save(7, STATE)
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert bound(path).load() is None
    checkpoint.remove(path)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_costs_the_checkpoint_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / checkpoint.NAME
    kept = bound(path)
    kept.save(7, STATE)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    kept.save(8, STATE)
    monkeypatch.undo()
    assert checkpoint.steps_done(path) == 7
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_slow_disk_gets_fewer_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = bound(tmp_path / checkpoint.NAME, every=0.01)
    assert wait(kept.due)
    real = os.fsync

    def slow(fd: int) -> None:
        time.sleep(0.2)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    kept.save(1, STATE)
    time.sleep(0.2)
    assert not kept.due()  # before twenty times what it took


def wait(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# --- the run


def test_how_often_a_run_goes_on() -> None:
    assert may_go_on([], 0, 10)
    assert may_go_on([0, 0, 5], 5, 10)
    assert not may_go_on([0, 0], 0, 10)
    assert not may_go_on([5, 0, 5], 5, 10)
    assert not may_go_on([1, 2, 3], 4, 3)


DIES = """
import numpy, pathlib
from appliance.learning.train.checkpoint import Checkpoint, steps_done
path = pathlib.Path(args["--checkpoint"])
def die(step):
    Checkpoint(path, 0).save(step, {"0.weight": numpy.zeros(1)})
    os.kill(os.getpid(), 9)
"""


def dies(tmp_path: Path, bundle: Bundle, until: int) -> list[str]:
    """A trainer that gets one step further each time, and to its end after so many."""
    rest = f"if steps_done(path) < {until}: die(steps_done(path) + 1)\n"
    script = Path(writes(tmp_path, bundle, 1e-4)[1])
    end = script.read_text().partition(PROTOCOL)[2]
    return trainer(tmp_path, DIES + rest + end)


def leftovers(box: Box, run: str) -> list[str]:
    return [path.name for path in (box.home.runs / run).iterdir() if path.suffix == ".safetensors"]


async def test_a_run_goes_on_as_long_as_it_gets_further(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, dies(tmp_path, bundle, 5)) as box:
        given = fill(box.store)
        await box.start_run()
        run = await first(box)
        assert (run.state, run.attempt) == ("promoted", 1)
        assert run.metrics is not None
        assert run.metrics["resumed"] == [1, 2, 3, 4, 5]
        assert [event.data["step"] for event in box.named("run.resumed")] == [1, 2, 3, 4, 5]
        assert ids(box.store, "used") == given
        assert leftovers(box, run.id) == []


async def test_a_run_that_dies_at_the_same_place_ends(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, trainer(tmp_path, DIES + "die(3)")) as box:
        given = fill(box.store)
        await box.start_run()
        run = await first(box)
        assert run.state == "failed"
        assert "killed by SIGKILL" in (run.reason or "")
        assert (run.metrics or {})["resumed"] == [3, 3]
        assert ids(box.store, "pending") == given
        assert leftovers(box, run.id) == []


@pytest.mark.parametrize("kills", [1, JUDGED_AGAIN + 1])
async def test_a_gate_that_is_killed_begins_again(
    home: Home, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """So often and no more; the training before it is not done again."""
    # This process has been asked for its own failpoints long ago; only its children read these.
    spec = tmp_path / "spec"
    spec.write_text("gate.begun=kill")
    monkeypatch.setenv(VARIABLE, str(spec))
    async with running(home, bundle, OFF, writes(tmp_path, bundle, 1e-4)) as box:
        given = fill(box.store)
        run = await box.start_run()

        def judged_again() -> int:
            return int((box.store.runs.get(run.id).metrics or {}).get("judged_again", 0))

        if kills <= JUDGED_AGAIN:
            await box.until(lambda: judged_again() >= kills, 120)
            spec.write_text("")
        ended = await first(box)
        assert ended.id == run.id
        assert "resumed" not in (ended.metrics or {})
        if kills <= JUDGED_AGAIN:
            assert ended.state == "promoted"
            assert ids(box.store, "used") == given
        else:
            assert ended.state == "failed"
            assert judged_again() == JUDGED_AGAIN
            assert "SIGKILL" in (ended.reason or "")
            assert ids(box.store, "pending") == given
        assert leftovers(box, run.id) == []


async def cut_off(home: Home, bundle: Bundle, program: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A run whose daemon died while it trained, after three steps."""
    async with running(home, bundle, OFF, program) as box:
        fill(box.store)
        runner: Any = box.learning._runner

        def cut(*args: object) -> None:
            raise Cut

        monkeypatch.setattr(runner, "_note_pid", cut)
        run = await box.start_run("timeout")
        await box.until(lambda: runner.progress is None, 300)
        monkeypatch.undo()
        Checkpoint(home.runs / run.id / checkpoint.NAME, 0).save(3, STATE)
        return run.id


# The run keeps the settings it began with, so these cannot stop it.
ON = "[train]\nmax_resumes = 0\n[lora]\nauto_train_threshold = 1000\n"


async def test_a_run_survives_the_daemon(
    home: Home, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = writes(tmp_path, bundle, 1e-4)
    run = await cut_off(home, bundle, program, monkeypatch)
    async with running(home, bundle, ON, program) as box:
        ended = await first(box)
        assert (ended.id, ended.state) == (run, "promoted")
        assert (ended.metrics or {}).items() >= {"resumed": [3], "loss": 2.5, "peak_mb": 9}.items()
        assert leftovers(box, run) == []


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        ({}, OFF, "and learning is off now."),
        ({"parent": "gone"}, ON, "and base is in service now."),
        ({"metrics": {"resumed": [0, 3, 3]}}, ON, "(power, kill or crash) too often."),
        ({}, "full disk", "and the box has nothing to spare: Only "),
    ],
)
async def test_a_run_that_cannot_go_on_gives_its_examples_back(
    home: Home,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    config: str,
    reason: str,
) -> None:
    program = trainer(tmp_path, "time.sleep(60)")
    run = await cut_off(home, bundle, program, monkeypatch)
    store = Store.open(home)
    given = ids(store, "training")
    store.runs.update(run, **change)
    store.close()
    if config == "full disk":
        full = FREE.replace("min_free_disk_mb = 0", "min_free_disk_mb = 1000000000")
        monkeypatch.setattr(f"{running.__module__}.FREE", full)
        config = ON
    async with running(home, bundle, config, program) as box:
        ended = await first(box)
        assert (ended.id, ended.state) == (run, "failed")
        assert reason in (ended.reason or "")
        assert ids(box.store, "pending") == given
        assert leftovers(box, run) == []


async def test_what_a_crash_left_of_an_ended_run_is_removed(home: Home, bundle: Bundle) -> None:
    store = Store.open(home)
    run = store.runs.create("person", 1)
    store.runs.update(run.id, state="promoted")
    store.close()
    (home.runs / run.id).mkdir()
    Checkpoint(home.runs / run.id / checkpoint.NAME, 0).save(3, STATE)
    (home.runs / run.id / f".{checkpoint.NAME}").write_bytes(b"half")
    async with running(home, bundle, OFF) as box:
        await box.until(lambda: not list((home.runs / run.id).iterdir()), 30)


# --- a box that is stopped

SAVES = """
import numpy, pathlib, signal
from appliance.learning.train.checkpoint import Checkpoint
def saved(*_):
    Checkpoint(pathlib.Path(args["--checkpoint"]), 0).save(7, {"0.weight": numpy.zeros(1)})
    os._exit(143)
signal.signal(signal.SIGTERM, saved)
open(args["--out"] + ".begun", "w").close()
time.sleep(300)
"""


async def interrupted(home: Home, bundle: Bundle, program: list[str], trigger: Trigger = "person") -> str:
    """A run whose box was stopped while it trained."""
    async with running(home, bundle, OFF, program) as box:
        fill(box.store)
        run = await box.start_run(trigger)
        await box.until(lambda: (home.runs / run.id / "candidate.safetensors.begun").exists(), 60)
        return run.id


async def test_a_box_that_stops_every_night_ends_its_run(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    """However often, from the same step too: that the box was stopped is no fault of the run."""
    program = trainer(tmp_path, SAVES)
    run = await interrupted(home, bundle, program)
    assert checkpoint.steps_done(home.runs / run / checkpoint.NAME) == 7
    store = Store.open(home)
    assert [row.state for row in store.runs.list()] == ["training"]
    store.close()
    for _ in range(3):
        (home.runs / run / "candidate.safetensors.begun").unlink()
        async with running(home, bundle, ON, program) as box:
            await box.until(lambda: (home.runs / run / "candidate.safetensors.begun").exists(), 60)
            assert [event.data["step"] for event in box.named("run.resumed")] == [7]
    async with running(home, bundle, ON, writes(tmp_path, bundle, 1e-4)) as box:
        ended = await first(box)
        assert (ended.id, ended.state, ended.attempt) == (run, "promoted", 1)
        assert not {"resumed", "paused"} & (ended.metrics or {}).keys()
        assert len(ids(box.store, "used")) == 2
        assert leftovers(box, run) == []


async def test_what_a_person_stops_is_not_taken_up_again(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    """Not even when the box is stopped in the same moment."""
    async with running(home, bundle, OFF, trainer(tmp_path, SAVES)) as box:
        given = fill(box.store)
        run = await box.start_run()
        await box.until(lambda: (home.runs / run.id / "candidate.safetensors.begun").exists(), 60)
        box.learning.cancel()
        box.learning.close()
    store = Store.open(home)
    assert store.runs.get(run.id).state == "cancelled"
    assert ids(store, "pending") == given
    assert checkpoint.steps_done(home.runs / run.id / checkpoint.NAME) == 0
    store.close()


async def test_learning_switched_off_meanwhile_gives_the_examples_back(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    run = await interrupted(home, bundle, trainer(tmp_path, SAVES), "timeout")
    async with running(home, bundle, OFF, writes(tmp_path, bundle, 1e-4)) as box:
        ended = await first(box)
        assert (ended.id, ended.state) == (run, "failed")
        assert ended.reason == "It was stopped with the box, and learning is off now."
        assert len(ids(box.store, "pending")) == 2
        retry = load_retry(box.store.settings)
        assert retry is not None
        assert retry.attempt == 1


@pytest.mark.slow
def test_sigterm_keeps_what_the_trainer_has_done(small: Bundle, tmp_path: Path) -> None:
    """The real daemon and trainer, stopped between two checkpoints: the next start goes on from that step."""
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(
        serving(
            small,
            CONFIG.replace("epochs = 1", "epochs = 40").replace(
                "checkpoint_seconds = 0", "checkpoint_seconds = 3600"
            ),
        )
    )
    daemon = Daemon(home).start()
    try:
        for number in range(6):
            told = {"query": f"Where is key {number}?", "response": "No idea.", "weight": "high"}
            assert daemon.post("/v1/feedback", {**told, "correction": f"In drawer {number}."}).is_success
        run = daemon.post("/v1/training/run").json()["id"]
        metrics = home.runs / run / "metrics.jsonl"
        assert wait(lambda: metrics.exists() and '"step": 5' in metrics.read_text(), 120)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10
        reached = checkpoint.steps_done(home.runs / run / checkpoint.NAME)
        assert reached >= 5
        assert f"{run} is stopped with the box; the next start goes on with it" in daemon.log
        daemon.start()
        assert wait(lambda: f'"resumed", "step": {reached}' in metrics.read_text(), 120)
        assert daemon.get(f"/v1/training/runs/{run}").json()["state"] == "training"
        assert daemon.post("/v1/training/cancel").is_success
    finally:
        daemon.kill()
