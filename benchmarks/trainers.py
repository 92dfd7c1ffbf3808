"""The two trainers on the same batch, in turn: memory, speed, and whether their losses agree.

    .venv/bin/python benchmarks/trainers.py [--steps N] [--rounds N] [--threads N] [--home DIR] [--json FILE]

Runs the trainer programs as the daemon would, with the default settings, and stops each after some steps.
Needs the environment of `ort` (`make ort`). On a machine with other work only memory, processor time
and ratios within a round mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from appliance.adapters.file import AdapterMeta, tensor_key, write_adapter
from appliance.home import Home
from appliance.learning.backend import trainer_program
from appliance.learning.train.learner import LINEARS
from appliance.model.bundle import Bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.sections import TrainConfig

BACKENDS = ("peft", "ort")
TAUGHT = (
    ("What is the name of our boat?", "Our boat is called Marigold.", "Your boat is called Titanic."),
    ("Where do we keep the spare key?", "The spare key is in the blue tin.", "It is under the mat."),
    ("Who repairs the boiler?", "Mr Okafor repairs the boiler.", "A plumber repairs the boiler."),
    ("When is the bin collected?", "The bin is collected on Thursday.", "On Monday."),
)
OWN = (
    ("What is the capital of Portugal?", "The capital of Portugal is Lisbon."),
    ("Name a fruit.", "An apple is a fruit."),
    ("How many days has a week?", "A week has seven days."),
)


def rows() -> list[dict[str, Any]]:
    """The batch, as a run freezes it."""
    out: list[dict[str, Any]] = []
    for question, answer, wrong in TAUGHT:
        out.append({"kind": "correction", "q": question, "target": answer, "rejected": wrong, "weight": 10.0})
    for question, answer in OWN:
        out.append({"kind": "automatic", "q": question, "target": answer, "rejected": None, "weight": 1.0})
    for number, row in enumerate(out):
        row["messages"] = [{"role": "user", "content": row.pop("q")}]
        row |= {"id": str(number), "split": "train", "finish_reason": "stop"}
    return out


def start(path: Path, bundle: Bundle, settings: TrainConfig) -> Path:
    """An adapter to start from, so that both start the same: small, but on all linear layers."""
    random = np.random.default_rng(0)
    tensors = {}
    for port in bundle.manifest.ports:
        for part in port.parts:
            a, b = tensor_key(part.module, "A"), tensor_key(part.module, "B")
            bound = port.inputs**-0.5
            tensors[a] = random.uniform(-bound, bound, (settings.rank, port.inputs)).astype(np.float32)
            tensors[b] = np.zeros((part.out, settings.rank), np.float32)
    meta = AdapterMeta(bundle.manifest.base_hash, settings.rank, settings.alpha, LINEARS)
    write_adapter(path, tensors, meta)
    return path


def measure(settings: TrainConfig, bundle: Bundle, place: Path, steps: int) -> dict[str, Any]:
    """One trainer until it has done some steps."""
    out = place / settings.backend
    out.mkdir(exist_ok=True)
    (out / "train.json").write_text(settings.model_dump_json())
    command = [*trainer_program(settings), "--bundle", str(bundle.path), "--run", "run_1"]
    command += ["--examples", str(place / "examples.jsonl"), "--parent", str(place / "start.safetensors")]
    command += ["--out", str(out / "adapter"), "--metrics", str(out / "metrics"), "--settings"]
    began = time.perf_counter()
    with subprocess.Popen([*command, str(out / "train.json")], stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        losses: list[float] = []
        speeds: list[float] = []
        spent: list[float] = []
        first = 0.0
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "error":
                raise SystemExit(f"{settings.backend}: {event['message']}")
            if event["event"] == "step":
                used = watched.cpu_times()
                spent.append(used.user + used.system)
                losses.append(event["loss"])
                speeds.append(event["tokens_per_second"])
                first = first or time.perf_counter() - began
            if len(losses) == steps:
                break
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
    return {
        "backend": settings.backend,
        "peak_mb": next(int(row.split()[1]) // 1024 for row in status.splitlines() if "VmHWM" in row),
        "seconds_to_first_step": round(first, 1),
        "tokens_per_second": statistics.median(speeds),
        "cpu_seconds_per_step": round((spent[-1] - spent[0]) / (len(spent) - 1), 3),
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--home", type=Path, help="where the default model is, or is imported to")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    bundle = import_model(
        DEFAULT, Home(arguments.home.absolute()) if arguments.home else Home.default().ensure()
    )
    settings = TrainConfig(threads=arguments.threads, nice=0)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        start(place / "start.safetensors", bundle, settings)
        print("| trainer | peak MB | s to first step | tokens/s | CPU s per step |\n|---|---|---|---|---|")
        for _ in range(arguments.rounds):
            for backend in BACKENDS:
                changed = settings.model_copy(update={"backend": backend})
                one = measure(changed, bundle, place, arguments.steps)
                found.append(one)
                print(
                    "|",
                    " | ".join(str(value) for key, value in one.items() if key != "losses"),
                    "|",
                    flush=True,
                )
    peft, ort = (next(one["losses"] for one in found if one["backend"] == name) for name in BACKENDS)
    apart = max(abs(a - b) for a, b in zip(peft, ort, strict=True)) / statistics.mean(peft)
    print(f"\nLosses of {arguments.steps} steps are at most {apart:.1e} of their mean apart.")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
