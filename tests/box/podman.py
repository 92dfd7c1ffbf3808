"""Real containers for tests, on a machine without a registry or Docker: podman with storage of its own.

Whatever a build needs to reach packages (a Debian mirror, settings of pip, certificates) is read from this
machine, lent to the RUN steps, and not left in the image. Run as a program it prints the environment by
which `podman` in a shell sees the same images: `eval "$(python tests/box/podman.py)"`.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CODENAME = "bookworm"
"""The release whose `python3` is 3.11."""
BASE = f"localhost/debian:{CODENAME}-slim"
_BASE_PACKAGES = "ca-certificates,python3,python3-venv"
_NOT_IN_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "var/lib/apt/lists")
_PACKAGES = "podman buildah runc netavark aardvark-dns iptables uidmap catatonit debootstrap"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
BUILD_SECONDS = 1800.0


class Missing(Exception):
    """This machine cannot run containers, and what would help."""


@dataclass(frozen=True)
class Podman:
    """The `podman` command, with configuration and storage under one directory."""

    place: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CONTAINERS_CONF": str(self.place / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.place / "storage.conf"),
        }

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout: float = 120,
        input: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`podman ARGUMENTS`; a failure shows what it printed, unless it is for the caller to `check`."""
        done = subprocess.run(
            ["podman", *map(str, arguments)],
            env={**os.environ, **self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            input=input,
        )
        if check and done.returncode:
            shown = " ".join(map(str, arguments))
            pytest.fail(
                f"podman {shown}\nended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
        return done

    def build(self, context: Path, tag: str, *options: str, dockerfile: Path | None = None) -> str:
        """Build an image from a directory on top of `BASE`; the image's id.

        Args:
            context: the directory with the Dockerfile.
            tag: the image's name.
            options: more of them, such as `--target`, `--build-arg`.
            dockerfile: when it is not the context's own.
        """
        command: list[str | Path] = ["build", "--network", "host", "--format", "docker", "--tag", tag]
        command += ["--build-arg", f"BASE_IMAGE={BASE}", *lent(self.place), *options]
        if dockerfile:
            command += ["--file", dockerfile]
        self.run(*command, context, timeout=BUILD_SECONDS)
        return self.inspect(tag)["Id"]  # type: ignore[no-any-return]

    def start(self, image: str, name: str, *options: str, command: tuple[str, ...] = ()) -> Container:
        """`podman run --detach`; whoever starts one removes it, see the fixture `containers`."""
        self.run("run", "--detach", "--name", name, *options, image, *command)
        return Container(self, name)

    def inspect(self, name: str) -> dict[str, object]:
        """What podman knows about an image or a container."""
        return json.loads(self.run("inspect", name).stdout)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Container:
    """One that was started, running or not."""

    podman: Podman
    name: str

    def exec(
        self, *command: str, check: bool = True, timeout: float = 120, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        options = ["--interactive"] if input is not None else []
        return self.podman.run(
            "exec", *options, self.name, *command, check=check, timeout=timeout, input=input
        )

    def inspect(self) -> dict[str, object]:
        return self.podman.inspect(self.name)

    @property
    def running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])  # type: ignore[index]

    @property
    def logs(self) -> str:
        done = self.podman.run("logs", self.name)
        return done.stdout + done.stderr

    def healthy(self) -> bool:
        """Run the image's own HEALTHCHECK now. Where there is no systemd to fire it, nothing else does."""
        return self.podman.run("healthcheck", "run", self.name, check=False).returncode == 0

    @property
    def health(self) -> str:
        """`starting`, `healthy` or `unhealthy`, as the checks so far have left it."""
        state = self.inspect()["State"]
        return str((state.get("Health") or state.get("Healthcheck"))["Status"])  # type: ignore[attr-defined]

    def wait_for(self, what: str, ready: Callable[[], bool], seconds: float = 120) -> None:
        """Until `ready()`, with the log when it does not come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready():
                return
            if not self.running:
                break
            time.sleep(0.3)
        pytest.fail(f"container {self.name}: no {what}\n{self.logs[-6000:]}")

    def wait(self, seconds: float = 60) -> int:
        """Until it ends by itself; its exit code."""
        return int(self.podman.run("wait", self.name, timeout=seconds).stdout)

    def stop(self, grace: int = 30) -> tuple[int, float]:
        """The image's STOPSIGNAL, and SIGKILL after `grace` seconds; exit code and seconds it took."""
        start = time.monotonic()
        self.podman.run("stop", "--time", str(grace), self.name, timeout=grace + 60)
        took = time.monotonic() - start
        return int(self.inspect()["State"]["ExitCode"]), took  # type: ignore[index]

    def remove(self) -> None:
        self.podman.run("rm", "--force", "--time", "0", self.name, check=False)


def set_up(place: Path) -> Podman:
    """Configuration, storage and the base image, made once and kept in `place`.

    Raises:
        Missing: a program or a right is missing; the message says how to get it.
    """
    if os.geteuid() != 0:
        raise Missing("Tests with containers need root: run `sudo make box`.")
    for program in ("podman", "iptables", "debootstrap"):
        if not shutil.which(program):
            raise Missing(f"`{program}` is not installed. Run: apt-get install {_PACKAGES}")
    place.mkdir(parents=True, exist_ok=True)
    podman = Podman(place)
    with _alone(place):
        (place / "containers.conf").write_text(_containers_conf())
        (place / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/storage"\nrunroot = "{place}/run"\n'
        )
        if podman.run("image", "exists", BASE, check=False).returncode:
            _make_base(podman)
    return podman


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Two test runs that start at the same time make the base image once."""
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _containers_conf() -> str:
    """Podman's defaults, but for what they ask in vain of a machine with old cgroups or low limits."""
    limits = []
    for name, limit, soft in (
        ("nofile", resource.RLIMIT_NOFILE, 1024),
        ("nproc", resource.RLIMIT_NPROC, 30000),
    ):
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY:
            # Between podman and the container somebody lowers nproc, so it cannot be asked for in full.
            limits.append(f'"{name}={min(soft, hard)}:{hard if name == "nofile" else min(soft, hard)}"')
    engine = ['events_logger = "file"']
    if not Path("/run/systemd/system").exists():
        engine.append('cgroup_manager = "cgroupfs"')
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        if not shutil.which("runc"):
            raise Missing("This machine's cgroups need runc. Run: apt-get install runc")
        engine.append('runtime = "runc"')
    return "\n".join(["[containers]", f"default_ulimits = [{', '.join(limits)}]", "[engine]", *engine, ""])


def _make_base(podman: Podman) -> None:
    """A slim Debian with Python, from this machine's own mirror: no registry is needed."""
    with tempfile.TemporaryDirectory(dir=podman.place) as scratch:
        root = Path(scratch) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", CODENAME, str(root)]
        done = subprocess.run([*command, debian_mirror()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(
                f"debootstrap could not make the base image:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
            )
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        for directory in _NOT_IN_SLIM:
            shutil.rmtree(root / directory, ignore_errors=True)
            (root / directory).mkdir()
        tar = Path(scratch) / "base.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(tar), "."], check=True)
        podman.run("import", "--change", 'CMD ["/bin/bash"]', tar, BASE, timeout=600)


def debian_mirror() -> str:
    """Where this machine's apt gets Debian from, or Debian's own address."""
    wanted = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"]
    if shutil.which("apt-get"):
        for line in subprocess.run(wanted, capture_output=True, text=True, check=False).stdout.splitlines():
            address, _, label = line.partition(" ")
            if label == "Debian":
                return address
    return "http://deb.debian.org/debian"


def lent(place: Path) -> list[str]:
    """Mounts for the RUN steps: certificates, settings of pip merged into one file, and what they name."""
    certificates = os.environ.get("SSL_CERT_FILE") or _CERTIFICATES
    pip, named = _pip_settings()
    if "cert" in pip:
        certificates = pip.pop("cert")
    merged = place / "pip.conf"
    merged.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(pip.items())))
    mounts = {"/etc/pip.conf": str(merged)} | {path: path for path in named}
    if Path(certificates).is_file():
        mounts[_CERTIFICATES] = certificates
        # pip has certificates of its own, and takes the machine's only when told.
        merged.write_text(merged.read_text() + f"cert = {_CERTIFICATES}\n")
    return [f"--volume={source}:{target}:ro" for target, source in sorted(mounts.items())]


def _pip_settings() -> tuple[dict[str, str], list[str]]:
    """This machine's pip settings, and the local files and directories that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            settings[key] = ast.literal_eval(value)
    words = " ".join(value for key, value in settings.items() if key != "cert").split()
    paths = {word.removeprefix("file://") for word in words if re.match(r"(file://)?/", word)}
    found = sorted(path for path in paths if Path(path).exists())
    # An index on disk refers to files beside it.
    beside = {str(Path(path).parent) if Path(path).name == "simple" else path for path in found}
    return settings, sorted(beside)


def place() -> Path:
    """Where images are kept between runs."""
    root = os.environ.get("SHAMMAH_TEST_CACHE") or Path(__file__).parents[2] / ".cache"
    return Path(root).absolute() / "podman"


@pytest.fixture(scope="session")
def podman() -> Podman:
    """Podman with the base image; without it the test fails, for one that cannot run has not passed."""
    try:
        return set_up(place())
    except Missing as error:
        pytest.fail(str(error))


@pytest.fixture
def containers(podman: Podman) -> Iterator[Callable[..., Container]]:
    """`containers(image, *options, command=())` -> a started container, removed with the test."""
    started: list[Container] = []

    def start(image: str, *options: str, command: tuple[str, ...] = ()) -> Container:
        name = f"shammah-test-{os.getpid()}-{time.monotonic_ns()}"
        started.append(Container(podman, name))
        return podman.start(image, name, *options, command=command)

    yield start
    for container in started:
        container.remove()


if __name__ == "__main__":
    try:
        for name, value in set_up(place()).environment.items():
            print(f"export {name}={value}")
    except Missing as error:
        sys.exit(str(error))
