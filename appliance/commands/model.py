"""`shammah model`: the models on this box, and which is served."""

from __future__ import annotations

import click

from appliance.commands.output import json_option, moment, print_json, print_table, size
from appliance.home import Home


@click.group()
def model() -> None:
    """The models on this box."""


@model.command(
    "import",
    epilog="""\b
Examples:
  shammah model import                                     the embedded default
  shammah model import ~/checkpoints/my-llama --use        a checkpoint directory
  shammah model import HuggingFaceTB/SmolLM2-360M-Instruct from the hub; goes on after an interruption

\b
Importing turns a checkpoint into a bundle of ONNX graph, 8-bit weights and tokenizer. It needs the
`train` dependencies (`make run` installs them), memory for the model in 32 bits, and a minute or more.
Doing it twice is a no-op; an interrupted import leaves nothing behind.""",
)
@click.argument("source", default="default")
@click.option("--name", help="The bundle's name; made from the source by default.")
@click.option("--use", "use_it", is_flag=True, help="Serve it from the daemon's next start.")
def import_(source: str, name: str | None, use_it: bool) -> None:
    """Import SOURCE: `default`, a checkpoint directory, a .gguf file, or a hub id OWNER/NAME."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from appliance.model.importer import import_model

    home = Home.default()
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("Importing", total=1.0)
        last = ""

        def progress(stage: str, fraction: float) -> None:
            nonlocal last
            bar.update(task, description=stage, completed=fraction)
            if bar.disable and stage != last:
                # A log gets one line a stage where a terminal gets a bar.
                click.echo(f"{fraction:4.0%} {stage}", err=True)
                last = stage

        bundle = import_model(source, home, name, progress)
    click.echo(f"{bundle.name} is imported.")
    if use_it:
        _use(home, bundle.name)


@model.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the imported models and the one that is served."""
    from appliance.config import load_config
    from appliance.model.bundle import list_bundles

    home = Home.default()
    served = load_config(home.config).model.name
    bundles = [(bundle.manifest, bundle.manifest.name == served) for bundle in list_bundles(home)]
    if as_json:
        print_json(
            [
                {
                    "name": m.name,
                    "source": m.source,
                    "family": m.family,
                    "context_length": m.context_length,
                    "quantization": m.quantization,
                    "size": sum(entry.size for entry in m.files.values()),
                    "created": m.created,
                    "base_hash": m.base_hash,
                    "in_use": used,
                }
                for m, used in bundles
            ]
        )
        return
    print_table(
        ["", "name", "family", "context", "size", "imported", "from"],
        (
            [
                "*" if used else " ",
                m.name,
                m.family,
                m.context_length,
                size(sum(entry.size for entry in m.files.values())),
                moment(m.created),
                m.source,
            ]
            for m, used in bundles
        ),
        empty="No models. `shammah model import` imports the default one.",
    )


@model.command(
    epilog="""\b
Example:
  shammah model use my-llama

\b
An adapter belongs to the model it was trained on: another model starts without one and learns anew.
It is in service again when you come back to that model."""
)
@click.argument("name")
def use(name: str) -> None:
    """Serve the model NAME from the daemon's next start."""
    _use(Home.default(), name)


def _use(home: Home, name: str) -> None:
    import tomlkit

    from appliance.commands.client import find_daemon
    from appliance.config import load_config, parse_config
    from appliance.files import write_atomic
    from appliance.model.bundle import load_bundle

    load_config(home.config)  # a broken file is refused, not overwritten
    bundle = load_bundle(home.models / name)
    text = home.config.read_text(encoding="utf-8") if home.config.exists() else ""
    document = tomlkit.parse(text)
    document.setdefault("model", tomlkit.table())["name"] = bundle.manifest.name
    changed = tomlkit.dumps(document)
    parse_config(changed)
    write_atomic(home.config, changed)
    restart = " Restart the daemon to serve it." if find_daemon(home) else ""
    click.echo(f"{name} is the model to serve.{restart}")
