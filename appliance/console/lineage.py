"""The lineage of adapters as a picture: a row each, newest first, with its piece of the lines beside it.

Each piece is an SVG that stretches to the height of its row, so the text beside it may wrap as it needs
to. The pieces say nothing that the rows do not say in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from appliance.store.adapters import Switch

LANES = 5
"""Lines side by side; a branch that finds no place among them is drawn as a beginning only."""
STEP = 16
"""Width of a lane, in pixels."""

Look = Literal["serving", "served", "accepted", "refused", "gone"]
Period = tuple[float, "float | None"]


@dataclass(frozen=True)
class Node:
    """A row of the picture.

    Attributes:
        name: the adapter.
        parent: what it grew from; None for base.
        look: how its point is drawn.
    """

    name: str
    parent: str | None
    look: Look


def draw(nodes: Sequence[Node], base: Look) -> list[Markup]:
    """The pieces of all rows and, last, of the base model.

    Args:
        nodes: newest first.
        base: how the base model's point is drawn.
    """
    places: dict[str | None, int] = {node.name: number for number, node in enumerate(nodes)}
    places[None] = len(nodes)
    lanes: list[str | Literal[False] | None] = []  # whom each line leads to; False: free
    rows = []
    for number, node in enumerate(nodes):
        own, met = _place(lanes, node.name)
        passing = [lane for lane, to in enumerate(lanes) if to is not False and lane != own]
        to: int | None = None
        if places.get(node.parent, -1) > number:
            if node.parent in lanes and lanes.index(node.parent) != own:
                to = lanes.index(node.parent)
            elif own < LANES:
                to = own
        if own < len(lanes):
            lanes[own] = node.parent if to == own else False
        rows.append(_Row(own, met, passing, to, node.look))
    own, met = _place(lanes, None)
    rows.append(_Row(own, met, [], None, base, last=True))
    wide = max(max(row.own, row.to or 0, *row.passing, 0) for row in rows) + 1
    return [row.drawn(wide * STEP) for row in rows]


def _place(lanes: list[str | Literal[False] | None], name: str | None) -> tuple[int, bool]:
    """The lane of a point, and whether a line comes to it from above."""
    if name in lanes:
        return lanes.index(name), True
    if False in lanes:
        return lanes.index(False), False
    if len(lanes) < LANES:
        lanes.append(False)
        return len(lanes) - 1, False
    return LANES, False


@dataclass(frozen=True)
class _Row:
    own: int
    met: bool
    passing: list[int]
    to: int | None
    look: Look
    last: bool = False

    def drawn(self, width: int) -> Markup:
        x = _x(self.own)
        lines = [f"M{_x(lane)} 0V100" for lane in self.passing]
        if self.met:
            lines.append(f"M{x} 0V50")
        if self.to == self.own:
            lines.append(f"M{x} 50V100")
        elif self.to is not None:
            lines.append(f"M{x} 50C{x} 85 {_x(self.to)} 65 {_x(self.to)} 100")
        stub = Markup('<path class="stub" d="M{} 50V88"/>').format(x) if self.to is None else ""
        # A line of no length with round ends is a dot that keeps its shape however the piece is stretched.
        return Markup(
            '<svg class="rail" width="{}" viewBox="0 0 {} 100" preserveAspectRatio="none" aria-hidden="true" '
            'focusable="false"><path class="line" d="{}"/>{}<path class="dot {}" d="M{} 50h0"/>{}</svg>'
        ).format(
            width,
            width,
            " ".join(lines),
            "" if self.last else stub,
            self.look,
            x,
            Markup('<path class="hole" d="M{} 50h0"/>').format(x) if self.look == "accepted" else "",
        )


def _x(lane: int) -> float:
    return STEP * (lane + 0.5)


def service(switches: Sequence[Switch]) -> dict[str | None, list[Period]]:
    """When each was in service, oldest first; the end of what still is, is None.

    Args:
        switches: newest first.
    """
    found: dict[str | None, list[Period]] = {}
    until: float | None = None
    for past in switches:
        found.setdefault(past.to, []).insert(0, (past.at, until))
        until = past.at
    return found
