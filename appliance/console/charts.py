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
_SAME = 1e-9
"""Values that differ by less than this part of them are drawn as one."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what it is, for legend, label and table.
        points: x and y, by rising x. A gap in the line is a point whose y is nan.
        tone: 1 to 4, which colour.
        marks: whether each point gets a dot, as for a few measured values.
    """

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 1
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """How an axis is labelled.

    Attributes:
        title: what it measures, with the unit.
        format: a value as text; may give markup (a `<time>`).
        whole: it counts things, of which there is no half.
    """

    title: str
    format: Format
    whole: bool = False


def plain(value: float) -> str:
    """A value as short as it can be said: `0.125`, `1,240`, `3`."""
    if value == int(value):
        return f"{int(value):,}"
    # Three digits, but no exponent that these would need from 999.5 on.
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """Round values, evenly spaced, from at most `low` to at least `high`; if wanted, whole ones."""
    if not high - low > abs(low) * _SAME:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
    step = next(power * factor for factor in factors if power * factor >= rough * 0.999)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - math.floor(math.log10(step))
    return [round(number * step, digits) for number in range(first, last + 1)]


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
        marks: whether each point of every line gets a dot.
    """
    known = [(px, py) for line in series for px, py in line.points if math.isfinite(py)]
    if not known:
        return _empty(title)
    left, right = min(px for px, _ in known), max(px for px, _ in known)
    lowest = min(py for _, py in known)
    steps = ticks(min(0.0, lowest) if from_zero else lowest, max(py for _, py in known), whole=y.whole)
    low, high = steps[0], steps[-1]

    def place(px: float, py: float) -> tuple[float, float]:
        share = 0.5 if right == left else (px - left) / (right - left)
        return share * WIDTH, (1 - (py - low) / (high - low)) * HEIGHT

    shapes = [_grid(len(steps))]
    for line in series:
        stretches = _stretches(line.points)
        path = " ".join(
            "M" + "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in s) for s in stretches
        )
        # A line of no length with round ends is a dot of the stroke's width, however the plot is stretched.
        # A point between two gaps shows by nothing else.
        dotted = [point for s in stretches if marks or line.marks or len(s) == 1 for point in s]
        dots = "".join("M{:.1f} {:.1f}h0".format(*place(*point)) for point in dotted)
        shapes.append(Markup('<path class="line tone-{}" d="{}"/>').format(line.tone, path))
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
        bars: x and height of each, by rising x; nan where there is none. Without one above 0, a sentence
            says so instead.
        x: the x axis.
        y: the y axis.
        tone: 1 to 4, which colour.
    """
    heights = [height for _, height in bars if math.isfinite(height)]
    if not any(height > 0 for height in heights):
        return _empty(title)
    steps = ticks(0.0, max(heights), whole=y.whole)
    wide = WIDTH / len(bars)
    shapes = [_grid(len(steps))]
    for number, (_, height) in enumerate(bars):
        tall = height / steps[-1] * HEIGHT
        if math.isfinite(tall) and tall > 0:
            shapes.append(
                Markup('<rect class="tone-{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"/>').format(
                    tone, number * wide + wide * 0.1, HEIGHT - tall, wide * 0.8, tall
                )
            )
    series = Series(title, bars, tone)
    labels = [x.format(bars[index][0]) for index in sorted({0, len(bars) // 2, len(bars) - 1})]
    return _figure(title, Markup("").join(shapes), _words(series, x, y), steps, labels, x, y, [series])


def _stretches(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The pieces of a line between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        else:
            pieces.append([])
    return [piece for piece in pieces if piece]


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
    if len(values) == 1:
        return f"{line.name}: {said(y, first)} at {said(x, x0)}"
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
        ys=Markup("").join(Markup("<span>{}</span>").format(text) for text in reversed(_labels(steps, y))),
        w=WIDTH,
        h=HEIGHT,
        said=said,
        shapes=shapes,
        xs=Markup("").join(Markup("<span>{}</span>").format(label) for label in labels),
        table=_table(x, y, series),
    )


def _labels(steps: Sequence[float], axis: Axis) -> list[str]:
    """The ticks as text; with more digits where they would look alike."""
    labels = [axis.format(value) for value in steps]
    if axis.format is plain and len(set(labels)) < len(labels):
        slack = (steps[1] - steps[0]) * 1e-6
        enough = (d for d in range(16) if all(abs(round(value, d) - value) < slack for value in steps))
        digits = next(enough, 16)
        labels = [f"{value:,.{digits}f}" for value in steps]
    return labels


def _table(x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    columns = [dict(line.points) for line in series]
    # Each line gives an equal share of the rows, or of a few values among many next to none would be left.
    shown = sorted({px for column in columns for px in _share([*column], _ROWS // len(columns))})
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


def _share(values: Sequence[float], most: int) -> list[float]:
    """At most so many of them, evenly; the last among them."""
    every = -(-len(values) // most)
    return [*values[::-1][:: max(1, every)]]
