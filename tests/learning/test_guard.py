"""When a run is deferred, and until when."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from appliance.learning.guard import Readings, check_resources, judge, quiet_until, read_resources
from appliance.sections import ResourcesConfig

IDLE = Readings(load=0.1, memory_mb=8000, disk_mb=9000, temperature=50.0, battery=None)
LIMITS = ResourcesConfig()


def at(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M").timestamp()


def test_an_idle_box_trains() -> None:
    assert judge(IDLE, LIMITS, now=0) is None
    assert judge(replace(IDLE, temperature=None), LIMITS, now=0) is None


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ({"load": 1.6}, "load per core is 1.6 (limit 1.5)"),
        ({"memory_mb": 800}, "800 MB of memory are free (2500 needed)"),
        ({"disk_mb": 100}, "100 MB of disk are free (500 needed)"),
        ({"temperature": 90.0}, "90 °C (limit 85)"),
        ({"battery": 20.0}, "battery is at 20% (50% needed)"),
    ],
)
def test_whatever_is_short_defers_and_says_so(short: dict[str, float], words: str) -> None:
    deferral = judge(replace(IDLE, **short), LIMITS, now=1000)
    assert deferral is not None
    assert words in deferral.reason
    assert deferral.reason[0].isupper()
    assert deferral.next_try == 1000 + 5 * 60


def test_all_that_is_short_is_named() -> None:
    deferral = judge(replace(IDLE, memory_mb=1, disk_mb=1), LIMITS, now=0)
    assert deferral is not None
    assert "memory" in deferral.reason
    assert "disk" in deferral.reason


def test_a_person_may_train_under_load_but_not_without_memory() -> None:
    quiet = LIMITS.model_copy(update={"quiet_hours": "00:00-23:59"})
    assert judge(replace(IDLE, load=9), quiet, now=at("2026-11-22 12:00"), person=True) is None
    assert judge(replace(IDLE, memory_mb=1), quiet, now=0, person=True) is not None


@pytest.mark.parametrize(
    ("span", "now", "end"),
    [
        ("", "2026-11-22 12:00", None),
        ("22:00-07:00", "2026-11-22 21:59", None),
        ("22:00-07:00", "2026-11-22 22:00", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 06:59", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 07:00", None),
        ("08:00-18:00", "2026-11-22 12:00", "2026-11-22 18:00"),
        ("08:00-18:00", "2026-11-22 18:00", None),
        ("08:00-18:00", "2026-11-22 07:59", None),
    ],
)
def test_quiet_hours(span: str, now: str, end: str | None) -> None:
    assert quiet_until(span, at(now)) == (at(end) if end else None)


def test_quiet_hours_defer_to_their_end() -> None:
    quiet = LIMITS.model_copy(update={"quiet_hours": "22:00-07:00"})
    deferral = judge(IDLE, quiet, now=at("2026-11-22 23:00"))
    assert deferral is not None
    assert deferral.next_try == at("2026-11-23 07:00")


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    readings = read_resources(tmp_path)
    assert readings.memory_mb > 0
    assert readings.disk_mb > 0
    generous = LIMITS.model_copy(
        update={"max_load_per_core": 1e6, "min_free_memory_mb": 0, "min_free_disk_mb": 0}
    )
    assert check_resources(generous, tmp_path) is None
    assert check_resources(LIMITS.model_copy(update={"min_free_disk_mb": 10**9}), tmp_path) is not None
