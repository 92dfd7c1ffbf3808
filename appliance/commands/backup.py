"""`shammah backup` and `shammah restore`: all of the home but the models, in one file and back."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from appliance.commands.local import no_daemon, open_store, served_bundle
from appliance.home import Home


@click.command(
    epilog="""\b
Examples:
  shammah backup                        into the home's backups/
  shammah backup --output /mnt/usb      a copy there, too"""
)
@click.option(
    "--output",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="A directory to put a copy into.",
)
def backup(output: Path | None) -> None:
    """Write a backup: what was collected and learned, the settings, the adapters. Works beside the daemon."""
    from appliance.backup.archive import create

    home = Home.default()
    bundle = served_bundle(home)
    with open_store() as store:
        made = create(home, store, bundle.manifest.name, bundle.manifest.base_hash)
        store.audit.add("owner", "backup.created", {"name": made.name})
    click.echo(f"{made.path} ({made.size / 1e6:,.1f} MB)")
    if output is not None:
        click.echo(shutil.copy2(made.path, output / made.name))


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.confirmation_option(prompt="What is in this home now is moved aside. Go on?")
def restore(file: Path) -> None:
    """Put the backup FILE in the place of what is there. The daemon must be stopped.

    What was there before is kept in the home as before-restore_TIME until you delete it.
    """
    from appliance.backup.restore import finish_restore, stage

    home = Home.default().ensure()
    with no_daemon(home):
        manifest = stage(home, file, "owner")
    finish_restore(home)
    adapters = "1 adapter" if manifest.adapters == 1 else f"{manifest.adapters} adapters"
    click.echo(f"Restored: {adapters}; {manifest.current or 'the base model'} will be in service.")
