"""How fast the box serves: prefill and decode over HTTP, 1 and 4 clients, with and without an adapter.

    python benchmarks/serve.py [--rounds N] [--bundle DIR] [--json FILE]

Starts a daemon of its own in a temporary home (nothing of yours is touched) and streams from it:

* prefill: prompt tokens a second, from sending a long prompt to the first token of every client;
* decode: tokens a second of all clients together, while all of them are being answered.

The cases are interleaved, so that other load on the machine falls on all of them, and medians are
reported. The adapter has rank 16 on every linear layer, with random values too small to matter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import psutil

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.store import Store
from appliance.store.adapters import AdapterRow

RANK = 16
CLIENTS = (1, 4)
ADAPTER = "adapter_benchmark"
START_SECONDS = 120
# A plain continuation like this one does not end early, so every client decodes for the whole measurement.
STORY = "Once upon a time in a village by the sea there lived an old clockmaker. Every day he"
WORDS = (
    "the house has a garden with old trees and in spring people come from the town to look at them while "
    "children play near water under light wind"
)


@dataclass(frozen=True)
class Sample:
    """One measurement of one case."""

    adapter: bool
    clients: int
    prefill: float
    decode: float
    first_token_ms: float


@dataclass
class Stream:
    """What one client saw."""

    sent: float
    arrivals: list[float]
    prompt_tokens: int = 0
    completion_tokens: int = 0


def random_adapter(path: Path, bundle: Bundle) -> AdapterRow:
    """A rank-16 adapter on every linear layer, and its row for the store, accepted."""
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


@contextmanager
def running_daemon(bundle: Bundle) -> Iterator[tuple[str, str, int]]:
    """A daemon in a temporary home: its address, its token, its process id."""
    with tempfile.TemporaryDirectory(prefix="shammah-benchmark-") as root, socket.socket() as probe:
        home = Home(Path(root)).ensure()
        (home.models / bundle.name).symlink_to(bundle.path.absolute())
        home.config.write_text(f'[model]\nname = "{bundle.name}"\n[lora]\nenabled = false\n')
        store = Store.open(home)
        store.adapters.upsert(random_adapter(home.adapters / f"{ADAPTER}.safetensors", bundle))
        store.close()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with (home.root / "daemon.out").open("wb") as out:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "appliance.cli", "daemon", "--bind", f"127.0.0.1:{port}"],
                env={**os.environ, "SHAMMAH_HOME": root},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(daemon, url, home)
            yield url, json.loads(home.daemon.read_text())["token"], daemon.pid
        finally:
            daemon.terminate()
            daemon.wait(30)


def wait_ready(daemon: subprocess.Popen[bytes], url: str, home: Home) -> None:
    """Until the daemon would answer."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=2).status_code == 200 and home.daemon.exists():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    sys.exit(f"The daemon did not come up:\n{(home.root / 'daemon.out').read_text(errors='replace')[-3000:]}")


async def ask(client: httpx.AsyncClient, prompt: str, max_tokens: int) -> Stream:
    """Stream one answer and note when its pieces arrive."""
    body = {
        "model": "shammah",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    seen = Stream(time.perf_counter(), [])
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            sys.exit(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if '"choices":[]' not in line:
                seen.arrivals.append(time.perf_counter())
                continue
            usage = json.loads(line[6:])["usage"]
            seen.prompt_tokens, seen.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    return seen


def long_prompt(tokens: int) -> str:
    """A prompt of about that many tokens that no cache has seen."""
    generator = random.Random(secrets.token_bytes(8))
    return " ".join(generator.choices(WORDS.split(), k=tokens))


async def measure(client: httpx.AsyncClient, adapter: bool, clients: int, prompt: int, answer: int) -> Sample:
    """One case: prefill, then decode."""
    filled = await asyncio.gather(*(ask(client, long_prompt(prompt), 1) for _ in range(clients)))
    began, ended = min(s.sent for s in filled), max(s.arrivals[0] for s in filled)
    prefill = sum(s.prompt_tokens for s in filled) / (ended - began)
    streams = await asyncio.gather(*(ask(client, f"{STORY} ({n})", answer) for n in range(clients)))
    # While all of them decode: from the last one's first piece to the first one's last.
    begin, end = max(s.arrivals[0] for s in streams), min(s.arrivals[-1] for s in streams)
    tokens = 0.0
    for stream in streams:
        inside = sum(begin < arrival <= end for arrival in stream.arrivals)
        tokens += stream.completion_tokens * inside / len(stream.arrivals)
    first = statistics.median(s.arrivals[0] - s.sent for s in filled)
    return Sample(adapter, clients, prefill, tokens / (end - begin), first * 1000)


async def switch(client: httpx.AsyncClient, token: str, adapter: bool) -> None:
    """Put the adapter, or base, in service; one answer afterwards, so that nothing is cold."""
    response = await client.post(
        "/v1/adapters/promote",
        json={"name": ADAPTER if adapter else "base"},
        headers={"Authorization": f"Bearer {token}"},
    )
    if response.is_error:
        sys.exit(f"The switch failed: {response.text}")
    await ask(client, STORY, 4)


async def measure_all(url: str, token: str, rounds: int, prompt: int, answer: int) -> list[Sample]:
    """All cases, `rounds` times; a first round is thrown away."""
    samples: list[Sample] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        for turn in range(rounds + 1):
            for adapter in (False, True) if turn % 2 else (True, False):
                await switch(client, token, adapter)
                for clients in CLIENTS if turn % 2 else CLIENTS[::-1]:
                    sample = await measure(client, adapter, clients, prompt, answer)
                    if turn:
                        samples.append(sample)
            print(f"round {turn}/{rounds}", file=sys.stderr, flush=True)
    return samples


def summarise(samples: list[Sample]) -> list[dict[str, Any]]:
    """Medians by case, and decode and prefill relative to base with as many clients."""
    rows: list[dict[str, Any]] = []
    for clients in CLIENTS:
        for adapter in (False, True):
            mine = [s for s in samples if (s.adapter, s.clients) == (adapter, clients)]
            medians = {
                name: round(statistics.median(getattr(s, name) for s in mine), 1)
                for name in ("prefill", "decode", "first_token_ms")
            }
            rows.append({"clients": clients, "adapter": adapter, **medians})
            base = rows[-2] if adapter else rows[-1]
            rows[-1] |= {
                f"{name}_ratio": round(medians[name] / base[name], 3) for name in ("prefill", "decode")
            }
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """For people."""
    print(f"{'':28}{'prefill tok/s':>15}{'decode tok/s':>15}{'first token ms':>16}{'vs base':>18}")
    for row in rows:
        name = (
            f"{row['clients']} client{'s' * (row['clients'] > 1)}, {'adapter' if row['adapter'] else 'base'}"
        )
        ratio = f"{row['prefill_ratio']:.2f} / {row['decode_ratio']:.2f}" if row["adapter"] else ""
        print(f"{name:28}{row['prefill']:>15}{row['decode']:>15}{row['first_token_ms']:>16}{ratio:>18}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the default one is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256, help="words of the long prompt")
    parser.add_argument("--answer", type=int, default=96, help="tokens to decode")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.bundle:
        bundle = load_bundle(options.bundle)
    else:
        options.cache.mkdir(parents=True, exist_ok=True)
        bundle = import_model(DEFAULT, Home(options.cache.absolute()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon and its home go too
    load_before = os.getloadavg()[0]
    with running_daemon(bundle) as (url, token, pid):
        samples = asyncio.run(measure_all(url, token, options.rounds, options.prompt, options.answer))
        memory = psutil.Process(pid).memory_info().rss
    rows = summarise(samples)
    print_table(rows)
    load = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"medians of {options.rounds}; resident {memory / 1e6:.0f} MB; load {load}")
    if options.json:
        report = {
            "model": bundle.name,
            "base_hash": bundle.manifest.base_hash,
            "onnxruntime": onnxruntime.__version__,
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "resident_bytes": memory,
            "cases": rows,
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
