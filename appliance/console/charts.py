"""Charts as SVG, drawn on the box: lines over time or steps, and bars.

The plot stretches to the width there is; its labels are HTML beside it, so that they keep their size
on a phone. What a chart shows is also said in words (the label of the picture), and in a table below
it that can be opened. Colours are classes (`tone-1` to `tone-4`): the policy forbids inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 600.0, 200.0
_ROWS = 60
"""The table below a chart has at most so many rows; points between are left out."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what it is, for legend, label and table.
        points: x and y, by rising x. A gap in the line is a point whose y is nan.
        tone: 1 to 4, which colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 1


@dataclass(frozen=True)
class Axis:
    """How an axis is labelled.

    Attributes:
        title: what it measures, with the unit.
        format: a value as text; may give markup (a `<time>`).
    """

    title: str
    format: Format


def plain(value: float) -> str:
    """A value as short as it can be said: `0.125`, `1,240`, `3`."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values, evenly spaced, from at most `low` to at least `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, from_zero: bool = False, marks: bool = False
) -> Markup:
    """Lines over a common x.

    Args:
        title: what the chart shows.
        series: one to four lines. Without a single point, a sentence says so instead.
        x: the x axis.
        y: the y axis.
        from_zero: whether the y axis has to begin at 0.
        marks: whether each point gets a dot, as for a few measured values.
    """
    known = [(px, py) for line in series for px, py in line.points if math.isfinite(py)]
    if not known:
        return _empty(title)
    left, right = min(px for px, _ in known), max(px for px, _ in known)
    lowest = min(py for _, py in known)
    steps = ticks(min(0.0, lowest) if from_zero else lowest, max(py for _, py in known))
    low, high = steps[0], steps[-1]

    def place(px: float, py: float) -> tuple[float, float]:
        share = 0.5 if right == left else (px - left) / (right - left)
        return share * WIDTH, (1 - (py - low) / (high - low)) * HEIGHT

    shapes = [_grid(len(steps))]
    for line in series:
        pieces, pen = [], False
        for px, py in line.points:
            if not math.isfinite(py):
                pen = False
                continue
            at = place(px, py)
            pieces.append(f"{'L' if pen else 'M'}{at[0]:.1f} {at[1]:.1f}")
            pen = True
        # A line of no length with round ends is a dot of the stroke's width, however the plot is stretched.
        alone = marks or len(line.points) == 1
        dots = "".join(
            f"M{place(px, py)[0]:.1f} {place(px, py)[1]:.1f}h0"
            for px, py in line.points
            if alone and math.isfinite(py)
        )
        shapes.append(Markup('<path class="line tone-{}" d="{}"/>').format(line.tone, " ".join(pieces)))
        if dots:
            shapes.append(Markup('<path class="dots tone-{}" d="{}"/>').format(line.tone, dots))
    said = "; ".join(_words(line, x, y) for line in series)
    middle = [left] if right == left else [left, (left + right) / 2, right]
    return _figure(
        title, Markup("").join(shapes), said, steps, [x.format(value) for value in middle], x, y, series
    )


def bar_chart(title: str, bars: Sequence[tuple[float, float]], x: Axis, y: Axis, *, tone: int = 1) -> Markup:
    """Bars side by side, evenly wide, from 0.

    Args:
        title: what the chart shows.
        bars: x and height of each, by rising x. Without one above 0, a sentence says so instead.
        x: the x axis.
        y: the y axis.
        tone: 1 to 4, which colour.
    """
    if not any(height > 0 for _, height in bars):
        return _empty(title)
    steps = ticks(0.0, max(height for _, height in bars))
    wide = WIDTH / len(bars)
    shapes = [_grid(len(steps))]
    for number, (_, height) in enumerate(bars):
        tall = max(0.0, height) / steps[-1] * HEIGHT
        if tall:
            shapes.append(
                Markup('<rect class="tone-{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"/>').format(
                    tone, number * wide + wide * 0.1, HEIGHT - tall, wide * 0.8, tall
                )
            )
    series = Series(title, bars, tone)
    labels = [x.format(bars[index][0]) for index in sorted({0, len(bars) // 2, len(bars) - 1})]
    return _figure(title, Markup("").join(shapes), _words(series, x, y), steps, labels, x, y, [series])


def _grid(lines: int) -> Markup:
    path = " ".join(f"M0 {number * HEIGHT / (lines - 1):.1f}H{WIDTH:.0f}" for number in range(lines))
    return Markup('<path class="grid" d="{}"/>').format(path)


def _words(line: Series, x: Axis, y: Axis) -> str:
    values = [(px, py) for px, py in line.points if math.isfinite(py)]
    if not values:
        return f"{line.name}: nothing"

    def said(axis: Axis, value: float) -> str:
        text = axis.format(value)
        return text.striptags() if isinstance(text, Markup) else text

    (x0, first), (x1, last) = values[0], values[-1]
    lowest, highest = min(py for _, py in values), max(py for _, py in values)
    return (
        f"{line.name}: {said(y, first)} at {said(x, x0)}, {said(y, last)} at {said(x, x1)}; "
        f"between {said(y, lowest)} and {said(y, highest)}"
    )


def _empty(title: str) -> Markup:
    return Markup('<p class="chart-empty">{}: nothing to draw yet.</p>').format(title)


def _figure(
    title: str,
    shapes: Markup,
    said: str,
    steps: Sequence[float],
    labels: Sequence[str],
    x: Axis,
    y: Axis,
    series: Sequence[Series],
) -> Markup:
    legend = Markup("")
    if len(series) > 1:
        legend = Markup('<ul class="legend">{}</ul>').format(
            Markup("").join(
                Markup('<li><span class="swatch tone-{}"></span>{}</li>').format(line.tone, line.name)
                for line in series
            )
        )
    return Markup(
        '<figure class="chart"><figcaption><span class="chart-title">{title}</span>{legend}</figcaption>'
        '<div class="plot"><div class="y-labels" aria-hidden="true">{ys}</div>'
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" preserveAspectRatio="none" role="img" '
        'aria-label="{title}. {said}.">'
        '{shapes}</svg><div class="x-labels" aria-hidden="true">{xs}</div></div>'
        '<details class="more"><summary>Figures<span class="visually-hidden"> of {title}</span></summary>'
        '<div class="scroll" tabindex="0" role="group" aria-label="Figures of {title}">{table}'
        "</div></details>"
        "</figure>"
    ).format(
        title=title,
        legend=legend,
        ys=Markup("").join(Markup("<span>{}</span>").format(y.format(value)) for value in reversed(steps)),
        w=WIDTH,
        h=HEIGHT,
        said=said,
        shapes=shapes,
        xs=Markup("").join(Markup("<span>{}</span>").format(label) for label in labels),
        table=_table(x, y, series),
    )


def _table(x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    columns = [dict(line.points) for line in series]
    rows = sorted({px for column in columns for px in column})
    every = -(-len(rows) // _ROWS)
    shown = [px for number, px in enumerate(rows) if number % every == 0 or number == len(rows) - 1]
    head = Markup("").join(
        Markup('<th scope="col" class="right">{}</th>').format(
            f"{line.name} ({y.title})" if line.name != y.title else y.title
        )
        for line in series
    )

    def cell(column: dict[float, float], px: float) -> str:
        value = column.get(px, math.nan)
        return y.format(value) if math.isfinite(value) else "\u2013"

    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            x.format(px),
            Markup("").join(
                Markup('<td class="right num">{}</td>').format(cell(column, px)) for column in columns
            ),
        )
        for px in shown
    )
    return Markup('<table><thead><tr><th scope="col">{}</th>{}</tr></thead><tbody>{}</tbody></table>').format(
        x.title, head, body
    )
