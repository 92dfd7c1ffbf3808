"""How the command prints: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from appliance.commands.terminal import json_text
from appliance.plain import readable

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead."
)


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    click.echo(json_text(json.dumps(value, indent=2, ensure_ascii=False)))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Columns under a head; `empty` when there are no rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
    for row in [[title.upper() for title in head], *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Name and value, one pair a line."""
    for name, value in facts:
        click.echo(f"{name:<10} {value}")


def moment(at: float | None) -> str:
    """A time as people write it, in the box's own zone."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def shorten(text: str, width: int = 60) -> str:
    """One line, at most `width` characters."""
    line = readable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return readable(" ".join(str(value).split()))
