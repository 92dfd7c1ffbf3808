"""compose.yaml, brought up by podman-compose: the box by itself, and behind a proxy with TLS."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from box.images import CHECKOUT, build_image
from box.podman import Container, Podman
from daemons import free_port

pytestmark = pytest.mark.box

PROXY = "localhost/caddy:test"
PROXY_ADDRESS = "172.30.58.250"


class Project:
    """One `podman-compose` project with ports and volumes of its own."""

    def __init__(self, podman: Podman, image: str) -> None:
        self.podman = podman
        self.name = f"shammahtest{os.getpid()}"
        self.ports = {
            name: free_port() for name in ("SHAMMAH_HTTP", "SHAMMAH_HTTPS", "PROXY_HTTP", "PROXY_HTTPS")
        }
        self._environment = {
            **os.environ,
            **podman.environment,
            **{name: f"127.0.0.1:{port}" for name, port in self.ports.items()},
            "SHAMMAH_IMAGE": image,
            "SHAMMAH_MEMORY": "6g",
            "SHAMMAH_CPUS": "2",
            "CADDY_IMAGE": PROXY,
            "COMPOSE_PROJECT_NAME": self.name,
        }

    def run(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        command = [
            str(Path(sys.executable).with_name("podman-compose")),
            "--project-name",
            self.name,
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=self._environment,
            input=input,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def container(self, service: str) -> Container:
        return Container(self.podman, f"{self.name}_{service}_1")


@pytest.fixture(scope="module")
def proxy(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Caddy as Debian has it, in place of the image from a registry."""
    place = tmp_path_factory.mktemp("proxy")
    (place / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n"
        "RUN apt-get update && apt-get install --yes --no-install-recommends caddy wget libcap2-bin \\\n"
        "    && setcap -r /usr/bin/caddy 2>/dev/null; rm -rf /var/lib/apt/lists/*\n"
        "ENV XDG_DATA_HOME=/data XDG_CONFIG_HOME=/config\n"
        'CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]\n'
    )
    podman.build(place, PROXY, "--layers")
    return PROXY


@pytest.fixture
def project(podman: Podman) -> Iterator[Project]:
    project = Project(podman, build_image(podman))
    yield project
    project.run("--profile", "tls", "down", "--volumes", check=False)


@pytest.fixture
def checking(project: Project) -> Iterator[None]:
    """Fire the health checks, as systemd does for podman and its daemon for Docker."""
    over = threading.Event()

    def fire() -> None:
        while not over.wait(1):
            for service in ("shammah", "proxy"):
                project.container(service).healthy()

    thread = threading.Thread(target=fire)
    thread.start()
    yield
    over.set()
    thread.join()


def wait_until_healthy(container: Container) -> None:
    container.wait_for("health", lambda: container.healthy() and container.health == "healthy")


def test_up_serves_a_device_within_its_limits(project: Project) -> None:
    project.run("up", "--detach", "--no-build")
    box = project.container("shammah")
    wait_until_healthy(box)
    project.run("exec", "-T", "shammah", "shammah", "console", "password", input="correct horse battery\n")
    key = re.search(r"\bsk-\S+", project.run("exec", "-T", "shammah", "shammah", "keys", "create", "tablet"))
    assert key
    url = f"http://127.0.0.1:{project.ports['SHAMMAH_HTTP']}"
    headers = {"Authorization": f"Bearer {key[0]}"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    host = box.inspect()["HostConfig"]
    assert isinstance(host, dict)
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] == 6 * 2**30
    assert host["PidsLimit"] == 512
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert "no-new-privileges" in str(host["SecurityOpt"])
    assert re.search(r"^CapBnd:\s+0+$", box.exec("cat", "/proc/1/status").stdout, re.M)
    project.run("down")
    project.run("up", "--detach", "--no-build")
    wait_until_healthy(box)
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


@pytest.mark.usefixtures("proxy", "checking")
def test_the_proxy_gives_it_tls(project: Project, tmp_path: Path) -> None:
    project.run("--profile", "tls", "up", "--detach", "--no-build")
    box, proxy = project.container("shammah"), project.container("proxy")
    wait_until_healthy(box)
    wait_until_healthy(proxy)
    address = proxy.inspect()["NetworkSettings"]["Networks"]  # type: ignore[index]
    assert PROXY_ADDRESS in str(address)
    root = "/data/caddy/pki/authorities/local/root.crt"
    proxy.wait_for("certificate", lambda: proxy.exec("test", "-s", root, check=False).returncode == 0)
    (tmp_path / "root.crt").write_text(proxy.exec("cat", root).stdout)
    url = f"https://localhost:{project.ports['PROXY_HTTPS']}"
    trust = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))
    project.run("exec", "-T", "shammah", "shammah", "console", "password", input="correct horse battery\n")
    key = re.search(r"\bsk-\S+", project.run("exec", "-T", "shammah", "shammah", "keys", "create", "tablet"))
    assert key
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = httpx.get(
                f"{url}/v1/models", headers={"Authorization": f"Bearer {key[0]}"}, verify=trust
            )
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline, proxy.logs
            time.sleep(1)
    assert answer.status_code == 200
    # What comes through the proxy does not pass for the box's own machine.
    assert httpx.get(f"{url}/v1/models", verify=trust).status_code == 401
