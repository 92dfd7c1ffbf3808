"""`shammah eval`: the gate, asked by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.local import adapter_path, open_registry, served_bundle
from appliance.commands.output import json_option, print_json, print_table
from appliance.commands.terminal import console
from appliance.commands.words import WORDS
from appliance.errors import InvalidRequest, ShammahError
from appliance.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command(
    "eval",
    epilog="""\b
Examples:
  shammah eval                                           the adapter in service, against base
  shammah eval adapter_20261122T201500Z
  shammah eval adapter_20261122T201500Z --examples ~/.shammah/runs/run_7/examples.jsonl
  shammah eval ~/Downloads/adapter_model.safetensors --json

\b
Another adapter than the one in service is compared with that one. With the batch it was trained on
the gate also sees whether the corrections were learned. It takes about a minute, needs no daemon and
disturbs none. The exit code is 0 when the adapter passes, 1 when not.""",
)
@click.argument("adapter", required=False, type=WORDS)
@click.option(
    "--examples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A batch to judge it by, as examples.jsonl of a run.",
)
@json_option
def evaluate(adapter: str | None, examples: Path | None, as_json: bool) -> None:
    """Judge ADAPTER (a name or a file; else the one in service) as the gate would, and change nothing."""
    report = _judge(Home.default(), adapter, examples)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["passed"]:
        raise SystemExit(1)


def _judge(home: Home, adapter: str | None, examples: Path | None) -> dict[str, Any]:
    from appliance.config import load_config
    from appliance.learning.child import Child, ChildFailed
    from appliance.learning.judge import CACHE, Judge

    bundle, known = served_bundle(home), open_registry(home)
    serving = known.current()
    if adapter is None and serving is None:
        raise InvalidRequest("The base model is in service: name the adapter to judge.", param="adapter")
    path = adapter_path(home, adapter or serving or "")
    # Compared with itself any adapter passes.
    current = None if serving is None or path.samefile(known.path(serving)) else serving
    with tempfile.TemporaryDirectory(prefix="shammah-eval-") as place, _progress() as on_step:
        cache, kept = Path(place) / CACHE, home.runs / CACHE
        if kept.is_file():
            cache.write_bytes(kept.read_bytes())  # a copy: what is measured here stays here
        judge = Judge(home, load_config(home.config), known, bundle, Child())
        try:
            return judge.judge(
                path, Path(place), current=current, examples=examples, cache=cache, on_step=on_step
            )
        except ChildFailed as error:
            raise ShammahError(f"The gate came to no verdict: {error}") from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.progress import Progress

    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("Judging", total=None)
        yield lambda step, steps: bar.update(task, completed=step, total=steps)


def _print(report: dict[str, Any]) -> None:
    print_table(
        ["check", "before", "measured", "limit", "verdict"],
        (
            [
                check["title"],
                _number(check["reference"]),
                _number(check["measured"]),
                _limit(check),
                "passed" if check["passed"] else "FAILED",
            ]
            for check in report["checks"]
        ),
        empty="Nothing was checked.",
    )
    against = report.get("reference") or "the base model"
    click.echo()
    click.echo(f"Compared with {against}, in {report['seconds']:.0f} s.")
    click.echo(report["summary"])


def _limit(check: dict[str, Any]) -> str | None:
    told = _number(check["limit"])
    return told if told is None or "bound" not in check else f"at {check['bound']} {told}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
