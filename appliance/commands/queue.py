"""`shammah queue`: the examples that wait to be learned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from appliance.commands.client import find_daemon
from appliance.commands.local import end_runs, no_daemon, open_store, resting_switch
from appliance.commands.output import json_option, moment, print_json, print_table, shorten
from appliance.commands.terminal import json_text
from appliance.commands.words import WORDS
from appliance.home import Home


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
            click.echo(json_text(line), nl=False)
        return
    from appliance.files import write_atomic

    write_atomic(output.absolute(), "".join(lines))
    click.echo(f"{len(lines)} examples written to {output}.", err=True)


@queue.command(
    epilog="""\b
Examples:
  shammah queue forget ex_1f6d0c52a8b94e7730c1d2aa
  shammah queue forget --device "kitchen tablet"
  shammah queue forget ex_1f6d0c52a8b94e7730c1d2aa --retrain

\b
The text goes from the queue, the stored answers, the inputs and reports of earlier runs, and from the
database's own leftovers. Adapters that learned from it are named. With --retrain they are removed, the
one before them serves again, and what else they had learned waits in the queue for the next run. That
may also be asked for later, with the same id or device."""
)
@click.argument("example", required=False, type=WORDS)
@click.option(
    "--device", type=WORDS, metavar="NAME", help="All that this device said, instead of one example."
)
@click.option("--retrain", is_flag=True, help="Also give up the adapters that learned from it.")
@json_option
def forget(example: str | None, device: str | None, retrain: bool, as_json: bool) -> None:
    """Forget the example with the id EXAMPLE, and all that holds its text."""
    if (example is None) == (device is None):
        raise click.UsageError("Name either the id of an example or --device NAME.")
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is None:
        done = _forget_at_rest(home, example, device, retrain)
    else:
        what = f"examples/{quote(example or '', safe='')}"
        if device is not None:
            what = f"devices/{quote(device, safe='')}/examples"
        done = daemon.delete(f"/v1/training/{what}?retrain={'true' if retrain else 'false'}")
    if as_json:
        print_json(done)
        return
    click.echo(f"Examples forgotten: {len(done['examples'])}, stored answers: {done['completions']}.")
    for name in done["adapters"]:
        if done["retrained"]:
            click.echo(f"{name} had learned from it and was removed.")
        else:
            serves = " and is in service" if name == done["in_service"] else ""
            click.echo(f"{name} learned from it{serves}. Repeat with --retrain to give it up.")
    if done["retrained"]:
        click.echo(
            f"Other examples in the queue again: {done['requeued']}. "
            f"In service: {done['current'] or 'the base model'}."
        )


def _forget_at_rest(home: Home, example: str | None, device: str | None, retrain: bool) -> dict[str, Any]:
    """Forget without a daemon, by the same rules."""
    import asyncio

    from appliance.learning.forget import Wish, forget

    def serving() -> str | None:
        return home.current.readlink().stem if home.current.is_symlink() else None

    with no_daemon(home), open_store() as store:
        end_runs(home, store)  # the next start would go on with what it holds

        async def step_back(adapters: Collection[str]) -> str | None:
            switch = resting_switch(home, store)
            return await switch.rollback("owner", reason="to forget what it learned", skip=adapters)

        wish = Wish(() if example is None else (example,), device, retrain)
        done = asyncio.run(forget(home, store, wish, serving=serving(), step_back=step_back, actor="owner"))
    return {**asdict(done), "current": serving()}
