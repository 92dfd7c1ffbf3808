"""The loss curve of a run, read from a file that grows, is cut off, or makes no sense."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from appliance.learning.losses import POINTS, read_losses, smoothed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(file: Path, *events: dict[str, Any] | str) -> None:
    with file.open("a") as out:
        for event in events:
            out.write(event if isinstance(event, str) else json.dumps(event) + "\n")


def step(number: int, loss: Any, heldout: float | None = None) -> dict[str, Any]:
    return {"event": "step", "step": number, "steps": 9, "loss": loss, "heldout": heldout, "tokens": 5}


def test_it_grows_with_the_file(file: Path) -> None:
    assert read_losses(file) is None
    write(file, {"event": "start", "steps": 3}, step(1, 3.0), '{"event": "step", "step": 2, "lo')
    found = read_losses(file)
    assert found is not None
    assert (found.training, found.heldout) == (((1, 3.0),), ())
    write(file, 'ss": 2.5, "heldout": 2.75}\n', step(3, 2.0))
    found = read_losses(file)
    assert found is not None
    assert found.training == ((1, 3.0), (2, 2.5), (3, 2.0))
    assert found.heldout == ((2, 2.75),)
    write(file, {"event": "done", "heldout_before": 3.5, "heldout_after": 2.25})
    found = read_losses(file)
    assert found is not None
    assert found.heldout == ((0, 3.5), (2, 2.75), (3, 2.25))
    file.unlink()
    assert read_losses(file) is None


def test_what_makes_no_sense_is_passed_over(file: Path) -> None:
    write(
        file,
        "\0\xff nonsense\n",
        "[" * 100_000 + "\n",
        "[1]\n",
        "\n",
        step(1, 2.0),
        step(2, None),
        step(3, float("nan")),
        step(4, "1.5"),
        {"event": "step", "step": "five", "loss": 1.0},
        {"event": "step"},
        step(6, 10**400),
        step(7, 1.0, float("inf")),
    )
    found = read_losses(file)
    assert found is not None
    assert [number for number, loss in found.training if math.isfinite(loss)] == [1, 7]
    assert [number for number, _ in found.training] == [1, 2, 3, 4, 6, 7]
    assert found.heldout == ()


def test_steps_done_again_count_once(file: Path) -> None:
    """Killed after step 4, gone on from a checkpoint of step 2; the line being written then was cut off."""
    write(file, *(step(number, number, number) for number in range(1, 5)), '{"event": "st')
    write(file, {"event": "start", "steps": 9}, {"event": "resumed", "step": 2}, step(3, 30, 30))
    found = read_losses(file)
    assert found is not None
    assert found.training == ((1, 1), (2, 2), (3, 30))
    assert found.heldout == found.training


def test_another_file_in_its_place(file: Path) -> None:
    write(file, step(1, 1.0), step(2, 1.0))
    assert read_losses(file) is not None
    other = file.with_name("other")
    write(other, step(1, 5.0), step(2, 5.0), step(3, 5.0))
    other.replace(file)
    found = read_losses(file)
    assert found is not None
    assert found.training == ((1, 5.0), (2, 5.0), (3, 5.0))


def test_many_steps_are_thinned_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        file,
        *(step(number, float(number % 2), 1.0 if number % 100 == 0 else None) for number in range(1, 3001)),
    )
    found = read_losses(file)
    assert found is not None
    assert (found.each, len(found.training), len(found.heldout)) == (10, POINTS, 30)
    assert found.training[0] == (10, 0.5)
    assert found.training[-1] == (3000, 0.5)
    # However long it is, memory stays bounded; and a file is read piece by piece.
    monkeypatch.setattr("appliance.learning.losses.MOST_STEPS", 1000)
    monkeypatch.setattr("appliance.learning.losses.MOST_BYTES", 10_000)
    long = file.with_name("long.jsonl")
    write(long, *(step(number, 1.0) for number in range(1, 3001)), "x" * 25_000 + "\n", step(3001, 1.0))
    last = 0.0
    while (found := read_losses(long)) and found.training[-1][0] != 3001:
        assert len(found.training) <= POINTS
        assert found.training[-1][0] >= last
        last = found.training[-1][0]
    assert found is not None


def test_smoothing_keeps_level_and_gaps_and_what_was_drawn() -> None:
    level = tuple((float(step), 2.0) for step in range(5))
    assert [loss for _, loss in smoothed(level)] == pytest.approx([2.0] * 5)
    leaping = tuple((float(step), float(step % 2)) for step in range(200))
    drawn = smoothed(leaping)
    assert all(abs(loss - 0.5) < 0.06 for _, loss in drawn[50:])
    assert smoothed(leaping[:100]) == drawn[:100]
    gap = smoothed(((1, 4.0), (2, math.nan), (3, 4.0)))
    assert [math.isfinite(loss) for _, loss in gap] == [True, False, True]
    assert smoothed(()) == ()
