"""`shammah config`: what can be set, what is set, and whether it is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.output import json_option, print_json
from appliance.home import Home

if TYPE_CHECKING:
    from pydantic import BaseModel


@click.group()
def config() -> None:
    """The settings in config.toml."""


@config.command(
    epilog="""\b
Examples:
  shammah config show
  shammah config show > ~/.shammah/config.toml     a file with every key to start from"""
)
@json_option
def show(as_json: bool) -> None:
    """Print all settings in effect: the file's, and the defaults of what it leaves out."""
    from appliance.config import load_config

    settings = load_config(Home.default().config)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    import tomlkit

    document = tomlkit.document()
    for section, values in settings.model_dump().items():
        table = tomlkit.table()
        for key, value in values.items():
            table.add(key, value)
        document.add(section, table)
    click.echo(tomlkit.dumps(document), nl=False)


@config.command(
    epilog="""\b
Examples:
  shammah config check
  shammah config check ./config.toml      a file before it is put in place"""
)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
def check(file: Path | None) -> None:
    """Check the config file and print every problem with its line. Exit code 1 when there is one."""
    from appliance.config import Config, load_config
    from appliance.errors import ConfigError
    from appliance.learning.backend import trainer_program

    home = Home.default()
    path = file or home.config
    if file is not None and not file.exists():
        raise ConfigError(f"{file} does not exist.")
    try:
        settings = load_config(path)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from error
    name = settings.model.name
    if name != Config().model.name and not (home.models / name).is_dir():
        raise ConfigError(
            f"model.name: no model {name!r} is imported; `shammah model list` shows those that are."
        )
    if settings.train.backend != "auto":
        trainer_program(settings.train)
    click.echo(f"{path} is good." if path.exists() else f"{path} does not exist: every key has its default.")


@config.command()
def docs() -> None:
    """Print the reference of all keys as Markdown (docs/config.md is made with this)."""
    from appliance.config import Config

    parts = [_DOCS_HEAD]
    for name, field in Config.model_fields.items():
        section: Any = field.annotation
        about = (section.__doc__ or "").partition(": ")[2]
        parts.append(f"\n## `[{name}]`\n\n{about[:1].upper()}{about[1:]}\n")
        parts.append("| key | default | | what |\n|---|---|---|---|\n")
        parts.extend(_rows(section))
    click.echo("".join(parts), nl=False)


_DOCS_HEAD = """# Configuration

<!-- Made by `make docs` from appliance/sections.py; edit that, not this. -->

Settings live in `config.toml` in the home (`~/.shammah`, or `SHAMMAH_HOME`). Every key may be left out.
With an unknown key or a bad value in it the daemon starts with the settings that it came up with last, or
with the defaults, and log and console name the line at fault; `shammah config check` prints every problem at
once, `shammah config show` what the file means. What is changed in the console counts at once, what is
changed in the file when the daemon gets SIGHUP (`systemctl reload shammah`); only the keys marked "restart"
count from the next start.
"""


def _rows(section: type[BaseModel]) -> list[str]:
    from appliance.sections import Taken

    rows = []
    for key, field in section.model_fields.items():
        default = field.default
        text = f'"{default}"' if isinstance(default, str) else str(default).lower()
        mark = "restart" if Taken.AT_START in field.metadata else ""
        rows.append(f"| `{key}` | `{text}` | {mark} | {field.description} |\n")
    return rows
