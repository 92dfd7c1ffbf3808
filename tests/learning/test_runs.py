"""Runs that die, are cancelled or rejected: no example is lost, none is trained twice.

The trainers here are small real programs that keep to the trainer's protocol; the gate and all else
is real. The real trainer is in test_trainer.py and, with the whole box around it, in e2e/test_loop.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.errors import Conflict, InvalidRequest, NotFound, StorageFull
from appliance.home import Home
from appliance.learning import run as run_module
from appliance.learning.critique import accept_review
from appliance.learning.retry import GENTLER, load_retry
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.runs import Run

from .box import Box, add, add_correction, make_adapter, running

QUICK = "[lora]\nauto_train_threshold = 2\n"
OFF = "[lora]\nenabled = false\n"
PROTOCOL = """
import json, os, shutil, sys, time
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def say(**event): print(json.dumps(event), flush=True)
say(event="start", steps=2, examples=1)
say(event="step", step=1, steps=2, loss=2.5, heldout=None, tokens_per_second=1)
"""


def trainer(tmp_path: Path, rest: str) -> list[str]:
    script = tmp_path / "trainer.py"
    script.write_text(PROTOCOL + rest)
    return [sys.executable, str(script)]


def writes(tmp_path: Path, bundle: Bundle, scale: float) -> list[str]:
    """A trainer whose adapter is harmless (it passes the gate) or not."""
    made = make_adapter(tmp_path / "made.safetensors", bundle, scale=scale)
    return trainer(
        tmp_path, f"shutil.copy({str(made)!r}, args['--out'])\nsay(event='done', seconds=1, peak_mb=9)\n"
    )


def fill(store: Store, count: int = 2) -> set[str]:
    return {add(store, f"Question {number}?", f"Answer {number}.").id for number in range(count)}


def ids(store: Store, state: str) -> set[str]:
    return {example.id for example in store.examples.list(state)}  # type: ignore[arg-type]


async def first(box: Box) -> Run:
    ended = await box.finished()
    return box.store.runs.get(ended.data["run"])


async def test_a_run_from_threshold_to_promotion(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, QUICK, writes(tmp_path, bundle, 1e-4)) as box:
        given = fill(box.store)
        run = await first(box)
        assert (run.state, run.trigger, run.examples, run.attempt) == ("promoted", "threshold", 2, 1)
        assert ids(box.store, "used") == given
        assert box.registry.current() == box.engine.adapter == run.adapter
        metrics = run.metrics or {}
        assert metrics.items() >= {"steps": 2, "loss": 2.5, "seconds": 1, "peak_mb": 9}.items()
        assert metrics["gate_seconds"] > 0
        assert run.pid is None
        assert not (home.runs / run.id / "candidate.safetensors").exists()
        # The watcher saw the file appear and knew it.
        await asyncio.sleep(2)
        assert not box.named("adapter.considered")


async def test_a_rejected_batch_is_tried_again_with_other_settings_then_parked(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    config = QUICK + "[train]\nmax_attempts = 2\n"
    async with running(home, bundle, config, writes(tmp_path, bundle, 1.0), retry_minutes=0.05) as box:
        given = fill(box.store)
        run = await first(box)
        assert run.state == "rejected"
        assert run.reason is not None
        assert run.reason.startswith("Rejected. Ordinary English")
        assert ids(box.store, "pending") == given
        newer = add(box.store, "Newer?", "Newer.").id
        await box.finished(2)
        second = box.store.runs.list(1)[0]
        assert (second.state, second.trigger, second.attempt, second.examples) == ("parked", "retry", 2, 2)
        assert ids(box.store, "parked") == given
        assert ids(box.store, "pending") == {newer}
        rates = [
            json.loads((home.runs / name / "train.json").read_text())["learning_rate"]
            for name in (run.id, second.id)
        ]
        assert rates == [box.config.train.learning_rate, box.config.train.learning_rate / GENTLER]
        assert box.engine.adapter is None
        assert box.registry.current() is None
        rows = box.store.adapters.list()
        assert [row.state for row in rows] == ["rejected", "rejected"]
        with pytest.raises(Conflict):
            await box.switch.promote(rows[0].name, reason="", actor="owner")


@pytest.mark.parametrize(
    ("rest", "config", "reason"),
    [
        ("say(event='error', message='no luck'); sys.exit(1)", "", "no luck"),
        ("os.kill(os.getpid(), 9)", "", "killed by SIGKILL"),  # each time it is started again
        ("", "", "without writing an adapter"),
        ("open(args['--out'], 'w').write('junk')", "", "no usable adapter|cut off or damaged"),
        ("time.sleep(60)", "hurry", "the limit"),
        ("x = bytearray(1_200_000_000); time.sleep(60)", "[train]\nmemory_limit_mb = 1024", "1024 MB"),
    ],
)
async def test_a_trainer_that_fails_gives_its_examples_back(
    home: Home, bundle: Bundle, tmp_path: Path, rest: str, config: str, reason: str
) -> None:
    hurry = {"train__time_limit_minutes": 0.02} if config == "hurry" else {}
    config = "" if hurry else config
    async with running(home, bundle, QUICK + config, trainer(tmp_path, rest), **hurry) as box:
        given = fill(box.store)
        run = await first(box)
        assert run.state == "failed"
        assert re.search(reason, run.reason or "")
        assert ids(box.store, "pending") == given
        retry = load_retry(box.store.settings)
        assert retry is not None
        assert (set(retry.ids), retry.attempt) == (given, 2)
        assert retry.not_before > time.time() + 200
        assert box.learning.status().retry_at == retry.not_before
        assert box.registry.current() is None
        assert box.registry.list() == []


async def test_a_costly_example_does_not_take_the_batch_along(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    """Beyond its time: the one that took most of it is parked, and everybody's else is tried again."""
    once, limit = "[train]\nmax_attempts = 1\n", {"train__time_limit_minutes": 0.02}
    async with running(home, bundle, OFF + once, trainer(tmp_path, "time.sleep(60)"), **limit) as box:
        light = {add_correction(box.store, f"Q{number}?", "No.", "Yes.").id for number in range(4)}
        heavy = add_correction(box.store, "Q?", "No.", "Yes.", weight=1000.0)
        await box.start_run()
        run = await first(box)
        assert (run.state, ids(box.store, "parked")) == ("failed", {heavy.id})
        assert "were parked" in (run.reason or "")
        assert ids(box.store, "pending") == light
        retry = load_retry(box.store.settings)
        assert retry is not None
        assert (set(retry.ids), retry.attempt) == (light, 1)


async def test_a_draft_is_not_trained_whoever_asks(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    """Train now, the threshold, a retry: none takes what nobody has said yes to."""
    async with running(home, bundle, OFF, writes(tmp_path, bundle, 0.0)) as box:
        note = "draft: by the model, from the note"
        for state in ("review", "pending"):
            add(box.store, f"2+2, {state}?", "5", kind="critique", target="2+2=5", note=note, state=state)
        await box.until(lambda: not box.learning._busy, 60)
        with pytest.raises(Conflict, match="queue"):
            box.learning.request("person")
        plain = add(box.store, "Plain?", "Plain.")
        await box.start_run()
        run = await first(box)
        assert run.examples == 1
        assert [example.id for example in box.store.examples.of_run(run.id)] == [plain.id]
        assert box.store.examples.review_count() == 2


async def test_a_run_leaves_a_dispute_of_two_devices_to_a_person(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    async with running(home, bundle, OFF, trainer(tmp_path, "time.sleep(60)")) as box:
        hers, his = (
            add(box.store, "Bins?", "Friday.", kind="correction", target=day, giver=who, device=who)
            for who, day in (("dev_a", "Monday."), ("dev_b", "Tuesday."))
        )
        run = await box.start_run()
        await box.until(lambda: box.learning.status().run and box.learning.status().run.loss, 60)
        assert [example.id for example in box.store.examples.review()] == [his.id]
        assert ids(box.store, "training") == {hers.id}
        assert box.store.runs.get(run.id).examples == 1
        box.learning.cancel()
        await first(box)
        accept_review(box.store, his.id)
        assert ids(box.store, "pending") == {his.id}, "what the owner says replaces the other"


async def test_cancelling_gives_back_and_pauses(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, QUICK, trainer(tmp_path, "time.sleep(60)")) as box:
        given = fill(box.store)
        await box.until(lambda: box.learning.status().run and box.learning.status().run.loss, 60)
        with pytest.raises(Conflict, match="is going on"):
            box.learning.request("person")
        assert ids(box.store, "training") == given
        box.learning.cancel()
        run = await first(box)
        assert run.state == "cancelled"
        assert ids(box.store, "pending") == given
        await asyncio.sleep(6)  # longer than the scheduler's look
        assert box.store.runs.count() == 1


async def test_stopping_the_box_is_at_once_and_the_next_start_goes_on(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    async with running(home, bundle, QUICK, trainer(tmp_path, "time.sleep(60)")) as box:
        given = fill(box.store)
        await box.until(lambda: box.learning.status().run and box.learning.status().run.loss, 60)
        pid = await box.until(lambda: box.store.runs.list(1)[0].pid, 60)
        stopped = box.store.runs.list(1)[0].id
        started = time.monotonic()
    assert time.monotonic() - started < 20
    assert pid is not None
    assert not psutil.pid_exists(pid)
    async with running(home, bundle, QUICK, writes(tmp_path, bundle, 1e-4)) as box:
        run = await first(box)
        assert (run.id, run.state, run.attempt) == (stopped, "promoted", 1)
        assert ids(box.store, "used") == given
        assert load_retry(box.store.settings) is None


class Cut(BaseException):
    """Stands for kill -9: nothing of ours handles it."""


# Every place where a run leaves a trace outside memory; it is cut off right after each.
LINES = ["_note_pid", "_train", "_judge", "_settle", "_place"]
PASSED_LINES = ["_promote", "mark_used"]  # a rejected run does not get there


@pytest.mark.parametrize(
    ("line", "scale"),
    [
        *(pytest.param(line, 1e-4, id=f"passes-{line}") for line in [*LINES, *PASSED_LINES]),
        *(pytest.param(line, 1.0, id=f"fails-{line}") for line in LINES),
    ],
)
async def test_a_run_cut_off_anywhere_is_ended_once(
    home: Home, bundle: Bundle, tmp_path: Path, line: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash at that line and a restart, examples are pending or used, never both or neither."""
    program = writes(tmp_path, bundle, scale)
    async with running(home, bundle, OFF, program) as box:
        given = fill(box.store)
        runner: Any = box.learning._runner
        place = box.store.examples if line == "mark_used" else runner
        original = getattr(place, line)

        def cut(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            raise Cut

        monkeypatch.setattr(place, line, cut)
        run = await box.start_run()
        await box.until(lambda: box.learning._runner.progress is None, 300)
        monkeypatch.undo()
        assert not box.named("run.finished")
        assert ids(box.store, "training") == given
    async with running(home, bundle, OFF, program) as box:
        await box.finished()
        run = box.store.runs.get(run.id)
        current = box.registry.current()
        assert current == box.engine.adapter
        assert run.state == ("promoted" if scale < 1 else "rejected")
        taken_up = line in ("_note_pid", "_train", "_judge")
        assert (run.metrics or {}).get("resumed") == ([0] if taken_up else None)
        assert len(box.named("run.resumed")) == taken_up
        if run.state == "promoted":
            assert current == run.adapter
            assert ids(box.store, "used") == given
        else:
            assert current is None
            assert ids(box.store, "pending") == given
        assert box.store.examples.count("training") == 0
        assert len(box.store.adapters.switches(10)) == (run.state == "promoted")


async def test_a_switch_by_a_person_during_the_run_wins(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    rest = "while not os.path.exists(args['--out'] + '.go'): time.sleep(0.1)\n"
    made = make_adapter(tmp_path / "made.safetensors", bundle, scale=1e-4)
    slow = trainer(tmp_path, f"{rest}shutil.copy({str(made)!r}, args['--out'])\n")
    async with running(home, bundle, OFF, slow) as box:
        make_adapter(home.adapters / "mine.safetensors", bundle, scale=1e-4)
        await box.until(lambda: box.registry.current() == box.engine.adapter == "mine")
        given = fill(box.store)
        run = await box.start_run()
        assert run.parent == "mine"
        await box.switch.rollback("owner")
        (home.runs / run.id / "candidate.safetensors.go").touch()
        await box.finished()
        run = box.store.runs.get(run.id)
        assert run.state == "rejected"
        assert run.reason == "base was put in service while the run trained from mine."
        assert box.engine.adapter is None
        assert ids(box.store, "pending") == given


async def test_the_timeout_trains_a_partial_batch(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    config, program = "[lora]\nauto_train_threshold = 100\n", trainer(tmp_path, "sys.exit(3)")
    async with running(home, bundle, config, program, lora__batch_timeout_minutes=0.05) as box:
        fill(box.store, 1)
        assert box.learning.status().timeout_at is not None
        run = await first(box)
        assert (run.trigger, run.examples) == ("timeout", 1)


async def test_timeouts_missed_while_the_box_was_off_make_one_run(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    """Each example has waited for many timeouts; and a run begins only when the one before has ended."""
    store = Store.open(home)
    given = fill(store, 3)
    store.close()
    await asyncio.sleep(0.5)
    config, program = "[lora]\nauto_train_threshold = 100\n", writes(tmp_path, bundle, 1e-4)
    async with running(home, bundle, config, program, lora__batch_timeout_minutes=0.001) as box:
        run = await first(box)
        assert (run.trigger, run.examples, run.state) == ("timeout", 3, "promoted")
        assert ids(box.store, "used") == given
        await asyncio.sleep(6)  # longer than the scheduler's look
        assert box.store.runs.count() == 1


async def test_no_run_begins_while_another_has_not_ended(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, trainer(tmp_path, "sys.exit(3)")) as box:
        await box.until(lambda: not box.learning._busy, 60)
        given = fill(box.store)
        other = box.store.runs.create("person", 1)  # one whose end could not be stored
        with pytest.raises(Conflict, match=f"{other.id} was cut off and is ended first"):
            box.learning.request("person")
        assert ids(box.store, "pending") == given
        assert box.store.runs.count() == 1


async def test_a_deferral_ends_though_the_clock_is_set_back(
    home: Home, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(home, bundle, QUICK, trainer(tmp_path, "sys.exit(3)"), retry_minutes=0.05) as box:
        demand = box.config.resources.model_copy(update={"min_free_disk_mb": 10**9})
        box.learning._config = box.config.model_copy(update={"resources": demand})
        fill(box.store)
        await box.until(lambda: box.learning.status().deferral, 30)
        real = time.time
        monkeypatch.setattr("appliance.learning.service.time.time", lambda: real() - 5 * 3600)
        box.learning._config = box.config
        assert (await first(box)).trigger == "threshold"


async def test_a_box_without_memory_defers_and_says_so(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, QUICK, trainer(tmp_path, "sys.exit(3)")) as box:
        demand = box.config.resources.model_copy(update={"min_free_disk_mb": 10**9})
        box.learning._config = box.config.model_copy(update={"resources": demand})
        fill(box.store)
        await box.until(lambda: box.learning.status().deferral, 30)
        event = box.named("run.deferred")[0]
        assert "MB of disk are free" in event.data["reason"]
        assert event.data["next_try"] > time.time()
        with pytest.raises(Conflict, match="Not now: Only"):
            box.learning.request("person")
        assert box.store.runs.count() == 0
        await asyncio.sleep(6)
        assert len(box.named("run.deferred")) == 1
        # What the person asked for happens when there is room.
        box.learning._config = box.config
        box.learning._deferral = None
        run = await first(box)
        assert run.trigger == "person"


async def test_asking_with_an_empty_queue(home: Home, bundle: Bundle) -> None:
    async with running(home, bundle, OFF) as box:
        await box.until(lambda: not box.learning._busy, 30)
        with pytest.raises(Conflict, match="queue is empty"):
            box.learning.request("person")


async def test_an_outcome_that_cannot_be_stored_is_taken_up_later(
    home: Home, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.learning.service.RECOVER_SECONDS", 0.5)
    async with running(home, bundle, OFF, writes(tmp_path, bundle, 1e-4)) as box:
        given = fill(box.store)
        real, calls = run_module.end_run, []

        def full_once(*args: Any) -> Run:
            calls.append(args)
            if len(calls) == 1:
                raise StorageFull("full")
            return real(*args)

        monkeypatch.setattr(run_module, "end_run", full_once)
        await box.start_run()
        run = await first(box)
        assert run.state == "promoted"
        assert len(calls) == 2
        assert ids(box.store, "used") == given


async def test_an_orphaned_trainer_is_killed_at_the_start(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF) as box:
        given = fill(box.store)
        run = box.store.runs.create("person", 2)
        box.store.examples.hold(run.id, given)
        box.store.runs.update(run.id, state="training")
    program = [
        *trainer(tmp_path, "time.sleep(120)"),
        "--out",
        str(home.runs / run.id / "candidate.safetensors"),
    ]
    orphan = subprocess.Popen(program)
    async with running(home, bundle, OFF) as box:
        await box.finished()
        assert box.store.runs.get(run.id).state == "failed"
        assert ids(box.store, "pending") == given
    assert orphan.wait(10) is not None


def test_frozen_batches_are_private(home: Home) -> None:
    assert home.runs.stat().st_mode & 0o777 == 0o700


async def test_a_person_has_a_run_tried_again(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    """Parked ones and those in the queue, with other settings; nothing newer, nothing superseded."""
    config = OFF + "[train]\nmax_attempts = 1\n"
    async with running(home, bundle, config, writes(tmp_path, bundle, 1.0)) as box:
        given = fill(box.store, 3)
        first_run = await box.start_run()
        with pytest.raises(Conflict, match=f"{first_run.id} is going on"):
            box.learning.retry(first_run.id)
        await box.finished()
        parked = box.store.runs.get(first_run.id)
        assert parked.state == "parked"
        assert "perplexity" in (parked.metrics or {})["failed"]
        replaced, *left = sorted(given)
        newer = add_correction(box.store, box.store.examples.get(replaced).query, "Answer 0.", "Other.").id
        box.store.examples.supersede(box.store.examples.get(newer).query, newer)
        back = left[0]
        box.store.examples.update(back, state="pending", run_id=None)  # a person put it into the queue again
        await box.until(lambda: not box.learning._busy, 60)
        run = box.learning.retry(first_run.id)
        assert ids(box.store, "training") == set(left)
        assert (run.trigger, run.attempt, run.examples) == ("person", 2, 2)
        assert [again.id for again in box.store.runs.retries(first_run.id)] == [run.id]
        await box.finished(2)
        rate = json.loads((home.runs / run.id / "train.json").read_text())["learning_rate"]
        assert rate == box.config.train.learning_rate / GENTLER
        # It did not succeed either, and was beyond the attempts a batch has by itself.
        assert box.store.runs.get(run.id).state == "parked"
        assert ids(box.store, "parked") == set(left)
        assert ids(box.store, "pending") == {newer}
        assert (box.store.runs.get(run.id).metrics or {})["retry_of"] == first_run.id


async def test_what_cannot_be_tried_again(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, writes(tmp_path, bundle, 1e-4)) as box:
        await box.until(lambda: not box.learning._busy, 60)
        with pytest.raises(NotFound):
            box.learning.retry("run_unknown")
        given = fill(box.store)
        run = box.store.runs.create("threshold", 2)
        box.store.examples.hold(run.id, given)
        with pytest.raises(Conflict, match="has not ended"):
            box.learning.retry(run.id)
        box.store.examples.park(run.id)
        box.store.runs.update(run.id, state="accepted", ended=time.time())  # it passed, but no run may switch
        with pytest.raises(Conflict, match="was accepted"):
            box.learning.retry(run.id)
        box.store.runs.update(run.id, state="parked")
        # Nothing to spare now: nothing is half done.
        demand = box.config.resources.model_copy(update={"min_free_disk_mb": 10**9})
        box.learning._config = box.config.model_copy(update={"resources": demand})
        with pytest.raises(Conflict, match=r"Not now: Only .* Try it again"):
            box.learning.retry(run.id)
        assert ids(box.store, "parked") == given
        assert box.store.runs.count() == 1
        box.learning._config = box.config
        # Its directory is not needed to find what it has parked.
        assert not (home.runs / run.id).exists()
        again = box.learning.retry(run.id)
        assert again.examples == 2
        await box.finished()
        assert box.store.runs.get(again.id).state == "promoted"
        await box.until(lambda: not box.learning._busy, 60)
        with pytest.raises(Conflict, match="was promoted"):
            box.learning.retry(again.id)
        with pytest.raises(InvalidRequest, match="None of the examples of"):
            box.learning.retry(run.id)
        assert box.store.runs.count() == 2


async def test_only_the_run_that_is_meant_is_cancelled(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, trainer(tmp_path, "time.sleep(60)")) as box:
        fill(box.store)
        run = await box.start_run()
        with pytest.raises(Conflict, match="run_other is not going on any more"):
            box.learning.cancel("run_other")
        box.learning.cancel(run.id)
        await box.finished()
        assert box.store.runs.get(run.id).state == "cancelled"
        # It goes on counting from there: a cancelled attempt was none.
        await box.until(lambda: not box.learning._busy, 60)
        again = box.learning.retry(run.id)
        assert (again.attempt, again.examples) == (1, 2)
        box.learning.cancel(again.id)
        await box.finished(2)
