"""`shammah console` and `shammah keys`: who may come in."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, BinaryIO

import click

from appliance.commands.local import open_store
from appliance.commands.output import json_option, moment, print_json, print_table
from appliance.commands.words import WORDS
from appliance.errors import InvalidRequest

if TYPE_CHECKING:
    from appliance.store import Store
    from appliance.store.keys import Device


@click.group()
def console() -> None:
    """The owner's web console."""


@console.command(
    epilog="""\b
Examples:
  shammah console password
  pass show home/shammah | shammah console password     (one line on stdin)"""
)
def password() -> None:
    """Set or replace the owner's password. This is also the way back in when it is forgotten.

    Everyone who is logged in is logged out.
    """
    from appliance.store.owner import set_password

    if sys.stdin.isatty():
        text = click.prompt("New password", hide_input=True, confirmation_prompt=True)
    else:
        text = _line_of(sys.stdin.buffer)
    with open_store() as store:
        set_password(store, text)
        store.audit.add("owner", "owner.password", {})
    click.echo("The owner's password is set; log in at the console with it.")


def _line_of(stream: BinaryIO) -> str:
    """One line, whatever the shell's language; some shells put a byte-order mark before what they pipe."""
    try:
        return stream.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The password on stdin is not UTF-8.") from error


@click.group()
def keys() -> None:
    """API keys of devices."""


@keys.command(
    "create",
    epilog="""\b
Examples:
  shammah keys create "kitchen tablet"
  shammah keys create guests --no-collect     its exchanges are never learned from""",
)
@click.argument("name", type=WORDS)
@click.option("--no-collect", is_flag=True, help="Never learn from what this device asks.")
@json_option
def create_key(name: str, no_collect: bool, as_json: bool) -> None:
    """Make a key for the device NAME. It is shown once."""
    with open_store() as store:
        device, secret = store.keys.create(name, collect=not no_collect)
        store.audit.add("owner", "key.created", {"device": device.id, "name": device.name})
    if as_json:
        print_json({**asdict(device), "key": secret})
        return
    click.echo(secret)
    click.echo(
        f"This is the key of {device.name!r} ({device.id}); it cannot be shown again. "
        "A device sends it as `Authorization: Bearer …`, an OpenAI client as its api_key.",
        err=True,
    )


@keys.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List the devices and their keys' states."""
    with open_store() as store:
        found = store.keys.list()
    if as_json:
        print_json([asdict(device) for device in found])
        return
    print_table(
        ["id", "name", "created", "last seen", "collect", "teaches", "a minute", "models", "revoked"],
        (
            [
                d.id,
                d.name,
                moment(d.created),
                moment(d.last_seen),
                d.collect,
                d.teach,
                d.rate or "usual",
                "all" if d.models is None else ", ".join(d.models),
                d.revoked,
            ]
            for d in found
        ),
        empty="No devices. Make a key with `shammah keys create NAME`.",
    )


@keys.command(
    "limit",
    epilog="""\b
Examples:
  shammah keys limit guests --rate 20
  shammah keys limit guests --model shammah --model shammah:base
  shammah keys limit guests --any-rate --all-models""",
)
@click.argument("device", type=WORDS)
@click.option("--rate", type=int, help="Requests it may send in a minute.")
@click.option("--any-rate", is_flag=True, help="As many as any device: server.device_requests_per_minute.")
@click.option(
    "models",
    "--model",
    multiple=True,
    help="A model it may use, and no others: `shammah` is what is in service. May be given several times.",
)
@click.option("--all-models", is_flag=True, help="It may use all models.")
def limit_key(
    device: str, rate: int | None, any_rate: bool, models: tuple[str, ...], all_models: bool
) -> None:
    """Say how often DEVICE (its name or id) may ask, and which models. What is not named stays as it is."""
    if (any_rate and rate is not None) or (all_models and models):
        raise click.UsageError("Give a limit or lift it, not both.")
    if not (any_rate or rate is not None or all_models or models):
        raise click.UsageError("Say what to change: --rate, --any-rate, --model or --all-models.")
    with open_store() as store:
        found = _with_key(store, device)
        changed = store.keys.change(
            found.id,
            name=found.name,
            collect=found.collect,
            models=None if all_models else models or found.models,
            rate=None if any_rate else found.rate if rate is None else rate,
        )
        detail = {"device": changed.id, "name": changed.name, "rate": changed.rate, "models": changed.models}
        store.audit.add("owner", "key.limited", detail)
    usual = "any number of requests that server.device_requests_per_minute allows"
    often = f"{changed.rate} requests a minute" if changed.rate else usual
    which = "all models" if changed.models is None else ", ".join(changed.models)
    click.echo(f"{changed.name!r} may send {often} to {which}.")


@keys.command(
    "teach",
    epilog="""\b
Examples:
  shammah keys teach "my phone"           what it corrects replaces what others said
  shammah keys teach "my phone" --no      only what it said itself""",
)
@click.argument("device")
@click.option("--yes/--no", default=True, help="Whether it may; it may by default of this command.")
def teach_key(device: str, yes: bool) -> None:
    """Let DEVICE (its name or id) teach others: what it corrects counts for all, as the owner's word does."""
    with open_store() as store:
        found = _with_key(store, device)
        changed = store.keys.change(
            found.id,
            name=found.name,
            collect=found.collect,
            models=found.models,
            rate=found.rate,
            teach=yes,
        )
        store.audit.add(
            "owner", "key.teaches", {"device": changed.id, "name": changed.name, "teach": changed.teach}
        )
    may = "may teach others" if changed.teach else "may not teach others"
    click.echo(f"{changed.name!r} {may}.")


@keys.command("revoke")
@click.argument("device", type=WORDS)
def revoke_key(device: str) -> None:
    """End the key of DEVICE (its name or id) for good."""
    with open_store() as store:
        found = _with_key(store, device)
        store.keys.revoke(found.id)
        store.audit.add("owner", "key.revoked", {"device": found.id, "name": found.name})
    click.echo(f"The key of {found.name!r} is revoked.")


def _with_key(store: Store, name: str) -> Device:
    from appliance.errors import NotFound

    for device in store.keys.list():
        if not device.revoked and name in (device.id, device.name):
            return device
    raise NotFound(f"No device {name!r} has a key. `shammah keys list` shows all.")
