"""A trainer program, a child of the daemon: what it is given and says is the same for each backend.

It reads the frozen batch, trains an adapter on the very weights that are served, and writes it. What
it has to say is one JSON object a line, on stdout and in the metrics file. It may be killed at any
time: the output appears whole or not at all, and started again it goes on from its checkpoint and ends
with the same.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
from safetensors import safe_open

from appliance.adapters.file import AdapterMeta, Matrix, write_adapter
from appliance.errors import ShammahError
from appliance.failpoints import failpoint
from appliance.files import in_words
from appliance.learning.train.checkpoint import Checkpoint
from appliance.learning.train.data import common_prefix, load_examples
from appliance.learning.train.learner import LINEARS, Learner
from appliance.learning.train.plan import Rehearsal
from appliance.learning.train.training import Training
from appliance.model.bundle import load_bundle
from appliance.model.checkpoint import load_checkpoint
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

Build = Callable[[TrainConfig, int, Mapping[str, Any], dict[str, Matrix], Sequence[int]], Learner]
"""`build(settings, threads, config, weights, prefix)`: a learner of the checkpoint's `config.json` and
weights, which it takes over, with the tokens that most sequences begin with."""

MALLOC = ((-8, 1), (-3, 8 << 20), (-1, 16 << 20))
"""Of glibc's `mallopt`: arenas, bytes from which a block is the system's own, bytes kept at the end."""


def main(build: Build, argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; 0 when the adapter is written, ENOMEM when there is too little memory."""
    arguments = _arguments(argv)
    with Path(arguments.metrics).open("a", encoding="utf-8") as metrics:
        try:
            train(build, arguments, lambda event: _tell(event, metrics))
        except (ShammahError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            _tell({"event": "error", "message": in_words(error)}, metrics)
            return errno.ENOMEM if isinstance(error, MemoryError) else 1
    return 0


def train(build: Build, arguments: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    """One run from files to file."""
    began = time.monotonic()
    _keep_no_free_memory()
    settings = TrainConfig.model_validate_json(Path(arguments.settings).read_text(encoding="utf-8"))
    if os.nice(0) < settings.nice:
        os.nice(settings.nice - os.nice(0))
    threads = settings.threads or max(1, (psutil.cpu_count(logical=False) or 1) // 2)
    tempfile.tempdir = os.fspath(Path(arguments.out).parent)  # /tmp may well be memory
    bundle = load_bundle(Path(arguments.bundle))
    examples = load_examples(Path(arguments.examples))
    if not any(example.split != "heldout" for example in examples):
        raise ValueError("There is no example to train on.")
    tokenizer = Tokenizer(bundle)
    tell({"event": "stage", "stage": "loading"})
    learner = build(settings, threads, *load_checkpoint(bundle), common_prefix(tokenizer))
    parent = Path(arguments.parent) if arguments.parent else None
    if parent is not None:
        _take_over(learner, parent, bundle.manifest.base_hash)
    watch = _Watch(settings, tell)
    checkpoint = _checkpoint(arguments, settings, bundle.manifest.base_hash)
    training = Training(
        learner,
        tokenizer,
        examples,
        Rehearsal.load(),
        settings,
        watch.report,
        checkpoint,
        goes_on=parent is not None,
    )
    failpoint("train.loaded")
    outcome = training.run()
    meta = AdapterMeta(
        base_hash=bundle.manifest.base_hash,
        rank=settings.rank,
        alpha=settings.alpha,
        targets=LINEARS,
        run=arguments.run,
        parent=parent.stem if parent else None,
        created=time.time(),
    )
    write_adapter(Path(arguments.out), learner.adapter(), meta)
    failpoint("train.weights")
    tell(
        {
            "event": "done",
            "seconds": round(time.monotonic() - began, 1),
            "peak_mb": peak_mb(),
            "heldout_before": outcome.heldout_before,
            "heldout_after": outcome.heldout_after,
            "scale": outcome.scale,
            "text_rise": round(outcome.text_rise, 4),
        }
    )


def peak_mb() -> int:
    """Largest resident memory of this process so far.

    Not `ru_maxrss` where it can be helped: that is at least what the process that started this one had.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _keep_no_free_memory() -> None:
    """Have the C library give back at once what is freed, where it is glibc.

    It would keep more and more of it for later; but no two steps are alike, so little of that fits again.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        for parameter, number in MALLOC:
            tune(parameter, number)


class _Watch:
    """Relays progress, and ends a run that takes too much or that nobody waits for."""

    def __init__(self, settings: TrainConfig, tell: Callable[[dict[str, Any]], None]) -> None:
        self._limit = settings.memory_limit_mb
        self._tell = tell
        self._parent = os.getppid()
        self._process = psutil.Process()

    def report(self, event: dict[str, Any]) -> None:
        self._tell(event)
        used = self._process.memory_info().rss // 2**20
        if used > self._limit:
            raise MemoryError(f"Training needs {used} MB, [train] memory_limit_mb allows {self._limit}.")
        if os.getppid() != self._parent:
            raise ChildProcessError("The daemon that started this run is gone.")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True, help="directory of the model bundle")
    parser.add_argument("--examples", required=True, help="examples.jsonl of the run")
    parser.add_argument("--out", required=True, help="adapter file to write")
    parser.add_argument("--metrics", required=True, help="file that progress lines are appended to")
    parser.add_argument("--settings", required=True, help="JSON of the [train] section")
    parser.add_argument("--run", required=True, help="id of the run, kept in the adapter")
    parser.add_argument("--parent", help="adapter file to start from")
    parser.add_argument("--checkpoint", help="file to keep the state in, and to go on from if it is there")
    return parser.parse_args(argv)


def _checkpoint(arguments: argparse.Namespace, settings: TrainConfig, base_hash: str) -> Checkpoint | None:
    if not arguments.checkpoint:
        return None
    checkpoint = Checkpoint(Path(arguments.checkpoint), settings.checkpoint_seconds)
    files = [arguments.examples, arguments.settings, *([arguments.parent] if arguments.parent else [])]
    checkpoint.end_with_one()
    checkpoint.bind(base_hash.encode(), *(Path(file).read_bytes() for file in files))
    return checkpoint


def _take_over(learner: Learner, parent: Path, base_hash: str) -> None:
    """Start from an earlier adapter; it was validated when it was promoted."""
    with safe_open(parent, framework="np") as file:
        meta = json.loads((file.metadata() or {})["shammah"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if meta["base_hash"] != base_hash:
        raise ValueError(f"{parent.name} was trained on another base model.")
    learner.start_from(tensors, meta["alpha"] / meta["rank"])


def _tell(event: dict[str, Any], metrics: TextIO) -> None:
    line = json.dumps(event)
    for stream in (sys.stdout, metrics):
        print(line, file=stream, flush=True)
