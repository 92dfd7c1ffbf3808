"""`shammah doctor`: what is wrong with the box, and what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.commands.client import Daemon, find_daemon
from appliance.commands.output import json_option, print_json
from appliance.commands.terminal import console
from appliance.errors import ShammahError, Unavailable
from appliance.home import Home
from appliance.plain import readable

if TYPE_CHECKING:
    from rich.table import Table

    from appliance.doctor.box import Standing
    from appliance.doctor.examine import Report

PATIENCE = 10.0
"""Seconds that a daemon has for an answer here: one that hangs must not hang this."""
_LOOKS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("WARN", "yellow"),
    "error": ("ERROR", "red"),
}


@click.command(
    epilog="""\b
Examples:
  shammah doctor                     look at everything; a model of some GB takes some seconds
  shammah doctor --quick             without comparing hashes and reading backups
  shammah doctor --json | jq '.findings[] | select(.level == "error")'

\b
It changes nothing, and works with the daemon running or not. Exit code 1 when there is an error; notes
and warnings are no errors."""
)
@click.option("--quick", is_flag=True, help="Leave out what reads whole models, adapters and backups.")
@json_option
def doctor(quick: bool, as_json: bool) -> None:
    """Look for whatever is wrong with this box, and say what mends it."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from appliance.doctor.box import looked_at
    from appliance.doctor.examine import examine

    home = Home.default()
    standing = _ask(home)
    screen = console(stderr=True)
    with (
        looked_at(home, standing, quick=quick) as box,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=screen,
            transient=True,
            disable=as_json or not screen.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("Looking", total=1.0)
        report = examine(box, lambda title, done: bar.update(task, description=title, completed=done))
    if as_json:
        print_json({"home": str(home.root), **report.to_json()})
    else:
        out = console()
        out.print(_table(report))
        out.print(readable(_summary(report, home)))
    if report.worst == "error":
        raise SystemExit(1)


def _ask(home: Home) -> Standing | None:
    """What the daemon says of itself, if one runs."""
    from dataclasses import replace

    from appliance.doctor.box import written_down

    try:
        daemon = find_daemon(home)
    except ShammahError:
        return None  # the files of another user; the checks say so
    standing = None if daemon is None else written_down(home)
    if daemon is None or standing is None:
        return None
    try:
        health, ready = _get(daemon, "/health"), _get(daemon, "/ready")
        learning = _get(daemon, "/v1/training/status")
    except ShammahError as problem:
        return replace(standing, problem=problem.message)
    return replace(
        standing,
        healthy=health.get("status") == "ok",
        ready=ready.get("status") == "ready",
        version=str(health.get("version", "")),
        adapter=ready.get("adapter"),
        learning=learning,
    )


def _get(daemon: Daemon, path: str) -> dict[str, Any]:
    try:
        return daemon.get(path, timeout=PATIENCE)
    except Unavailable:
        raise
    except ShammahError as problem:
        raise Unavailable(f"it answers {path} with an error: {problem.message}") from problem


def _table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    from appliance.doctor.examine import CHECKS

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in CHECKS:
        for number, finding in enumerate(report.of(check.id)):
            word, colour = _LOOKS[finding.level]
            said = Text(readable(finding.seen))
            if finding.fix:
                said.append(f"\n→ {readable(finding.fix)}", style="bold" if finding.level == "error" else "")
            table.add_row(Text(word, style=colour), "" if number else check.title, said)
    return table


def _summary(report: Report, home: Home) -> str:
    counts = [
        f"{report.count(level)} {level}{'' if report.count(level) == 1 else 's'}"
        for level in ("error", "warning", "note")
        if report.count(level)
    ]
    what = "a quick look" if report.quick else "a look at everything"
    return f"\n{home.root}, {what}: {', '.join(counts) or 'nothing is wrong'}."
