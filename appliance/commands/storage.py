"""`shammah storage`: what takes how much of the disk, and tidying."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.client import find_daemon
from appliance.commands.local import no_daemon, open_store, resting_switch
from appliance.commands.output import json_option, print_json, print_table, size
from appliance.home import Home

if TYPE_CHECKING:
    from appliance.store import Store


@click.command(
    epilog="""\b
Examples:
  shammah storage                       what takes how much
  shammah storage --prune --dry-run     what would be removed now
  shammah storage --prune               remove it

\b
What is kept, and how long, is in [storage] and [backup] of config.toml. The daemon tidies once a day by
itself. What is in service, what it can be rolled back to, examples that are not learned, and backups that you
made are never removed."""
)
@click.option("--prune", is_flag=True, help="Remove what may go.")
@click.option("--dry-run", is_flag=True, help="With --prune: only say what would be removed.")
@json_option
def storage(prune: bool, dry_run: bool, as_json: bool) -> None:
    """Show what takes how much of the disk, or tidy up."""
    if dry_run and not prune:
        raise click.UsageError("--dry-run goes with --prune.")
    home = Home.default()
    daemon = find_daemon(home)
    if prune and not dry_run:
        done = daemon.post("/v1/storage/tidy") if daemon else _tidy_at_rest(home)
        _show_removed(done, "Removed", as_json)
        return
    found = daemon.get("/v1/storage") if daemon else _look_at_rest(home)
    if prune:
        _show_removed(found["removable"], "Would remove", as_json)
    elif as_json:
        print_json(found)
    else:
        rows = [(share["label"], share["count"], size(share["size"])) for share in found["shares"]]
        print_table(("what", "files", "size"), rows, "The home is empty.")
        click.echo(f"{size(found['total'])} in all; {size(found['free'])} of the disk are free.")
        due = sum(item["size"] for item in found["removable"]["removed"])
        if due:
            click.echo(f"{size(due)} may go: shammah storage --prune --dry-run")


def _look_at_rest(home: Home) -> dict[str, Any]:
    from appliance.storage.tidy import as_json, plan
    from appliance.storage.usage import measure

    used = asdict(measure(home.ensure()))
    with open_store() as store:
        would = plan(home, store, _config(home), _serving(home, store))
    return {**used, "removable": as_json(would)}


def _tidy_at_rest(home: Home) -> dict[str, Any]:
    import asyncio
    from contextlib import nullcontext

    from appliance.storage.tidy import as_json, tidy

    with no_daemon(home), open_store() as store:

        def remove(name: str) -> None:
            switch = resting_switch(home, store)
            asyncio.run(switch.remove(name, "owner", lambda name: nullcontext()))

        return as_json(tidy(home, store, _config(home), _serving(home, store), remove, "owner"))


def _config(home: Home) -> Any:
    from appliance.config import load_to_serve

    return load_to_serve(home.config, home.good_config).config


def _serving(home: Home, store: Store) -> str | None:
    return resting_switch(home, store).serving


def _show_removed(found: dict[str, Any], word: str, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [(item["kind"], item["name"], size(item["size"]), item["why"]) for item in found["removed"]]
    print_table(("kind", "name", "size", "why"), rows, "There is nothing that may go.")
    if rows:
        click.echo(f"{word} {len(rows)}, {size(found['size'])}.")
    if found["short"]:
        click.echo(f"{size(found['short'])} are still missing for what [storage] wants: free them by hand.")
