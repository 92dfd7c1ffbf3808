"""Small pictures of the rows, as SVG: what recall and perplexity do over the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

from lessons import drift, household
from lessons.bench import BASE, OURS, PLAIN, Row
from lessons.results import chosen, mean, share

mpl.use("svg")
# Text stays text, and the same rows give the same bytes.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "shammah", "font.size": 9})

from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first
from matplotlib.axes import Axes  # noqa: E402

COLOURS = {OURS: "#1b6ca8", PLAIN: "#c0504d", BASE: "#8c8c8c"}
DASHES = {"current": "-", "base": "--"}


def draw(rows: Sequence[Row], place: Path) -> list[Path]:
    """Write what can be drawn of the rows into a directory; the files."""
    place.mkdir(parents=True, exist_ok=True)
    written = []
    if chosen(rows, scenario=household.NAME):
        written.append(_save(place / "learning-recall.svg", _recall, rows, "household: facts right"))
    if chosen(rows, scenario=drift.NAME):
        written.append(_save(place / "learning-drift.svg", _drift, rows, "drift: all facts so far right"))
        written.append(_save(place / "learning-perplexity.svg", _rise, rows, "drift: generic perplexity"))
    return written


def _save(path: Path, paint: Callable[[Axes, Sequence[Row]], None], rows: Sequence[Row], title: str) -> Path:
    figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
    paint(axes, rows)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return path


def _recall(axes: Axes, rows: Sequence[Row]) -> None:
    groups = (("unseen", "unseen wordings"), ("taught", "taught wording"))
    recipes = [name for name in (OURS, PLAIN, BASE) if chosen(rows, scenario=household.NAME, recipe=name)]
    for at, recipe in enumerate(recipes):
        found = chosen(rows, scenario=household.NAME, recipe=recipe)
        heights = [share(found, field) or 0.0 for field, _ in groups]
        places = [group + at * 0.27 for group in range(len(groups))]
        bars = axes.bar(places, heights, 0.25, label=recipe, color=COLOURS[recipe])
        axes.bar_label(bars, [f"{height:.2f}" for height in heights])
    axes.set_xticks([group + 0.27 * (len(recipes) - 1) / 2 for group in range(len(groups))])
    axes.set_xticklabels([label for _, label in groups])
    axes.set_ylim(0, 1.1)
    axes.legend(frameon=False, fontsize=8)


def _drift(axes: Axes, rows: Sequence[Row]) -> None:
    _lines(axes, rows, lambda found: share(found, "recall"))
    axes.set_ylim(0, 1.02)


def _rise(axes: Axes, rows: Sequence[Row]) -> None:
    _lines(axes, rows, lambda found: 100 * (mean(found, "perplexity_rise") or 0.0))
    axes.set_ylabel("% over base")


def _lines(axes: Axes, rows: Sequence[Row], value: Callable[[Sequence[Row]], float | None]) -> None:
    for recipe in (OURS, PLAIN):
        for lineage, dash in DASHES.items():
            found = chosen(rows, scenario=drift.NAME, recipe=recipe, lineage=lineage)
            runs = sorted({row["run"] for row in found})
            if runs:
                label = recipe if recipe == PLAIN else f"{recipe}, lineage {lineage}"
                heights = [value(chosen(found, run=run)) or 0.0 for run in runs]
                axes.plot(runs, heights, dash, marker="o", ms=3, color=COLOURS[recipe], label=label)
    axes.set_xlabel("run")
    axes.legend(frameon=False, fontsize=8)
