"""Charts: what is drawn, what is said instead of the picture, and that nothing in them is markup."""

from __future__ import annotations

import math
import re

import pytest
from browsing import NASTY
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from appliance.console.charts import Axis, Series, bar_chart, line_chart, plain, ticks

STEP = Axis("Step", plain)
LOSS = Axis("loss", plain)
NAN = math.nan


def paths(chart: str, kind: str) -> list[str]:
    return re.findall(rf'<path class="{kind} tone-\d" d="([^"]*)"/>', chart)


def label(chart: str) -> str:
    (found,) = re.findall(r'role="img" aria-label="([^"]*)"', chart)
    return str(found)


def rows(chart: str) -> list[tuple[str, ...]]:
    """The table's rows, without its head."""
    cells = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>")
    return [tuple(cells.findall(row)) for row in re.findall(r"<tr>(.*?)</tr>", chart)[1:]]


def y_labels(chart: str) -> list[str]:
    (found,) = re.findall(r'class="y-labels" aria-hidden="true">(.*?)</div>', chart)
    return re.findall(r"<span>(.*?)</span>", found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (1240.0, "1,240"), (0.125, "0.125"), (1.23456, "1.23"), (99.96, "100"), (123.4, "123"),
     (999.7, "1,000"), (-0.5, "-0.5"), (12345.6, "12,346"), (-0.0, "0")],
)  # fmt: skip
def test_values_are_short(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 4.0, [0, 1, 2, 3, 4]),
        (0.3, 3.1, [0, 1, 2, 3, 4]),
        (2.1, 2.9, [2, 2.2, 2.4, 2.6, 2.8, 3]),
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 1e-13, [0, 2.5e-14, 5e-14, 7.5e-14, 1e-13]),
        (0.0, 90_000.0, [0, 25_000, 50_000, 75_000, 100_000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected, rel=1e-9, abs=0)


finite = st.floats(-1e15, 1e15).filter(lambda value: value == 0 or abs(value) > 1e-15)


@given(finite, finite)
def test_ticks_hold_what_they_are_for(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))
    slack = 1e-6 * (found[-1] - found[0])
    assert found[0] - slack <= low
    assert high <= found[-1] + slack


def test_lines_and_what_is_said_of_them() -> None:
    chart = line_chart(
        "Loss of run 7",
        (Series("Training", [(0, 4.0), (1, 2.0), (2, 0.0)]), Series("Held out", [(0, 3.0), (2, 1.0)], 2)),
        STEP,
        LOSS,
    )
    assert paths(chart, "line") == ["M0.0 0.0L300.0 100.0L600.0 200.0", "M0.0 50.0L600.0 150.0"]
    assert paths(chart, "dots") == []
    assert label(chart) == (
        "Loss of run 7. Training: 4 at 0, 0 at 2; between 0 and 4; Held out: 3 at 0, 1 at 2; between 1 and 3."
    )
    assert y_labels(chart) == ["4", "3", "2", "1", "0"]
    assert rows(chart) == [("0", "4", "3"), ("1", "2", "\u2013"), ("2", "0", "1")]
    assert chart.count("<li>") == 2


def test_a_gap_stays_a_gap_and_a_lonely_point_shows() -> None:
    chart = line_chart(
        "Loss",
        [Series("a", [(0, 1.0), (1, 2.0), (2, NAN), (3, 2.0), (4, math.inf), (5, 1.0), (6, 1.0)])],
        STEP,
        LOSS,
    )
    (line,), (dots,) = paths(chart, "line"), paths(chart, "dots")
    assert line.count("M") == 3
    assert "nan" not in chart
    assert dots == "M300.0 0.0h0"  # the point between two gaps is a line of no length
    assert rows(chart)[2] == ("2", "\u2013")


def test_a_single_point_is_a_dot_in_the_middle() -> None:
    chart = line_chart("Loss", [Series("a", [(7, 2.0)])], STEP, LOSS)
    assert paths(chart, "dots") == ["M300.0 200.0h0"]
    assert label(chart) == "Loss. a: 2 at 7."
    assert chart.count('<div class="x-labels" aria-hidden="true"><span>7</span></div>') == 1


def test_dots_of_one_line_or_of_all() -> None:
    few, many = Series("few", [(0, 1.0), (1, 2.0)], 2, marks=True), Series("many", [(0, 1.0), (1, 2.0)])
    assert paths(line_chart("x", [many, few], STEP, LOSS), "dots") == ["M0.0 200.0h0M600.0 0.0h0"]
    assert len(paths(line_chart("x", [many, few], STEP, LOSS, marks=True), "dots")) == 2


@pytest.mark.parametrize("points", [[], [(0, NAN)], [(0, NAN), (1, math.inf)]])
def test_nothing_to_draw_is_said(points: list[tuple[float, float]]) -> None:
    chart = line_chart("Loss", [Series("a", points)], STEP, LOSS)
    assert chart == '<p class="chart-empty">Loss: nothing to draw yet.</p>'
    assert bar_chart("Loss", points, STEP, LOSS) == chart


def test_a_line_without_values_beside_one_with() -> None:
    chart = line_chart("Loss", [Series("a", [(0, 1.0), (1, 2.0)]), Series("b", [])], STEP, LOSS)
    assert paths(chart, "line")[1] == ""
    assert label(chart).endswith("b: nothing.")


def test_a_value_that_never_changes() -> None:
    for value in (0.0, 2.5, -3.0, 1e15):
        chart = line_chart(
            "Loss", [Series("a", [(0, value), (1, value), (2, value * (1 + 1e-15))])], STEP, LOSS
        )
        (line,) = paths(chart, "line")
        assert all(0 <= float(y) <= 200 for y in re.findall(r" ([\d.]+)", line))


def test_labels_that_are_close_together_differ() -> None:
    series = [Series("a", [(0, 2.5121), (1, 2.5149)])]
    assert y_labels(line_chart("x", series, STEP, LOSS)) == ["2.515", "2.514", "2.513", "2.512"]
    series = [Series("a", [(0, 2.511), (1, 2.519)])]
    assert y_labels(line_chart("x", series, STEP, LOSS)) == [
        "2.520",
        "2.518",
        "2.516",
        "2.514",
        "2.512",
        "2.510",
    ]
    series = [Series("a", [(0, 12000.1), (1, 12000.9)])]
    labels = y_labels(line_chart("x", series, STEP, LOSS))
    assert labels[0] == "12,001.0"
    assert len(set(labels)) == len(labels)


def test_from_zero() -> None:
    series = [Series("a", [(0, 90.0), (1, 100.0)])]
    assert y_labels(line_chart("x", series, STEP, LOSS, from_zero=True))[-1] == "0"
    assert y_labels(line_chart("x", series, STEP, LOSS))[-1] == "90"


def test_the_table_keeps_the_few_values_among_many() -> None:
    training = Series("Training", [(step, 1.0) for step in range(1, 301)])
    heldout = Series("Held out", [(step, 2.0) for step in range(0, 301, 50)])
    shown = rows(line_chart("x", [training, heldout], STEP, LOSS))
    assert len(shown) <= 60
    assert [row[0] for row in shown if row[2] == "2"] == ["0", "50", "100", "150", "200", "250", "300"]
    assert shown[-1] == ("300", "1", "2")
    alone = rows(line_chart("x", [training], STEP, LOSS))
    assert 30 <= len(alone) <= 60


def test_bars() -> None:
    chart = bar_chart(
        "Requests", [(0, 2.0), (1, 0.0), (2, NAN), (3, 4.0), (4, -1.0)], STEP, Axis("requests", plain)
    )
    assert re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart) == [
        ("100.0", "100.0"),
        ("0.0", "200.0"),
    ]
    assert y_labels(chart)[0] == "4"
    assert len(rows(chart)) == 5


def test_nothing_in_a_chart_is_markup() -> None:
    axis = Axis(NASTY, lambda value: NASTY)
    for chart in (
        line_chart(NASTY, [Series(NASTY, [(0, 1.0), (1, 2.0)]), Series(NASTY, [(0, 3.0)])], axis, axis),
        line_chart(NASTY, [], axis, axis),
        bar_chart(NASTY, [(0, 1.0)], axis, axis),
    ):
        assert isinstance(chart, Markup)
        assert "<script" not in chart
        assert "<img" not in chart
        assert "&lt;script&gt;" in chart
        assert re.search(r'="[^"]*"[^\s/>]', chart) is None  # no attribute ends early


def test_an_axis_may_give_markup_and_the_label_says_its_text() -> None:
    at = Axis("When", lambda value: Markup('<time datetime="{}">day {}</time>').format(value, value))
    chart = line_chart("Loss", [Series("a", [(1, 1.0), (2, 3.0)])], at, LOSS)
    assert '<span><time datetime="1">day 1</time></span>' in chart
    assert label(chart) == "Loss. a: 1 at day 1, 3 at day 2; between 1 and 3."
