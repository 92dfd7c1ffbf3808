"""The image, built from this checkout and run for real: confined, without a network, stopped, hung."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from box.images import CHECKOUT, build_image
from box.podman import BASE, Container, Podman
from daemons import free_port

pytestmark = pytest.mark.box

CONTEXT = ("appliance", "web", "requirements", "LICENSE", "Dockerfile", ".dockerignore")
HOME = "/var/lib/shammah"
PYTHON = "/opt/shammah/.venv/bin/python"
HARDENED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", "6g", "--pids-limit", "512"),
)
DRAIN_SECONDS = 10.0
PASSWORD = "correct horse battery staple"
READY = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ready', timeout=5)"
ASK = """
import json, sys, urllib.request as u
messages = [{"role": "user", "content": "Hello"}]
body = {"model": "shammah", "messages": messages, "max_tokens": 8, "temperature": 0}
headers = {"Content-Type": "application/json"}
request = u.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(), headers)
print(json.load(u.urlopen(request, timeout=120))["choices"][0]["message"]["content"])
"""
ZOMBIES = """
from pathlib import Path
stats = [file.read_text() for file in Path("/proc").glob("[0-9]*/stat")]
print([stat for stat in stats if stat.rpartition(")")[2].split()[0] == "Z"])
"""

StartBox = Callable[..., "Box"]


class Box:
    """A container of the image on a volume."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        self.url = f"http://127.0.0.1:{port}"

    def wait_ready(self) -> Box:
        def ready() -> bool:
            return self.container.exec(PYTHON, "-c", READY, check=False).returncode == 0

        self.container.wait_for("readiness", ready)
        return self

    def shammah(self, *command: str, input: str | None = None, check: bool = True) -> str:
        done = self.container.exec("shammah", *command, input=input, check=check, timeout=600)
        return done.stdout + done.stderr

    def set_up(self) -> str:
        """As an operator does: a password, and a key, which is returned."""
        self.shammah("console", "password", input=f"{PASSWORD}\n")
        found = re.search(r"\bsk-\S+", self.shammah("keys", "create", "kitchen tablet"))
        assert found
        return found[0]

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def ask(self, key: str) -> str:
        answer = self.client(key).chat.completions.create(
            model="shammah", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0
        )
        return str(answer.choices[0].message.content)

    def teach(self, key: str, lessons: int) -> None:
        for number in range(lessons):
            lesson = {
                "query": f"What is the code of cupboard {number}?",
                "response": "I do not know.",
                "weight": "high",
                "correction": f"The code of cupboard {number} is {4000 + number}.",
            }
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(f"{self.url}/v1/feedback", json=lesson, headers=headers, timeout=60)
            assert answer.status_code == 200, answer.text

    def write(self, name: str, text: str) -> None:
        """A file in the home."""
        self.container.exec("tee", f"{HOME}/{name}", input=text)


@pytest.fixture(scope="module")
def image(podman: Podman) -> str:
    return build_image(podman)


@pytest.fixture(scope="module")
def serve_image(podman: Podman) -> str:
    return build_image(podman, "serve")


@pytest.fixture
def volume(podman: Podman) -> Iterator[str]:
    name = f"shammah-test-{os.getpid()}-{time.monotonic_ns()}"
    podman.run("volume", "create", name)
    yield name
    podman.run("volume", "rm", "--force", name, check=False)


@pytest.fixture
def start_box(volume: str, containers: Callable[..., Container]) -> StartBox:
    """`start_box(image, *options, wait=True)` -> a container of it on this test's volume."""

    def start(image: str, *options: str, wait: bool = True) -> Box:
        port = free_port()
        where = ("--volume", f"{volume}:{HOME}")
        if "none" not in options:
            where += ("--publish", f"127.0.0.1:{port}:8080")
        box = Box(containers(image, *HARDENED, *where, *options), port)
        return box.wait_ready() if wait else box

    return start


def test_the_image_says_what_it_is(podman: Podman, image: str) -> None:
    config = podman.inspect(image)["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {HOME: {}}
    assert config["Labels"]["org.opencontainers.image.title"] == "Shammah"
    checked = podman.inspect(image)["Healthcheck"]
    assert isinstance(checked, dict)
    assert checked["Test"] == ["CMD", PYTHON, "-m", "appliance.probe"]


def test_what_the_build_was_lent_does_not_stay(podman: Podman, image: str) -> None:
    # Empty places where something was mounted are all there is.
    script = "cat /etc/pip.conf 2>/dev/null; find / -xdev -name 'pip-*.dist-info'; find /opt/[!s]* -type f"
    shell = ("--rm", "--entrypoint", "/bin/sh", "--user", "0")
    assert podman.run("run", *shell, image, "-c", script, check=False).stdout == ""
    base = podman.run("run", *shell, image, "-c", "sha256sum /etc/ssl/certs/ca-certificates.crt").stdout
    assert base == podman.run("run", "--rm", BASE, "sha256sum", "/etc/ssl/certs/ca-certificates.crt").stdout


def test_a_change_of_the_code_ships_little(podman: Podman, serve_image: str, tmp_path: Path) -> None:
    for name in CONTEXT:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    with (tmp_path / "appliance/app.py").open("a") as file:
        file.write("\n# Another release.\n")
    other = build_image(podman, "serve", tmp_path, "next")
    try:
        before, after = (podman.inspect(name)["RootFS"]["Layers"] for name in (serve_image, other))  # type: ignore[index]
        assert len(before) == len(after)
        assert [a == b for a, b in zip(before, after, strict=True)] == [True] * (len(before) - 1) + [False]
    finally:
        podman.run("rmi", other)


def test_the_first_start_needs_no_network_and_few_rights(image: str, start_box: StartBox) -> None:
    box = start_box(image, "--network", "none").container
    assert box.healthy() and box.health == "healthy"
    assert box.exec(PYTHON, "-c", ASK).stdout.strip()
    assert box.exec("id", "-u").stdout.strip() == "10001"
    status = box.exec("cat", "/proc/1/status").stdout
    assert re.search(r"^CapEff:\s+0+$", status, re.M) and re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert "Read-only" in box.exec("touch", "/opt/shammah/x", check=False).stderr
    # The model is the image's, and whole.
    seed, home = "/opt/shammah/seed", f"{HOME}/models"
    name = "smollm2-135m-instruct"
    for file in ("model.onnx", "manifest.json"):
        sums = box.exec("sha256sum", f"{seed}/{name}/{file}", f"{home}/{name}/{file}").stdout.split()
        assert sums[0] == sums[2]
    assert "Already imported" in Box(box, 0).shammah("model", "import")
    assert box.stop()[0] == 0


def test_devices_are_served_through_the_port_and_data_outlives_the_container(
    image: str, start_box: StartBox
) -> None:
    box = start_box(image)
    refused = httpx.post(f"{box.url}/v1/chat/completions", json={"model": "shammah", "messages": []})
    assert refused.status_code == 403 and "not set up" in refused.text
    key = box.set_up()
    assert httpx.get(f"{box.url}/v1/models").status_code == 401
    first = box.ask(key)
    assert first
    second = start_box(image, wait=False).container
    assert second.wait() == 1
    assert f"A daemon is already running on {HOME}." in second.logs
    box.container.stop()
    box.container.remove()
    again = start_box(image)
    assert again.ask(key) == first
    waiting = json.loads(again.shammah("queue", "show", "--json"))
    assert "Hello" in json.dumps(waiting)


@pytest.mark.parametrize(("tokens", "whole"), [(24, True), (4000, False)])
def test_sigterm_lets_answers_end(image: str, start_box: StartBox, tokens: int, whole: bool) -> None:
    box = start_box(image)
    key = box.set_up()
    stream = box.client(key).chat.completions.create(
        model="shammah",
        messages=[{"role": "user", "content": "Tell me all you know about the sea."}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
    )
    next(iter(stream))
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(box.container.stop)
        reason = None
        try:
            for chunk in stream:
                reason = (chunk.choices[0].finish_reason if chunk.choices else None) or reason
        except (openai.APIError, httpx.HTTPError) as error:
            assert not whole, error
        code, took = stopping.result()
    print(f"SIGTERM in an answer of up to {tokens} tokens: exit code {code} after {took:.1f} s ({reason})")
    assert code == 0
    assert took < DRAIN_SECONDS
    assert not whole or reason in ("stop", "length")


@pytest.mark.parametrize("hang", ["engine.step", "loop.turn"])
def test_a_hang_makes_it_unhealthy(podman: Podman, image: str, start_box: StartBox, hang: str) -> None:
    check = podman.inspect(image)["Healthcheck"]
    assert isinstance(check, dict)
    # The image's own check, but for the minutes in which podman counts no failures.
    own = ("--health-cmd", " ".join(check["Test"][1:]), "--health-retries", str(check["Retries"]))
    own += ("--health-timeout", f"{check['Timeout'] // 10**9}s", "--health-start-period", "0s")
    box = start_box(image, *own, "--env", f"SHAMMAH_FAILPOINTS={HOME}/failpoints")
    box.write("config.toml", "[server]\nstalled_seconds = 2\n")
    box.container.podman.run("kill", "--signal", "HUP", box.container.name)
    assert box.container.healthy() and box.container.health == "healthy"
    box.write("failpoints", f"{hang}=hang")
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(box.container.exec, PYTHON, "-c", ASK, check=False)
        deadline = time.monotonic() + 120
        while box.container.health != "unhealthy":
            assert time.monotonic() < deadline, box.container.logs
            time.sleep(1)
            box.container.healthy()
        box.write("failpoints", "")
        asking.result()
    assert box.container.healthy() and box.container.health == "healthy"


@pytest.mark.parametrize("mistake", ["another user's", "read-only"])
def test_a_wrong_volume_is_told_in_words(
    image: str, containers: Callable[..., Container], volume: str, tmp_path: Path, mistake: str
) -> None:
    if mistake == "read-only":
        mount, told = f"{volume}:{HOME}:ro", f"{HOME} is on a read-only file system"
    else:
        tmp_path.chmod(0o755)
        mount, told = f"{tmp_path}:{HOME}", "chown -R 10001:10001"
    box = containers(image, *HARDENED, "--volume", mount)
    assert box.wait() == 1
    print(box.logs)
    assert told in box.logs
    assert "Traceback" not in box.logs


def test_orphans_are_buried(image: str, start_box: StartBox) -> None:
    """Without `--init`: what a killed command leaves behind becomes the first process's to wait for."""
    box = start_box(image).container
    box.exec("sh", "-c", "(sleep 1 & sleep 1 &)")
    time.sleep(3)
    assert box.exec(PYTHON, "-c", ZOMBIES).stdout.strip() == "[]"


def test_the_image_without_training_collects_and_says_what_it_cannot(
    serve_image: str, start_box: StartBox
) -> None:
    box = start_box(serve_image)
    assert box.container.exec(PYTHON, "-c", "import torch", check=False).returncode == 1
    key = box.set_up()
    assert box.ask(key)
    box.teach(key, 1)
    told = box.shammah("train", "--now", check=False)
    assert "nothing to train with" in told and "image with training" in told
    kept = json.loads(box.shammah("queue", "show", "--json"))["examples"]
    assert "What is the code of cupboard 0?" in [example["query"] for example in kept]


def test_it_learns_in_the_container(image: str, start_box: StartBox) -> None:
    box = start_box(image)
    key = box.set_up()
    box.teach(key, 6)
    print(box.shammah("train", "--now", check=False))
    run = json.loads(box.shammah("status", "--json"))["training"]["last_run"]
    # Which of the two is the gate's affair, and of other tests; here trainer and gate have worked.
    assert run["state"] in ("promoted", "rejected") and run["report"]["checks"], run
    assert box.container.exec(PYTHON, "-c", ZOMBIES).stdout.strip() == "[]"
    assert box.ask(key)
