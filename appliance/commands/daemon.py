"""`shammah daemon`: serve until told to stop."""

from __future__ import annotations

import subprocess
import sys

import click

from appliance.errors import BundleError, ConfigError
from appliance.home import Home

RESTORE_SECONDS = 3600.0
IMPORT_SECONDS = 3600.0
"""How long a step of the start may take until a supervisor may take it for hanging."""


def check_bind(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
    """Of an option: HOST:PORT, several of them divided by commas, or nothing."""
    from appliance.network.listening import shown, split_bind

    if not value:
        return None
    try:
        return shown(split_bind(",".join(value))).replace(" ", "")
    except ConfigError as error:
        raise click.BadParameter(
            "give HOST:PORT, e.g. 127.0.0.1:8080 or [::1]:8080, or several divided by commas."
        ) from error


@click.command(
    epilog="""\b
Examples:
  shammah daemon
  shammah daemon --bind 127.0.0.1:9000
  shammah daemon --bind 0.0.0.0:8080
  shammah daemon --bind [::]:8080          IPv6 and IPv4
  shammah daemon --bind 127.0.0.1:8080 --bind 192.168.1.20:80

\b
Until the owner has set a password, only this machine is served, whatever the address: the log shows a link
to set the box up. --insecure overrides that: whoever reads the link can then set it up from the network."""
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    multiple=True,
    callback=check_bind,
    help="Where to listen, config.toml's by default; may be given several times.",
)
@click.option("--insecure", is_flag=True, help="Serve the network before a password is set.")
def daemon(bind: str | None, insecure: bool) -> None:
    """Serve the model, the API and the console; learn along the way.

    The first start imports the default model, which takes a minute. Stop with Ctrl-C or SIGTERM:
    running answers are finished, nothing is lost.
    """
    from appliance import notify, stopping

    stopping.heed()
    notify.starting("Putting things in place", at_most=RESTORE_SECONDS)
    from appliance.backup.mend import finish_rescue, mend
    from appliance.backup.restore import finish_restore
    from appliance.config import load_to_serve

    home = Home.default()
    home.check_writable()
    if home.root.is_dir():
        home.shut()
    if finish_rescue(home):
        click.echo("The store's files had been taken away; what was saved of them is in place.", err=True)
    if finish_restore(home):
        click.echo("The backup is in place; what was there before is kept beside it.", err=True)
    if mended := mend(home):
        click.echo(f"The store was damaged. {mended.told}", err=True)
    loaded = load_to_serve(home.config, home.good_config)
    for problem in loaded.problems:
        click.echo(problem, err=True)
    if loaded.problems:
        click.echo(f"config.toml cannot be used: the box starts with {loaded.instead}.", err=True)
    settings = loaded.config
    _ensure_bundle(home, settings.model.name)

    from appliance.app import run_daemon

    run_daemon(home, settings, bind, insecure)


def _ensure_bundle(home: Home, name: str) -> None:
    """Import the default model when it is wanted and missing, in a child: the daemon never loads torch."""
    from appliance.model.bundle import load_bundle
    from appliance.model.source import DEFAULT, DEFAULT_NAME

    if name != DEFAULT_NAME:
        return  # if it is not there, the daemon knows what to do
    try:
        load_bundle(home.models / name)
        return
    except BundleError:
        pass
    from appliance import notify

    notify.starting("Importing the default model", at_most=IMPORT_SECONDS)
    click.echo("The default model is not here yet (or is damaged): importing it.", err=True)
    done = subprocess.run([sys.executable, "-m", "appliance.cli", "model", "import", DEFAULT], check=False)
    if done.returncode != 0:
        raise BundleError("The default model could not be imported, so there is nothing to serve.")
