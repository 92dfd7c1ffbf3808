"""`shammah status` and `shammah train`: what the box does and learns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from appliance.commands.client import Daemon, find_daemon, need_daemon
from appliance.commands.local import open_store
from appliance.commands.output import json_option, moment, print_facts, print_json
from appliance.commands.terminal import console
from appliance.errors import ShammahError
from appliance.home import Home

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_SECONDS = 1.0


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what is served, what waits to be learned, and how the last run ended.

    Works without a daemon too, from what is on disk.
    """
    home = Home.default()
    daemon = find_daemon(home)
    facts = _from_daemon(daemon) if daemon else _from_disk(home)
    if as_json:
        print_json(facts)
        return
    learning = facts["training"]
    print_facts(
        [
            ("Daemon", f"running at {daemon.url}/, process {daemon.pid}" if daemon else "not running"),
            ("Model", facts["model"]),
            ("Adapter", _adapter_line(facts["adapter"], learning["probation"])),
            ("Queue", _queue_line(learning)),
            ("Run", _run_line(learning)),
            ("Last run", _last_run_line(learning["last_run"])),
        ]
    )


@click.command(
    epilog="""\b
Examples:
  shammah train --now               start a run and watch it
  shammah train --now --detach      start it and return
  shammah train                     watch the run that is going on, or see when the next starts

\b
The exit code of a watched run is 0 when its adapter was promoted, 1 when not; the reason is printed."""
)
@click.option("--now", is_flag=True, help="Start a run on the pending examples instead of waiting.")
@click.option("--detach", is_flag=True, help="Return when the run has started.")
@json_option
def train(now: bool, detach: bool, as_json: bool) -> None:
    """Learn from the pending examples, or watch how that goes. Needs the daemon."""
    daemon = need_daemon(Home.default())
    if now:
        run = daemon.post("/v1/training/run")
    else:
        learning = daemon.get("/v1/training/status")
        if learning["run"] is None:
            if as_json:
                print_json(learning)
            else:
                click.echo(f"No run is going on. {_queue_line(learning)}.")
                click.echo("`shammah train --now` starts one.")
            return
        run = daemon.get(f"/v1/training/runs/{learning['run']['id']}")
    if not detach:
        run = _watch(daemon, run["id"])
    if as_json:
        print_json(run)
    else:
        click.echo(_last_run_line(run))
    if not detach and run["state"] not in ("promoted", "accepted"):
        raise SystemExit(1)


def _watch(daemon: Daemon, run_id: str) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=screen,
        disable=not screen.is_terminal,
    ) as bar:
        task = bar.add_task("Waiting", total=None, detail="")
        shown = ""
        while True:
            run = daemon.get(f"/v1/training/runs/{run_id}")
            if run["ended"] is not None:
                return run
            learning = daemon.get("/v1/training/status")
            shown = _show(bar, task, run, learning, shown)
            time.sleep(POLL_SECONDS)


def _show(bar: Progress, task: TaskID, run: dict[str, Any], learning: dict[str, Any], shown: str) -> str:
    going = learning["run"] if (learning["run"] or {}).get("id") == run["id"] else None
    deferral = learning.get("deferral")
    if going is None and deferral is not None and run["state"] == "queued":
        raise ShammahError(
            f"The run is put off: {deferral['reason']}. It is tried again at {moment(deferral['next_try'])}."
        )
    phase = str(going.get("doing") or going["phase"] if going else run["state"]).capitalize()
    if going is not None:
        loss = f"loss {going['loss']:.3f}" if going.get("loss") is not None else ""
        steps = f"step {going['step']}/{going['steps']}" if going.get("steps") else ""
        left = _about(going.get("seconds_left"), going.get("memory_mb"), " left")
        paused = "paused" if going.get("paused") else ""
        total = 1.0 if going.get("fraction") is not None else None
        bar.update(
            task,
            description=phase,
            total=total,
            completed=going.get("fraction") or 0.0,
            detail=" ".join(part for part in (steps, loss, left, paused) if part),
        )
    if bar.disable and phase != shown:
        click.echo(f"{run['id']}: {phase}", err=True)
    return phase


def _from_daemon(daemon: Daemon) -> dict[str, Any]:
    ready = daemon.get("/ready")
    health = daemon.get("/health")
    return {
        "running": True,
        "pid": daemon.pid,
        "url": daemon.url,
        "health": health["status"],
        "uptime_seconds": health["uptime_seconds"],
        "model": ready["model"],
        "adapter": ready["adapter"],
        "training": daemon.get("/v1/training/status"),
    }


def _from_disk(home: Home) -> dict[str, Any]:
    from dataclasses import asdict

    from appliance.config import load_config
    from appliance.learning.probation import load_probation

    settings = load_config(home.config)
    with open_store() as store:
        runs = store.runs.list(limit=1)
        probation = load_probation(store.settings)
        oldest = store.examples.oldest_pending()
        pending, review = store.examples.count("pending", "training"), store.examples.review_count()
    minutes = settings.lora.batch_timeout_minutes
    return {
        "running": False,
        "pid": None,
        "url": None,
        "health": None,
        "uptime_seconds": None,
        "model": settings.model.name,
        "adapter": home.current.readlink().stem if home.current.is_symlink() else None,
        "training": {
            "enabled": settings.lora.enabled,
            "pending": pending,
            "threshold": settings.lora.auto_train_threshold,
            "timeout_at": None if oldest is None else oldest + minutes * 60,
            "run": None,
            "estimate": None,
            "deferral": None,
            "last_run": asdict(runs[0]) if runs else None,
            "review": review,
            "probation": asdict(probation) if probation else None,
        },
    }


def _adapter_line(adapter: str | None, probation: dict[str, Any] | None) -> str:
    if adapter is None:
        return "none (base)"
    if probation is None or probation["adapter"] != adapter:
        return adapter
    return f"{adapter}, on probation until {moment(probation['until'])}"


def _queue_line(learning: dict[str, Any]) -> str:
    line = f"{learning['pending']} pending, a run starts at {learning['threshold']}"
    if learning["timeout_at"] is not None and learning["pending"]:
        line += f" or {moment(learning['timeout_at'])}"
    if not learning["enabled"]:
        line = f"{learning['pending']} pending, learning is switched off ([lora] enabled)"
    if learning["review"]:
        line += f"; {learning['review']} to review in the console"
    return line


def _run_line(learning: dict[str, Any]) -> str:
    run, deferral = learning["run"], learning["deferral"]
    if run is not None:
        done = f", {run['fraction']:.0%}" if run.get("fraction") is not None else ""
        paused = ", paused: requests are served first" if run.get("paused") else ""
        about = _about(run.get("seconds_left"), run.get("memory_mb"), " left")
        left = f", {about}" if about else ""
        doing = f": {run['doing'].lower()}" if run.get("doing") else ""
        return f"{run['id']} {run['phase']}{doing}{done}{left}{paused}"
    if deferral is not None:
        return f"put off: {deferral['reason']}; next try {moment(deferral['next_try'])}"
    if expected := learning.get("estimate"):
        about = _about(expected["seconds"], expected["memory_mb"])
        return f"none going on; one on the queue would take {about}"
    return "none going on"


def _last_run_line(run: dict[str, Any] | None) -> str:
    if run is None:
        return "none yet"
    reason = f": {run['reason']}" if run.get("reason") else ""
    adapter = f", {run['adapter']}" if run.get("adapter") and run["state"] in ("promoted", "accepted") else ""
    ended = f" at {moment(run['ended'])}" if run.get("ended") else ""
    return f"{run['id']} {run['state']}{ended}, {run['examples']} examples{adapter}{reason}"


def _about(seconds: float | None, memory_mb: float | None, left: str = "") -> str:
    """Time and memory as people say them; what is not known is left out."""
    parts = []
    if seconds is not None:
        minutes = round(seconds / 60)
        span = f"{minutes} minutes" if minutes > 1 else "a minute" if seconds >= 45 else "some seconds"
        parts.append(f"about {span}{left}")
    if memory_mb is not None:
        parts.append(f"{memory_mb / 1000:.1f} GB")
    return ", ".join(parts)
