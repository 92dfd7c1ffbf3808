"""`shammah console` and `shammah keys`: who may come in."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from appliance.commands.local import open_store
from appliance.commands.output import json_option, moment, print_json, print_table


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
        text = sys.stdin.readline().rstrip("\r\n")
    with open_store() as store:
        set_password(store, text)
        store.audit.add("owner", "owner.password", {})
    click.echo("The owner's password is set; log in at the console with it.")


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
@click.argument("name")
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
        ["id", "name", "created", "last seen", "collect", "revoked"],
        ([d.id, d.name, moment(d.created), moment(d.last_seen), d.collect, d.revoked] for d in found),
        empty="No devices. Make a key with `shammah keys create NAME`.",
    )


@keys.command("revoke")
@click.argument("device")
def revoke_key(device: str) -> None:
    """End the key of DEVICE (its name or id) for good."""
    from appliance.errors import NotFound

    with open_store() as store:
        matches = [d for d in store.keys.list() if not d.revoked and device in (d.id, d.name)]
        if not matches:
            raise NotFound(f"No device {device!r} has a key. `shammah keys list` shows all.")
        store.keys.revoke(matches[0].id)
        store.audit.add("owner", "key.revoked", {"device": matches[0].id, "name": matches[0].name})
    click.echo(f"The key of {matches[0].name!r} is revoked.")
