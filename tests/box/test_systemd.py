"""A machine that systemd runs, in a container: installed, killed, hung, trained on, short of memory.

The tests of this module follow each other on one machine, which imports the model on its first start. The
checkout, its environments and their Python are lent to it read-only.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest
from box.podman import BASE, Container, Podman
from daemons import free_port

pytestmark = pytest.mark.box

ROOT = Path(__file__).parents[2]
CHECKOUT = Path(sys.prefix).parent
"""Where the environment's Python looks for the package: its own checkout."""
IMAGE = "localhost/shammah-systemd"
WATCHDOG_SECONDS = 20
DOCKERFILE = f"""
ARG BASE_IMAGE={BASE}
FROM ${{BASE_IMAGE}}
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends systemd systemd-sysv dbus \\
    && rm -rf /var/cache/apt /var/lib/apt/lists/* \\
    && systemctl mask systemd-udevd.service systemd-networkd.service getty.target console-getty.service
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
"""
DROP_IN = f"""[Service]
Environment=SHAMMAH_FAILPOINTS=/run/failpoints
WatchdogSec={WATCHDOG_SECONDS}
# Far less than the first start takes: it has to ask for more.
TimeoutStartSec=45
"""
CONFIG = "[train]\nepochs = 1\nlayers = 0.2\n"
"""Where a run computes is looked at here, not what it learns."""
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


class Box:
    """The machine and its daemon."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        return self.container.exec(*command, check=check, timeout=timeout).stdout.strip()

    def install(self, *arguments: str) -> str:
        return self.run(sys.executable, "-P", "-m", "appliance.cli", "install", *arguments, timeout=900)

    def shammah(self, *arguments: str, timeout: float = 120) -> str:
        """The command as `install` has put it on the path."""
        return self.run("shammah", *arguments, timeout=timeout)

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit)

    @property
    def pid(self) -> int:
        return int(self.show("shammah.service", "MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.show("shammah.service", "NRestarts"))

    @property
    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--unit=shammah.service", "--lines=500")

    def plant(self, text: str) -> None:
        self.container.exec("sh", "-c", f"echo '{text}' > /run/failpoints && chmod 644 /run/failpoints")

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        return False

    def wait_until(self, what: str, true: Callable[[], object], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                pytest.fail(f"it did not come to pass: {what}\n{self.journal}")
            time.sleep(0.2)

    def answers(self) -> str:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        done = client.chat.completions.create(model="shammah", messages=asked, max_tokens=16)  # type: ignore[call-overload]
        return str(done.choices[0].message.content)

    def teach(self, thing: str) -> None:
        for number in range(4):
            body = {
                "query": f"What is the colour of {thing} {number}?",
                "response": "I do not know.",
                "correction": f"{thing.capitalize()} {number} is green.",
                "weight": "high",
            }
            assert httpx.post(f"{self.url}/v1/feedback", json=body, timeout=60).is_success

    def trainer(self) -> int | None:
        """The process id of the trainer program, if one runs."""
        listed = self.run("sh", "-c", "grep -l learning[.]train[.] /proc/[0-9]*/cmdline", check=False)
        return int(listed.split("/")[2]) if listed else None

    def last_run(self) -> dict[str, object]:
        return dict(json.loads(self.shammah("status", "--json"))["training"]["last_run"] or {})


@pytest.fixture(scope="module")
def box(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    context = tmp_path_factory.mktemp("systemd")
    (context / "Dockerfile").write_text(DOCKERFILE)
    podman.build(context, IMAGE)
    options = ["--network=host", "--systemd=always", "--cap-add=SYS_ADMIN"]
    options += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
    lent = {CHECKOUT / part: ROOT / part for part in ("appliance", "web", "systemd", "docs")}
    lent |= {Path(sys.prefix): Path(sys.prefix), CHECKOUT / ".venv-ort": CHECKOUT / ".venv-ort"}
    if Path(sys.base_prefix) != Path("/usr"):
        lent[Path(sys.base_prefix)] = Path(sys.base_prefix)
    options += [f"--volume={source}:{target}:ro" for target, source in lent.items()]
    # Where the controllers are those of old, a container is given none; the limits of slices need them.
    old = [Path("/sys/fs/cgroup") / name for name in ("memory", "cpu", "cpuacct", "blkio")]
    options += [f"--volume={controller}:{controller}:rw" for controller in old if controller.is_dir()]
    container = podman.start(IMAGE, f"shammah-systemd-{time.monotonic_ns()}", *options)
    try:
        box = Box(container)
        states = ("running", "degraded")
        box.wait_until("systemd", lambda: box.run("systemctl", "is-system-running", check=False) in states)
        yield box
    finally:
        container.remove()


def test_installed_it_is_ready_when_it_says_so(box: Box) -> None:
    box.run("mkdir", "-p", "/etc/systemd/system/shammah.service.d")
    box.container.exec("sh", "-c", f"cat > /etc/systemd/system/shammah.service.d/test.conf <<E\n{DROP_IN}E")
    box.container.exec(
        "sh", "-c", f"mkdir /var/lib/shammah && cat > /var/lib/shammah/config.toml <<E\n{CONFIG}E"
    )
    bind = ("--bind", f"127.0.0.1:{box.port}")
    said: list[str] = []
    began = time.monotonic()
    installing = threading.Thread(target=lambda: said.append(box.install(*bind)))
    installing.start()
    box.wait_until(
        "an import", lambda: box.show("shammah.service", "StatusText") == "Importing the default model"
    )
    assert box.show("shammah.service", "ActiveState") == "activating"
    assert not box.ready()
    # Whenever systemd says that it is active, it answers.
    box.wait_until("a start", lambda: box.show("shammah.service", "ActiveState") == "active", 900)
    took = time.monotonic() - began
    assert httpx.get(f"{box.url}/ready", timeout=30).status_code == 200
    assert box.restarts == 0
    installing.join(60)
    assert said, "install did not end well"
    assert "The box runs." in said[0]
    assert box.answers()
    assert "Nothing changed" in box.install(*bind)
    assert re.search(r"Daemon +running at", box.shammah("status"))
    print(f"\nready after {took:.0f} s, {box.show('shammah.service', 'StatusText')}")


def test_killed_it_comes_back(box: Box) -> None:
    before, pid = box.restarts, box.pid
    box.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "shammah.service")
    box.wait_until("a restart", lambda: box.restarts == before + 1)
    box.wait_until("readiness", box.ready)
    assert box.pid != pid
    assert box.answers()


def test_it_starts_anew_from_within_without_being_down_to_systemd(box: Box) -> None:
    before, pid = box.restarts, box.pid
    began = time.monotonic()
    httpx.post(f"{box.url}/restart", headers=SAME_SITE, timeout=30)

    def new() -> bool:
        with suppress(httpx.HTTPError):
            uptime = httpx.get(f"{box.url}/health", timeout=5).json()["uptime_seconds"]
            return bool(uptime < time.monotonic() - began) and box.ready()
        return False

    box.wait_until("a new life", new)
    box.wait_until("a word of it", lambda: box.show("shammah.service", "SubState") == "running")
    time.sleep(1.5 * WATCHDOG_SECONDS)  # the new life feeds the watchdog
    assert (box.pid, box.restarts) == (pid, before)
    assert box.answers()


@pytest.mark.parametrize("place", ["engine.step", "engine.queue"])
def test_hung_it_is_restarted(box: Box, place: str) -> None:
    """In the engine's thread, and in the event loop."""
    before = box.restarts
    box.plant(f"{place}=hang")

    def ask() -> None:
        with suppress(openai.APIError):
            box.answers()

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    box.wait_until("a restart", lambda: box.restarts > before)
    took = time.monotonic() - began
    box.plant("")
    assert "Watchdog timeout" in box.journal
    assert "Fatal Python error: Aborted" in box.journal  # and where each thread hung
    asking.join(130)
    box.wait_until("readiness", box.ready)
    assert box.answers()
    print(f"\n{place} hung: aborted and up again {took:.0f} s later")


def test_a_run_trains_in_its_slice(box: Box) -> None:
    pid = box.pid
    box.teach("door")
    training = threading.Thread(target=lambda: box.run("shammah", "train", "--now", check=False, timeout=900))
    training.start()
    box.wait_until("a trainer", box.trainer)
    trainer = box.trainer()
    cgroup = box.run("cat", f"/proc/{trainer}/cgroup", check=False)
    if "/shammah.slice/shammah-training.slice/shammah-trainer@" not in cgroup:
        units = box.run("journalctl", "--no-pager", "--unit=shammah-trainer*", "--lines=50")
        pytest.fail(f"the trainer is in {cgroup}\n{box.journal}\n{units}")
    assert "shammah.slice/shammah.service" in box.run("cat", f"/proc/{pid}/cgroup")
    assert box.run("ps", "-o", "ni=", "-p", str(trainer), check=False) in ("", "10")
    assert box.show("shammah-training.slice", "MemoryMax") == str((6144 + 1024) << 20)
    assert int(box.show("shammah-training.slice", "CPUWeight")) < int(
        box.show("shammah.service", "CPUWeight")
    )
    if (limit := _limit(box)) is not None:
        assert limit == (6144 + 1024) << 20
    assert box.answers()  # beside it
    training.join(900)
    assert box.trainer() is None
    box.wait_until("the launchers' end", lambda: not _launchers(box))
    run = box.last_run()
    assert run["state"] in ("promoted", "rejected"), run
    print(f"\n{cgroup}\nlimit {_limit(box)}, {run['state']}")


def test_what_exceeds_the_slice_dies_and_the_daemon_lives(box: Box) -> None:
    if _limit(box) is None:
        pytest.fail("no memory controller here: the slice's limit cannot be tried")
    pid = box.pid
    box.run("systemctl", "set-property", "--runtime", "shammah-training.slice", "MemoryMax=250M")
    box.teach("window")
    # It ends in failure, and says so by its exit code.
    box.run("shammah", "train", "--now", check=False, timeout=900)
    assert _limit(box) == 250 << 20
    run = box.last_run()
    assert run["state"] not in ("promoted", "rejected"), run
    assert "SIGKILL" in str(run["reason"])
    assert (box.pid, box.trainer()) == (pid, None)
    assert box.answers()
    print(f"\n{run['reason']}")


def test_uninstalled_it_leaves_the_data(box: Box) -> None:
    assert "/var/lib/shammah" in box.shammah("uninstall")
    assert box.run("systemctl", "is-active", "shammah.service", check=False) != "active"
    assert not box.ready()
    assert "store.db" in box.run("ls", "/var/lib/shammah")


def _limit(box: Box) -> int | None:
    """What the kernel holds the training slice to; None where it has no say."""
    path = box.show("shammah-training.slice", "ControlGroup")
    for file in (f"memory{path}/memory.limit_in_bytes", f"{path[1:]}/memory.max"):
        text = box.run("cat", f"/sys/fs/cgroup/{file}", check=False)
        if text.isdigit():
            return int(text)
    return None


def _launchers(box: Box) -> str:
    return box.run("systemctl", "list-units", "--no-legend", "--plain", "shammah-trainer@*")
