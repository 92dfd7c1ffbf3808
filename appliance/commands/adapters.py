"""`shammah adapters`: what has been learned, and which of it is in service."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.client import find_daemon
from appliance.commands.local import adapter_path, no_daemon, open_store, resting_switch, served_bundle
from appliance.commands.output import json_option, moment, print_json, print_table, shorten, size
from appliance.commands.words import WORDS
from appliance.home import Home

if TYPE_CHECKING:
    from appliance.learning.switch import Switch

BASE = "base"


@click.group()
def adapters() -> None:
    """Adapters: what has been learned, and which of it is in service."""


@adapters.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the adapters, newest first; a star marks the one in service."""
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is not None:
        answer = daemon.get("/v1/adapters")
        current, rows, pinned = answer["current"], answer["data"], answer["pinned"]
    else:
        from appliance.learning.pin import load_pin

        current = home.current.readlink().stem if home.current.is_symlink() else None
        with open_store() as store:
            rows = [{**asdict(row), "in_service": row.name == current} for row in store.adapters.list()]
            pinned = load_pin(store.settings) is not None
    if as_json:
        print_json({"current": current, "pinned": pinned, "data": rows})
        return
    print_table(
        ["", "name", "state", "rank", "size", "created", "run", "verdict"],
        (
            [
                "*" if row["name"] == current else " ",
                row["name"],
                "withdrawn" if row["withdrawn"] and row["state"] == "accepted" else row["state"],
                row["rank"],
                size(row["size"]),
                moment(row["created"]),
                row["run_id"],
                shorten(row["withdrawn"] or (row["report"] or {}).get("summary") or ""),
            ]
            for row in rows
        ),
        empty="No adapters yet: nothing has been learned.",
    )
    if current is None:
        click.echo("The base model is in service.")
    if pinned:
        click.echo("What is in service is pinned: the box does not switch by itself.")


@adapters.command(
    epilog="""\b
Examples:
  shammah adapters promote adapter_20261122T201500Z
  shammah adapters promote base                          back to the model as it was imported

\b
With a daemon the switch happens at once, without a lost request; else it counts from the next start."""
)
@click.argument("name", type=WORDS)
def promote(name: str) -> None:
    """Put the adapter NAME (or `base`) in service."""
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is not None:
        _say(daemon.post("/v1/adapters/promote", {"name": name})["current"])
        return
    wanted = None if name == BASE else name
    _say(_at_rest(home, lambda switch: switch.promote(wanted, reason="asked for on the box", actor="owner")))


@adapters.command()
def rollback() -> None:
    """Put the adapter that was in service before back."""
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is not None:
        _say(daemon.post("/v1/adapters/rollback")["current"])
        return
    _say(_at_rest(home, lambda switch: switch.rollback("owner")))


@adapters.command()
def pin() -> None:
    """Keep what is in service there until a person switches; runs go on, and their adapters wait."""
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is not None:
        current = daemon.get("/v1/adapters")["current"]
        current = daemon.post("/v1/adapters/pin", {"name": current or BASE})["current"]
    else:
        current = _at_rest(home, lambda switch: switch.pin(switch.serving, "owner"))
    click.echo(f"Pinned: {current or 'the base model'}.")


@adapters.command()
def unpin() -> None:
    """Let the box switch by itself again."""
    home = Home.default()
    daemon = find_daemon(home)
    if daemon is not None:
        daemon.post("/v1/adapters/unpin")
    else:
        _at_rest(home, lambda switch: switch.unpin("owner"))
    click.echo("Not pinned: the box switches by itself to what passes every check.")


@adapters.command(
    epilog="""\b
Examples:
  shammah adapters validate adapter_20261122T201500Z
  shammah adapters validate ~/Downloads/adapter_model.safetensors

\b
Checks names, shapes, ranks, types and finiteness, and that it belongs to the served model. How it
behaves is the gate's business: `shammah eval` asks it, and a running daemon judges what is dropped
into adapters/."""
)
@click.argument("adapter", type=WORDS)
@json_option
def validate(adapter: str, as_json: bool) -> None:
    """Check whether ADAPTER (a name or a file) could be served by this box."""
    from appliance.adapters.file import read_adapter

    home = Home.default()
    path = adapter_path(home, adapter)
    found = read_adapter(path, served_bundle(home).manifest)
    facts: dict[str, Any] = {
        "name": found.name,
        "valid": True,
        "size": found.size,
        "sha256": found.sha256,
        **asdict(found.meta),
    }
    if as_json:
        print_json(facts)
        return
    targets = ", ".join(found.meta.targets)
    click.echo(f"{path.name} is valid: rank {found.meta.rank}, {size(found.size)}, on {targets}.")


def _at_rest(home: Home, act: Callable[[Switch], Coroutine[Any, Any, Any]]) -> str | None:
    """Switch without a daemon, by the same rules; what is in service then."""
    import asyncio

    with no_daemon(home), open_store() as store:

        async def run() -> str | None:
            switch = resting_switch(home, store)
            await act(switch)
            return switch.serving

        return asyncio.run(run())


def _say(current: str | None) -> None:
    click.echo(f"In service: {current or 'the base model'}.")
