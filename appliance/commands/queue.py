"""`shammah queue`: the examples that wait to be learned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from appliance.commands.local import open_store
from appliance.commands.output import json_option, moment, print_json, print_table, shorten


@click.group()
def queue() -> None:
    """The examples that wait to be learned."""


@queue.command(
    epilog="""\b
Examples:
  shammah queue show
  shammah queue show --limit 5
  shammah queue show --state review     critiques that need your answer
  shammah queue show --json | jq '.counts'"""
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first."
)
@click.option(
    "--state",
    type=click.Choice(["pending", "training", "used", "review", "superseded", "excluded", "parked"]),
    default="pending",
    show_default=True,
    help="Which examples.",
)
@json_option
def show(limit: int, state: str, as_json: bool) -> None:
    """Count the examples by state and list those in one state."""
    with open_store() as store:
        counts = store.examples.counts()
        found = store.examples.list(state, limit=limit)  # type: ignore[arg-type]  # the choice is checked
    if as_json:
        print_json({"counts": counts, "examples": [asdict(example) for example in found]})
        return
    remarks = [example.remark for example in found]
    last = ["remark"] if any(remarks) else []
    print_table(
        ["id", "when", "kind", "weight", "query", "target", *last],
        (
            [
                example.id,
                moment(example.created),
                example.kind,
                f"{example.weight:g}",
                shorten(example.query, 40),
                shorten(example.target or "", 40),
                *([remark] if last else []),
            ]
            for example, remark in zip(found, remarks, strict=True)
        ),
        empty=f"No {state} examples.",
    )
    click.echo(", ".join(f"{count} {name}" for name, count in counts.items() if count) or "0 pending")


@queue.command(
    epilog="""\b
Examples:
  shammah queue export > queue.jsonl
  shammah queue export --output backup.jsonl"""
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; stdout by default.",
)
def export(output: Path | None) -> None:
    """Write the queue as JSON lines, like training_queue.jsonl: pending examples and those a run holds."""
    from appliance.store.mirror import queue_line

    with open_store() as store:
        lines = [queue_line(example) for example in store.examples.queue_after(0)[1]]
    if output is None:
        for line in lines:
            click.echo(line, nl=False)
        return
    from appliance.files import write_atomic

    write_atomic(output.absolute(), "".join(lines))
    click.echo(f"{len(lines)} examples written to {output}.", err=True)
