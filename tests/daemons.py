"""Real daemons for tests: a process of the `shammah` command on a loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from appliance.adapters.file import AdapterMeta, read_adapter, write_adapter
from appliance.files import write_atomic
from appliance.home import Home
from appliance.learning.judge import CACHE
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow

StartDaemon = Callable[..., "Daemon"]
START_SECONDS = 90.0


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_bundle(home: Home, bundle: Bundle) -> None:
    """Put the bundle into a home by hard links where possible: 180 MB a test add up."""
    home.ensure()
    target = home.models / bundle.path.name
    if not target.exists():
        shutil.copytree(bundle.path, target, copy_function=_link)
    lend_measures(home.runs, bundle)


def lend_measures(place: Path, bundle: Bundle) -> None:
    """What the gate has measured of base, and of adapters that come again, is the same in every test."""
    kept, mine = _kept_measures(bundle), place / CACHE
    if kept.exists() and not mine.exists():
        shutil.copy2(kept, mine)


def keep_measures(place: Path, bundle: Bundle) -> None:
    """For the tests to come."""
    if (place / CACHE).exists():
        write_atomic(_kept_measures(bundle), (place / CACHE).read_bytes())


def _kept_measures(bundle: Bundle) -> Path:
    return bundle.path.parents[1] / CACHE


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def accept_adapter(home: Home, bundle: Bundle, name: str, seed: int, only: str = "") -> None:
    """Store an adapter as accepted by the gate: random weights, strong enough to change answers.

    One with `only` a kind of layer is built in a fraction of the time.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for port in bundle.manifest.ports:
        for part in port.parts:
            if not part.module.endswith(only):
                continue
            prefix = f"base_model.model.{part.module}"
            for side, shape in (("A", (8, port.inputs)), ("B", (part.out, 8))):
                weights = (random.standard_normal(shape) * 0.04).astype(np.float32)
                tensors[f"{prefix}.lora_{side}.weight"] = weights
    path = home.adapters / f"{name}.safetensors"
    write_adapter(path, tensors, AdapterMeta(bundle.manifest.base_hash, 8, 8.0))
    adapter = read_adapter(path, bundle.manifest)
    store = Store.open(home)
    store.adapters.upsert(
        AdapterRow(
            name=name,
            created=time.time(),
            sha256=adapter.sha256,
            size=adapter.size,
            base_hash=bundle.manifest.base_hash,
            rank=8,
            run_id=None,
            parent=None,
            state="accepted",
            report=None,
        )
    )
    store.close()


@dataclass
class Daemon:
    """A daemon process and how to talk to it."""

    home: Home
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    """What it prints, when that must not lie on the disk of its home."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def _output(self) -> Path:
        return self.output or self.home.root / "daemon.out"

    def start(self, *arguments: str, wait: bool = True) -> Daemon:
        command = [sys.executable, "-m", "appliance.cli", "daemon", "--bind", f"127.0.0.1:{self.port}"]
        with self._output.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SHAMMAH_HOME": str(self.home.root), **self.environment},
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"the daemon did not come up:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as an operator would; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def client(self, **options: object) -> openai.OpenAI:
        """OpenAI's own client on this box."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)  # type: ignore[arg-type]

    def post(self, path: str, json: object | None = None, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, json=json, timeout=120, **options)  # type: ignore[arg-type]

    def ask(self, question: str, **options: object) -> str:
        """One greedy answer."""
        body = {
            "model": "shammah",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 24,
            **options,
        }
        response = self.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])


@pytest.fixture
def start_daemon(bundle: Bundle, tmp_path: Path) -> Iterator[StartDaemon]:
    """`start_daemon(config_text, home=…)` -> a running daemon, ended with the test."""
    started: list[Daemon] = []

    def start(config: str = "", home: Home | None = None, wait: bool = True) -> Daemon:
        home = home or Home(tmp_path / f"home{len(started)}").ensure()
        install_bundle(home, bundle)
        if config:
            home.config.write_text(config)
        daemon = Daemon(home)
        started.append(daemon)
        return daemon.start(wait=wait)

    yield start
    for daemon in started:
        daemon.kill()
        keep_measures(daemon.home.runs, bundle)


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module; it collects but does not train."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n[server]\nlog_level = 'DEBUG'\n")
    running = Daemon(home).start()
    yield running
    running.kill()
