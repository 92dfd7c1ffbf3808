"""The servers that `serve.py` runs: how each is started, asked, watched and ended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from load import Endpoint, LoadError
from peers import ROOT, Peers
from weights import checkpoint_bytes, gguf_bytes, onnx_bytes

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.home import Home
from appliance.model.bundle import MODEL, Bundle
from appliance.model.source import DEFAULT, resolve
from appliance.store import Store
from appliance.store.adapters import AdapterRow

OURS, LLAMA, GENAI, TRANSFORMERS = "shammah", "llama.cpp", "genai", "transformers"
SLOTS = 8
SLOT_TOKENS = 4096  # context of a llama.cpp slot; the longest row needs about 3,200
RANK = 16
ADAPTER = "adapter_benchmark"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Contestant:
    """A server that can be started.

    Attributes:
        name: what the table calls it.
        about: which weights, served by what.
        weights: bytes of weights that one decoded token reads.
        parallel: whether it answers several requests at the same time.
        command: the process to start, given its port and a directory of its own.
        environment: added to ours.
        extra: fields it needs in every request.
    """

    name: str
    about: str
    weights: int
    parallel: bool
    command: Callable[[int, Path], list[str]]
    environment: Callable[[Path], dict[str, str]] = lambda place: {}
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Running:
    """A started contestant.

    Attributes:
        cold: seconds from the start of the process to its first token.
    """

    contestant: Contestant
    process: psutil.Process
    endpoint: Endpoint
    place: Path
    cold: float

    def peak_bytes(self) -> int:
        """The most memory each of its processes ever held, summed."""
        total = 0
        for process in tree(self.process):
            with suppress(OSError):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self) -> float:
        """Processor time it has taken so far."""
        total = 0.0
        for process in tree(self.process):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    async def settle(self) -> None:
        """Wait until it has dropped what its clients gave up."""
        await asyncio.sleep(0.5)
        await self.endpoint.complete("Once upon a time", 1)

    async def use_adapter(self, wanted: bool) -> None:
        """Ours only: put the adapter, or base, in service."""
        await self.call("POST", "adapters/promote", {"name": ADAPTER if wanted else "base"})
        await self.settle()

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ours only: ask something else of the API, as its owner.

        Raises:
            LoadError: it was refused.
        """
        token = json.loads(Home(self.place).daemon.read_text(encoding="utf-8"))["token"]
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            response = await client.request(
                method,
                f"http://127.0.0.1:{self.endpoint.port}/v1/{path}",
                json=body,
                headers={"Authorization": f"Bearer {token}"},
            )
        if response.is_error:
            raise LoadError(f"{method} {path}: {response.text}")
        found: dict[str, Any] = response.json()
        return found


def ours(bundle: Bundle, threads: int) -> Contestant:
    """The daemon of this checkout, with an adapter at hand."""

    def command(port: int, place: Path) -> list[str]:
        home = Home(place).ensure()
        (home.models / bundle.name).symlink_to(bundle.path.absolute())
        home.config.write_text(
            f'[model]\nname = "{bundle.name}"\nthreads = {threads}\nslots = {SLOTS}\n'
            "[lora]\nenabled = false\n"
        )
        store = Store.open(home)
        store.adapters.upsert(_random_adapter(home.adapters / f"{ADAPTER}.safetensors", bundle))
        store.close()
        return [sys.executable, "-m", "appliance.cli", "daemon", "--bind", f"127.0.0.1:{port}"]

    return Contestant(
        name=OURS,
        about=f"this checkout's daemon, {bundle.manifest.quantization}, {SLOTS} slots",
        weights=onnx_bytes(bundle.path / MODEL),
        parallel=True,
        command=command,
        environment=lambda place: {"SHAMMAH_HOME": str(place)},
    )


def llama(peers: Peers, threads: int) -> Contestant:
    """llama.cpp's own server on the same GGUF file."""
    gguf = resolve(DEFAULT).path
    assert gguf is not None

    def command(port: int, place: Path) -> list[str]:
        return [
            *(str(peers.llama_server), "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port)),
            *("--threads", str(threads), "--threads-batch", str(threads)),
            *("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * SLOT_TOKENS)),
            # Its copies of ended prompts can grow to 8 GB; a slot still keeps its last prompt without.
            *("--cache-ram", "0", "--no-ui"),
        ]

    return Contestant(
        name=LLAMA,
        about=f"llama-server, {gguf.name}, {SLOTS} slots of {SLOT_TOKENS} tokens",
        weights=gguf_bytes(gguf),
        parallel=True,
        command=command,
        extra={"ignore_eos": True},
    )


def genai(peers: Peers, threads: int) -> Contestant:
    """onnxruntime-genai behind a small wrapper."""
    return Contestant(
        name=GENAI,
        about="onnxruntime-genai, its builder's int4 (LOWER QUALITY), one request at a time",
        weights=onnx_bytes(peers.genai / "model.onnx"),
        parallel=False,
        command=_wrapped(peers, "genai", peers.genai, threads),
    )


def transformers(peers: Peers, threads: int) -> Contestant:
    """Transformers on torch behind a small wrapper."""
    return Contestant(
        name=TRANSFORMERS,
        about="transformers and torch, fp32, one request at a time",
        weights=checkpoint_bytes(peers.checkpoint),
        parallel=False,
        command=_wrapped(peers, "transformers", peers.checkpoint, threads),
    )


def contestants(bundle: Bundle, peers: Peers, threads: int) -> dict[str, Callable[[], Contestant] | None]:
    """All of them by name; None for those that are not set up."""
    venv = peers.python.exists()
    return {
        OURS: lambda: ours(bundle, threads),
        LLAMA: (lambda: llama(peers, threads)) if peers.llama_server.exists() else None,
        GENAI: (lambda: genai(peers, threads)) if venv and peers.genai.exists() else None,
        TRANSFORMERS: (lambda: transformers(peers, threads)) if venv and peers.checkpoint.exists() else None,
    }


@asynccontextmanager
async def running(contestant: Contestant, place: Path) -> AsyncIterator[Running]:
    """The contestant from its first token on; its processes are gone afterwards, whatever happens."""
    port = free_port()
    place.mkdir(parents=True)
    command = contestant.command(port, place)
    log = place / "benchmark.out"
    with log.open("wb") as out:
        started = time.perf_counter()
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **contestant.environment(place)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        endpoint = Endpoint(port, "shammah", contestant.extra)
        first = await _first_token(contestant, process, endpoint, log)
        yield Running(contestant, process, endpoint, place, first - started)
    finally:
        end(process)


def end(process: psutil.Process) -> None:
    """End a process and what it started: asked first, killed when it does not go or time is short."""
    processes = tree(process)
    try:
        with suppress(psutil.Error):
            process.terminate()
        psutil.wait_procs(processes, STOP_SECONDS)
    finally:
        for other in processes:
            with suppress(psutil.Error):
                other.kill()
        psutil.wait_procs(processes, STOP_SECONDS)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _first_token(
    contestant: Contestant, process: psutil.Process, endpoint: Endpoint, log: Path
) -> float:
    """Ask until it answers; when that was."""
    deadline = time.perf_counter() + START_SECONDS
    while (
        time.perf_counter() < deadline and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ):
        with suppress(OSError, LoadError):
            answer = await endpoint.complete("Once upon a time there was a", 1)
            return answer.sent + answer.first
        await asyncio.sleep(0.02)
    raise LoadError(f"{contestant.name} did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def _wrapped(peers: Peers, library: str, model: Path, threads: int) -> Callable[[int, Path], list[str]]:
    wrapper = Path(__file__).with_name("wrapper.py")
    head = [str(peers.python), str(wrapper), library, "--model", str(model), "--threads", str(threads)]
    return lambda port, place: [*head, "--port", str(port)]


def _random_adapter(path: Path, bundle: Bundle) -> AdapterRow:
    """Rank 16 on every linear layer, random values too small to matter, accepted as if by the gate."""
    generator = np.random.default_rng(0)
    tensors = {}
    for port in bundle.manifest.ports:
        for part in port.parts:
            for side, shape in (("A", (RANK, port.inputs)), ("B", (part.out, RANK))):
                tensors[tensor_key(part.module, side)] = generator.normal(0, 1e-4, shape).astype(np.float32)
    base = bundle.manifest.base_hash
    write_adapter(path, tensors, AdapterMeta(base_hash=base, rank=RANK, alpha=2.0 * RANK))
    read = read_adapter(path, bundle.manifest)
    return AdapterRow(
        read.name, time.time(), read.sha256, read.size, base, RANK, None, None, "accepted", {"passed": True}
    )
