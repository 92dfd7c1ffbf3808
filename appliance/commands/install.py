"""`shammah install` and `shammah uninstall`: the box as a service of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.commands.daemon import check_bind
from appliance.errors import ShammahError, Unavailable

if TYPE_CHECKING:
    from appliance.units import File

_dry_run = click.option("--dry-run", is_flag=True, help="Only print what would be written and run.")
_root = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write below this directory instead of /, and start nothing.",
)


@click.command(
    epilog="""\b
Examples:
  sudo .venv/bin/shammah install
  sudo .venv/bin/shammah install --bind 0.0.0.0:8080
  .venv/bin/shammah install --dry-run

\b
The data is kept in /var/lib/shammah, of the user shammah. A second time it changes what has to be changed:
after an upgrade, a move of the checkout, or a change of [train] memory_limit_mb. What you set by
`systemctl edit shammah.service` stays."""
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    multiple=True,
    callback=check_bind,
    help="Where to listen, config.toml's by default; may be given several times.",
)
@_dry_run
@_root
def install(bind: str | None, dry_run: bool, root: Path | None) -> None:
    """Have systemd run this installation, now and at every boot."""
    from appliance import units
    from appliance.config import Config, load_config
    from appliance.errors import ConfigError

    try:
        config = load_config(_below(root, units.HOME) / "config.toml")
    except ConfigError as error:
        click.echo(f"config.toml is not right, so the defaults count here: {error}", err=True)
        config = Config()
    here = units.this_installation(bind, config.server.bind, config.train.memory_limit_mb)
    if not (dry_run or root):
        _need_systemd()
        units.check_readable(here)
    wanted = _wanted(units.files(here), root)
    changed = [file for file in wanted if _text(file.path) != file.text]
    for file in changed:
        if dry_run:
            click.echo(f"# {file.path}\n{file.text}")
        else:
            _write(file)
            click.echo(f"Wrote {file.path}")
    ran = _run([] if root else _starting({file.path for file in changed}), dry_run)
    if not (changed or ran):
        click.echo("Nothing changed: it is installed like that.")
    elif not (dry_run or root):
        click.echo(
            "The box runs. `sudo shammah status` asks it; `journalctl -u shammah` has its first words."
        )


@click.command(
    epilog="""\b
Examples:
  sudo shammah uninstall
  sudo shammah uninstall --dry-run"""
)
@_dry_run
@_root
def uninstall(dry_run: bool, root: Path | None) -> None:
    """Stop the box and remove what `install` wrote. The data stays where it is."""
    from appliance import units

    if not (dry_run or root):
        _need_systemd()
    here = units.this_installation(None, "127.0.0.1:8080", 0)
    present = [file for file in _wanted(units.files(here), root) if file.path.exists()]
    if not present:
        click.echo("Nothing to remove: it is not installed.")
        return
    if not root:
        # The programs that it had started end with it.
        _run([["systemctl", "disable", "--now", units.SERVICE, units.SOCKET]], dry_run)
    for file in present:
        if not dry_run:
            file.path.unlink()
        click.echo(f"{'rm' if dry_run else 'Removed'} {file.path}")
    if not root:
        _run([["systemctl", "daemon-reload"]], dry_run)
    click.echo(
        f"The data stays in {_below(root, units.HOME)}, with the user {units.USER}. "
        f"To be rid of both: rm -r {_below(root, units.HOME)}; userdel {units.USER}"
    )


def _below(root: Path | None, path: Path) -> Path:
    return root.absolute() / path.relative_to("/") if root else path


def _wanted(files: Sequence[File], root: Path | None) -> list[File]:
    """Where they go; a command of somebody else's that has the name is left alone."""
    from appliance import units

    placed = [replace(file, path=_below(root, file.path)) for file in files]
    found = []
    for file, at in zip(files, placed, strict=True):
        text = _text(at.path)
        if text is not None and not units.ours(file, text):
            click.echo(f"{at.path} is another program, and stays.", err=True)
        else:
            found.append(at)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _write(file: File) -> None:
    from appliance.files import write_atomic

    file.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file.path, file.text, mode=file.mode)


def _starting(changed: set[Path]) -> list[list[str]]:
    """The commands that make the files count."""
    import pwd

    from appliance import units

    commands = []
    try:
        pwd.getpwnam(units.USER)
    except KeyError:
        commands.append(["systemd-sysusers", str(units.SYSUSERS)])
    unit_changed = any(path.parent == units.UNIT_DIRECTORY for path in changed)
    if unit_changed:
        commands.append(["systemctl", "daemon-reload"])
        commands.append(["systemctl", "try-restart", units.SOCKET, units.SERVICE])
    names = [units.SOCKET, units.SERVICE]
    if unit_changed or not (_says_yes("is-enabled", names) and _says_yes("is-active", names)):
        commands.append(["systemctl", "enable", "--now", *names])
    return commands


def _says_yes(question: str, names: Sequence[str]) -> bool:
    """Whether systemctl does, of all of them."""
    if shutil.which("systemctl") is None:
        return False
    return all(
        subprocess.run(["systemctl", "--quiet", question, name], capture_output=True, check=False).returncode
        == 0
        for name in names
    )


def _run(commands: Sequence[Sequence[str]], dry_run: bool) -> bool:
    """Run them, or say them; whether there were any."""
    for command in commands:
        click.echo(f"$ {' '.join(command)}")
        if "--now" in command and "enable" in command and not dry_run:
            click.echo("  (the first start imports the model, which takes a minute or more)")
        if not dry_run and subprocess.run(command, check=False).returncode != 0:
            raise ShammahError(
                f"`{' '.join(command)}` failed. `journalctl -u shammah -n 50` may say why; "
                "install again when that is mended."
            )
    return bool(commands)


def _need_systemd() -> None:
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise Unavailable(
            "systemd does not run this machine. Have whatever does start `shammah daemon`, "
            "or take the container."
        )
    if os.geteuid() != 0:
        raise Unavailable(
            "Only root may install a service: run it by sudo, or with --dry-run to see what it does."
        )
