"""`shammah tls`: the certificate, and the authority that devices install."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.client import find_daemon
from appliance.commands.output import json_option, moment, print_facts, print_json
from appliance.home import Home

if TYPE_CHECKING:
    from appliance.network.lan import Network


@click.group()
def tls() -> None:
    """HTTPS: the box's certificate, and the authority that devices install to trust it."""


@tls.command()
@json_option
def show(as_json: bool) -> None:
    """Show the certificate in service and the authority's fingerprint, to compare on a device."""
    found = _state(Home.default())
    if as_json:
        print_json(found)
        return
    authority, certificate = found["authority"], found["certificate"]
    print_facts(
        [
            ("HTTPS", f"port {found['port']}" if found["port"] else "not served"),
            ("names", ", ".join(certificate["names"]) if certificate else "no certificate yet"),
            ("kind", {"own": "of the box's own authority", "supplied": "yours"}[certificate["kind"]])
            if certificate
            else ("kind", "-"),
            ("ends", moment(certificate["ends"] if certificate else None)),
            ("print", certificate["fingerprint"] if certificate else "-"),
            ("authority", authority["fingerprint"] if authority else "none yet"),
            ("ends", moment(authority["ends"] if authority else None)),
        ]
    )
    if found["problem"]:
        click.echo(found["problem"], err=True)


@tls.command()
def renew() -> None:
    """Make a new certificate of the box's own authority. The daemon takes it over within seconds.

    It does so by itself before one ends, and when the box gets another name or address.
    """
    from appliance.network.authority import ensure_own, own_certificate, present

    home = Home.default().ensure()
    network = _network(home)
    ensure_own(home, network.title, network.names(), present(), network.configured, renew=True)
    certificate = own_certificate(home)
    assert certificate is not None
    click.echo(f"A new certificate is good until {moment(certificate.not_valid_after_utc.timestamp())}.")


@tls.command(
    epilog="""\b
Examples:
  shammah tls ca > shammah-ca.pem
  shammah tls ca --output /mnt/usb/shammah-ca.pem
  shammah tls ca --new                  every device has to install the new one"""
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
@click.option("--new", is_flag=True, help="Make a new authority first; devices that trust the old one stop.")
def ca(output: Path | None, new: bool) -> None:
    """Print the authority's certificate (PEM), which devices install. Its key stays in the home."""
    from appliance.network.authority import ensure_own, make_authority, present, read_authority

    home = Home.default().ensure()
    if new:
        network, now = _network(home), present()
        make_authority(home, network.title, network.configured, now)
        ensure_own(home, network.title, network.names(), now, network.configured)
        click.echo("There is a new authority: devices have to install it (the page /trust).", err=True)
    pem = read_authority(home).pem
    if output is None:
        click.echo(pem.decode(), nl=False)
    else:
        output.write_bytes(pem)


def _network(home: Home) -> Network:
    from appliance.config import load_config
    from appliance.network.lan import Network

    return Network(home, load_config(home.config), lambda: False)


def _state(home: Home) -> dict[str, Any]:
    from appliance.config import load_config
    from appliance.errors import ShammahError
    from appliance.network.authority import fingerprint, own_certificate, read_authority
    from appliance.network.certificates import describe, load_supplied

    config, daemon = load_config(home.config), find_daemon(home)
    authority: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    problem = ""
    try:
        own = read_authority(home).certificate
        authority = {"fingerprint": fingerprint(own), "ends": own.not_valid_after_utc.timestamp()}
        if (found := own_certificate(home)) is not None:
            certificate = describe(found, supplied=False)
    except ShammahError as error:
        problem = "" if error.code == "not_found" else error.message
    if config.tls.certificate:
        try:
            certificate = describe(load_supplied(config.tls).certificate, supplied=True)
        except ShammahError as error:
            problem = error.message
    return {
        "port": daemon.https if daemon else None,
        "certificate": certificate,
        "authority": authority,
        "problem": problem,
    }
