"""How long a run will take and what memory it needs is told from earlier runs, then from its own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.commands.training import _about
from appliance.home import Home
from appliance.learning.estimate import FIRST_STEPS, GATE_SECONDS, Forecast, Pace, gate_seconds, pace, recipe
from appliance.learning.guard import Readings, judge
from appliance.model.bundle import Bundle
from appliance.sections import ResourcesConfig, TrainConfig
from appliance.store import Store
from appliance.store.runs import Run

from .box import make_adapter, running
from .test_runs import OFF, fill, first, trainer

KIND = recipe(TrainConfig(), "0" * 64)
RUN: dict[str, Any] = {
    "recipe": KIND,
    "tokens": 3000,
    "rehearsal": 1000,
    "trained": 10,
    "startup_seconds": 6.0,
    "train_seconds": 30.0,
    "peak_mb": 1300,
    "gate_seconds": 40.0,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Home(tmp_path / "home").ensure())


def ended(store: Store, **metrics: Any) -> list[Run]:
    """All runs, after one more with these metrics."""
    run = store.runs.create("person", 1)
    store.runs.update(run.id, state="promoted", metrics=metrics)
    return store.runs.list()


def test_nothing_is_told_before_the_first_run(store: Store) -> None:
    assert pace([], KIND) is None
    assert gate_seconds([]) == GATE_SECONDS
    assert pace(ended(store, loss=1.0, peak_mb=9), KIND) is None


def test_earlier_runs_tell_time_and_memory(store: Store) -> None:
    known = pace(ended(store, **RUN), KIND)
    assert known is not None
    # Startup and gate, rehearsal and twenty examples of 200 tokens, a hundred tokens a second.
    assert known.estimate(20).seconds == pytest.approx(6 + (1000 + 20 * 200) / 100 + 40)
    assert known.estimate(20).memory_mb == 1300
    known = pace(ended(store, **RUN | {"train_seconds": 90.0, "peak_mb": 1500}), KIND)
    assert known is not None
    assert known.per_token == pytest.approx(0.02)
    assert known.memory_mb == 1500


def test_only_runs_like_it_tell(store: Store) -> None:
    other = recipe(TrainConfig(rank=8), "0" * 64)
    assert pace(ended(store, **RUN | {"recipe": other, "peak_mb": 9000}), KIND) is None
    # One that was resumed trained a part of it before.
    assert pace(ended(store, **RUN | {"resumed": [7]}), KIND) is None
    for number in range(5):
        ended(store, **RUN | {"peak_mb": 1000 + number})
    known = pace(ended(store, **RUN), KIND)
    assert known is not None
    assert known.memory_mb == 1300


def test_what_is_left_is_told_by_the_runs_own_steps() -> None:
    known = Pace(startup=6, rehearsal=1000, per_example=200, per_token=0.01, gate=40, memory_mb=1300)
    forecast = Forecast(known, examples=10)
    assert forecast.train(0, 100, 0.0) == pytest.approx(6 + 30 + 40)
    forecast.plan(5000, 8.0)  # more tokens than expected
    assert forecast.train(0, 100, 8.0) == pytest.approx(50 + 40)
    # Two seconds a step, whatever was expected.
    for step in range(1, 2 + FIRST_STEPS):
        left = forecast.train(step, 100, 20.0 + 2 * step)
    assert left == pytest.approx(2 * (100 - step) + 40)
    assert forecast.train(100, 100, 220.0) == pytest.approx(40)


def test_the_first_run_is_told_by_its_first_steps() -> None:
    forecast = Forecast(None, examples=10)
    forecast.plan(5000, 8.0)
    told = [forecast.train(step, 100, 20.0 + step) for step in range(100)]
    assert told[: 1 + FIRST_STEPS] == [None] * (1 + FIRST_STEPS)
    assert told[50] == pytest.approx(50 + GATE_SECONDS)


def test_a_run_that_will_not_fit_is_deferred() -> None:
    limits = ResourcesConfig(min_free_memory_mb=500)
    idle = Readings(load=0, memory_mb=1400, disk_mb=9000, temperature=None, battery=None)
    assert judge(idle, limits, now=0, needs_mb=1200) is None
    deferral = judge(idle, limits, now=0, needs_mb=1300)
    assert deferral is not None
    assert deferral.reason == "Only 1400 MB of memory are free (1430 needed)."


def test_it_is_said_as_people_say_it() -> None:
    assert _about(243.0, 1306) == "about 4 minutes, 1.3 GB"
    assert _about(50.0, None, " left") == "about a minute left"
    assert _about(5.0, 990) == "about some seconds, 1.0 GB"
    assert _about(None, None) == ""


async def test_a_run_tells_what_is_left_and_what_the_next_will_take(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    made = make_adapter(tmp_path / "made.safetensors", bundle, scale=1e-4)
    program = trainer(
        tmp_path,
        f"""
say(event="start", steps=50, examples=2, tokens=5000, rehearsal=1000)
for step in range(1, 51):
    time.sleep(0.02)
    say(event="step", step=step, steps=50, loss=1.0)
shutil.copy({str(made)!r}, args["--out"])
say(event="done", peak_mb=1200)
""",
    )
    async with running(home, bundle, OFF, program) as box:
        fill(box.store)
        assert box.learning.status().estimate is None
        await box.start_run()
        run = await first(box)
        assert run.state == "promoted"
        told = [event.data for event in box.named("run.progress") if event.data["phase"] == "training"]
        assert told[0]["seconds_left"] is None
        assert GATE_SECONDS < told[-2]["seconds_left"] < GATE_SECONDS + 60
        assert any(event["memory_mb"] for event in told)
        fill(box.store, 6)
        estimate = box.learning.status().estimate
        assert estimate is not None
        assert estimate.memory_mb == 1200
        metrics = run.metrics or {}
        assert estimate.seconds == pytest.approx(
            metrics["startup_seconds"]
            + metrics["train_seconds"] * (1000 + (6 + 2) * 2000) / 5000  # two are learned again
            + metrics["gate_seconds"]
        )
