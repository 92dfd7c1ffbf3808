"""`shammah model`: the models on this box, and which is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.commands.output import json_option, moment, print_facts, print_json, print_table, size
from appliance.commands.terminal import console
from appliance.commands.words import WORDS
from appliance.home import Home

if TYPE_CHECKING:
    from appliance.doctor.recommend import Speed


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
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from appliance.model.importer import import_model

    home = Home.default()
    screen = console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=screen,
        disable=not screen.is_terminal,
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
    for note in bundle.manifest.notes:
        click.echo(f"Note: {note}", err=True)
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
@click.argument("name", type=WORDS)
def use(name: str) -> None:
    """Serve the model NAME from the daemon's next start."""
    _use(Home.default(), name)


def _use(home: Home, name: str) -> None:
    import tomlkit

    from appliance.commands.client import find_daemon
    from appliance.config import load_config, parse_config
    from appliance.model.bundle import load_bundle
    from appliance.settings.file import read, write

    load_config(home.config)  # a broken file is refused, not overwritten
    bundle = load_bundle(home.models / name)
    document = tomlkit.parse(read(home.config).text)
    document.setdefault("model", tomlkit.table())["name"] = bundle.manifest.name
    changed = tomlkit.dumps(document)
    parse_config(changed)
    write(home.config, changed)
    restart = " Restart the daemon to serve it." if find_daemon(home) else ""
    click.echo(f"{name} is the model to serve.{restart}")


@model.command(
    epilog="""\b
Examples:
  shammah model recommend
  shammah model recommend --json | jq '.models[] | select(.recommended)'

\b
Memory is told from this program's own figures and your settings ([model] slots, prefix_cache_mb). Speed
is told from a model on this box: what *Measure* in the console found, or a short answer made now. Another
may be some tens of per cent faster or slower than said; how good its answers are is not said at all."""
)
@json_option
def recommend(as_json: bool) -> None:
    """Read this box's memory and cores, and say which models fit and how fast they would be."""
    import os

    from appliance.commands.client import find_daemon
    from appliance.config import load_config
    from appliance.doctor.recommend import advise, yardstick
    from appliance.hardware import read_hardware, resident
    from appliance.learning.figures import decode_speed
    from appliance.model.bundle import list_bundles

    home = Home.default()
    config = load_config(home.config)
    daemon = find_daemon(home)
    pid = daemon.pid if daemon else None
    hardware = read_hardware(pid, measure=True)
    bundles = sorted(list_bundles(home), key=lambda bundle: bundle.name != config.model.name)
    threads = config.model.threads or hardware.threads
    known = yardstick(bundles, threads, lambda bundle: decode_speed(bundle, config.model.threads))
    load = os.getloadavg()[0]
    advices = advise(hardware, config, bundles, known, resident(pid))
    if as_json:
        print_json(
            {
                "memory_mb": round(hardware.memory / 1e6),
                "available_mb": round((hardware.available + resident(pid)) / 1e6),
                "limited_by_group": hardware.limited,
                "cores": hardware.cores,
                "processors": hardware.processors,
                "threads": threads,
                "read_gb_per_second": round(hardware.bandwidth / 1e9, 1),
                "load": round(load, 1),
                "measured": known
                and {"model": known.name, "tokens_per_second": round(known.decode, 1), "now": known.fresh},
                "models": [advice.to_json() for advice in advices],
            }
        )
        return
    limit = " (the limit of its group)" if hardware.limited else ""
    print_facts(
        [
            ("Memory", f"{hardware.memory / 1e9:.1f} GB{limit}, {hardware.available / 1e9:.1f} GB free"),
            (
                "Cores",
                f"{hardware.cores}, of which {hardware.processors:g} may be used; {threads} would compute",
            ),
            ("Reading", f"{hardware.bandwidth / 1e9:.1f} GB/s of memory, measured just now"),
            (
                "Speed",
                f"told from {known.name}, {known.decode:.0f} tokens/s "
                f"{'now' if known.fresh else 'when measured'}"
                if known
                else "told from memory alone, for no model is here: very roughly",
            ),
        ]
    )
    click.echo()
    print_table(
        ["", "model", "parameters", "weights", "serving", "learning", "tokens/s", "here", "remark"],
        (
            [
                "*" if advice.best else " ",
                advice.here or advice.id,
                _parameters(advice.shape.parameters),
                _gb(advice.shape.stored),
                _gb(advice.need.serve),
                f"+ {_gb(advice.need.learn)}",
                _speed(advice.speed),
                {"learns": "serves, learns", "serves": "serves only", "no": "too large"}[advice.fit],
                advice.remark,
            ]
            for advice in advices
        ),
        empty="",
    )
    click.echo(
        f"\n* the largest that learns here and answers faster than one reads. Serving: {config.model.slots} "
        "conversations of 1,024 tokens."
    )
    if load > hardware.processors / 2:
        click.echo(f"The machine was busy (load {load:.1f}): what was measured now is less than it can do.")
    click.echo(
        "Import one with `shammah model import NAME`. That takes 5 bytes of disk a parameter meanwhile."
    )


def _parameters(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _speed(speed: Speed | None) -> str:
    if speed is None:
        return "-"
    if speed.least == speed.most:
        return f"{speed.expected:.0f}, measured"
    return f"{_rough(speed.least)} to {_rough(speed.most)}"


def _rough(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
