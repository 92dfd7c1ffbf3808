"""What trains: whether its programs and libraries are there, and of the tested releases."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterator, Sequence

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import Unavailable
from appliance.learning.backend import decided, trainer_program

PEFT = ("torch", "transformers", "peft")
ORT = ("onnxruntime-training-cpu", "numpy")
START_SECONDS = 60.0
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^;\s]+)")
_ASK = (
    "import importlib.metadata, json, sys\n"
    "import appliance.learning.train.ort_session\n"
    "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))\n"
)


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """The backend that a run would take now, and this program's own libraries."""
    yield from _own_libraries()
    if not box.config.lora.enabled:
        yield note("Learning by itself is switched off ([lora] enabled).")
    bundle = box.bundle
    if bundle is None:
        return
    train = decided(box.config.train, bundle)
    try:
        program = trainer_program(train)
    except Unavailable as problem:
        yield error(f"The box cannot learn. {problem.message}", "`make ort` sets up the smaller trainer.")
        return
    if train.backend == "peft":
        yield ok(f"Runs train with peft: {_told({name: _version(name) for name in PEFT})}.")
        return
    if box.quick:
        yield ok(f"Runs train with ort, by {program[0]}.")
        return
    yield from start(program[0])


def start(python: str) -> Iterator[Finding]:
    """Start the Python of the ort trainer and load what it computes with."""
    again = "Set it up anew: `rm -r .venv-ort`, `make ort`."
    try:
        said = subprocess.run(
            [python, "-c", _ASK, *ORT], capture_output=True, text=True, timeout=START_SECONDS, check=True
        ).stdout
        versions = json.loads(said.strip().splitlines()[-1])
    except subprocess.CalledProcessError as problem:
        last = (problem.stderr.strip().splitlines() or ["no message"])[-1]
        yield error(f"The trainer's environment, {python}, is broken: {last}", again)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as problem:
        yield error(f"The trainer's environment, {python}, does not start: {problem}", again)
    else:
        yield ok(f"Runs train with ort, which loads: {_told(versions)}.")


def _own_libraries() -> Iterator[Finding]:
    try:
        wanted = importlib.metadata.requires("shammah") or []
    except importlib.metadata.PackageNotFoundError:
        return
    other = different(wanted)
    if other:
        yield warning(
            f"Libraries are not of the release that this program was tested with: {', '.join(other[:4])}"
            f"{', …' if len(other) > 4 else ''}.",
            "`python -m pip install -r requirements/serve.txt` (or train.txt) in its environment.",
        )


def different(requirements: Sequence[str]) -> list[str]:
    """Of pinned requirements for serving, those that are installed in another release, or not."""
    found = []
    for requirement in requirements:
        pinned = _PINNED.match(requirement)
        if pinned is None or "extra ==" in requirement:
            continue
        name, version = pinned.groups()
        here = _version(name)
        if here != version:
            found.append(f"{name} {here or 'missing'} instead of {version}")
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _told(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
