"""The bar: the served model is as good as the fp32 checkpoint it was made from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.model.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import quality

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(bundle: Bundle, cache: Path) -> quality.Report:
    checkpoint = cache / "fp32"
    if not (checkpoint / "done").exists():
        quality.default_checkpoint(checkpoint)
        (checkpoint / "done").touch()
    report = quality.measure(bundle, checkpoint)
    print(quality.table(report))
    return report


def test_perplexity_within_one_percent(report: quality.Report) -> None:
    assert report.tokens > 1500
    assert 10 < report.perplexity_fp32 < 40
    assert abs(report.ratio - 1) <= 0.01, quality.table(report)
    assert report.kl < 0.01


def test_greedy_answers_equal_where_fp32_is_decisive(report: quality.Report) -> None:
    assert len(report.greedy) >= 20
    assert sum(item.decided for item in report.greedy) > 40
    assert report.greedy_equal, quality.table(report)
