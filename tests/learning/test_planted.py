"""Planted adapters: the real gate lets none of the bad kinds pass, and does let a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemons import keep_measures, lend_measures

from appliance.learning import gate
from appliance.learning.judge import CACHE
from appliance.model.bundle import Bundle
from appliance.sections import GateConfig

from .planted import Garden, bad_kinds

KINDS = bad_kinds()
Judge = Callable[..., dict[str, Any]]

pytestmark = [pytest.mark.slow, pytest.mark.planted]


@pytest.fixture(scope="module")
def garden(bundle: Bundle, cache: Path) -> Garden:
    return Garden(bundle, cache)


@pytest.fixture
def judge(garden: Garden, tmp_path: Path) -> Judge:
    """The gate's program in this process, with the default limits."""
    lend_measures(tmp_path, garden.bundle)

    def run(adapter: Path, current: Path | None = None, earlier: bool = False) -> dict[str, Any]:
        limits, batch, out = tmp_path / "limits.json", tmp_path / "examples.jsonl", tmp_path / "report.json"
        limits.write_text(GateConfig().model_dump_json())
        batch.write_text("".join(json.dumps(row) + "\n" for row in garden.examples(earlier)))
        arguments = ["--bundle", garden.bundle.path, "--adapter", adapter, "--examples", batch]
        arguments += ["--limits", limits, "--out", out, "--cache", tmp_path / CACHE, "--threads", "2"]
        if current is not None:
            arguments += ["--current", current]
        assert gate.main([str(argument) for argument in arguments]) == 0
        keep_measures(tmp_path, garden.bundle)
        report: dict[str, Any] = json.loads(out.read_text())
        print(report["seconds"], report["summary"])
        return report

    return run


def weakened(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: array * np.float32(0.75) if "lora_B" in key else array for key, array in tensors.items()}


def failed(report: dict[str, Any]) -> set[str]:
    return {check["name"] for check in report["checks"] if not check["passed"]}


def test_a_good_one_passes(garden: Garden, judge: Judge) -> None:
    """As trained, or at three quarters of its strength.

    So short a training with so little to rehearse leaves it near the limits, where rounding decides.
    """
    report = judge(garden.good())
    if not report["passed"]:
        report = judge(garden.altered("gentler", weakened))
    assert report["passed"], report["summary"]
    measured = {check["name"]: check["measured"] for check in report["checks"]}
    assert measured["recall"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_no_bad_one_passes(kind: str, garden: Garden, judge: Judge) -> None:
    make, telling = KINDS[kind]
    report = judge(make(garden))
    assert not report["passed"]
    assert failed(report) & telling, report["summary"]


def test_one_that_forgets_what_was_taught_earlier_does_not_pass(garden: Garden, judge: Judge) -> None:
    make, _ = KINDS["random weights, small"]
    report = judge(make(garden), current=garden.good(), earlier=True)
    assert failed(report) == {"earlier"}, report["summary"]


def test_there_are_twenty_kinds() -> None:
    assert len(KINDS) >= 20
