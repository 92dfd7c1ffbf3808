"""A running daemon goes by a changed file as soon as it is told: each room shows it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from browsing import add_adapter, opened
from daemons import Daemon, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

PASSWORD = "correct horse battery"
WAITED = 30.0

Apply = Callable[[str], None]


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon of nothing but defaults; what the tests change is all there is in the file."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    running = Daemon(home).start()
    yield running
    running.stop()


@pytest.fixture
def apply(daemon: Daemon) -> Apply:
    """Write the file and have it read, as an editor and `systemctl reload` do."""

    def run(text: str) -> None:
        before = daemon.log.count("Read config.toml again")
        daemon.home.config.write_text(f"{text}\n[server]\nlog_level = 'INFO'\n")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: daemon.log.count("Read config.toml again") > before)

    return run


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAITED
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def status(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.get("/v1/training/status").json())


def test_answers(daemon: Daemon, apply: Apply) -> None:
    def ask() -> tuple[str, int]:
        body = {
            "model": "shammah",
            "store": False,
            "messages": [{"role": "user", "content": "Tell me a tale."}],
        }
        answer = daemon.post("/v1/chat/completions", json=body).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]

    apply("[model]\ntemperature = 0\ndefault_max_tokens = 24")
    calm = ask()
    assert calm[1] == 24
    assert ask() == calm
    apply("[model]\ntemperature = 2\ntop_p = 1\ndefault_max_tokens = 12")
    assert ask()[1] == 12
    assert len({ask()[0] for _ in range(3)} | {calm[0][:10]}) == 4


def test_collecting(daemon: Daemon, apply: Apply) -> None:
    apply("[collect]\nenabled = false\n[model]\ndefault_max_tokens = 4\n[lora]\nenabled = false")
    daemon.ask("What is not kept?")
    with opened(daemon.home) as store:
        until(lambda: [said.query for said in store.completions.recent(1)] == ["What is not kept?"])
    apply("[model]\ndefault_max_tokens = 4\n[lora]\nenabled = false\nnormal_weight = 2.5")
    daemon.ask("What is kept?")
    with opened(daemon.home) as store:
        until(lambda: store.examples.count("pending"))
        (example,) = store.examples.list("pending")
    assert (example.query, example.weight) == ("What is kept?", 2.5)


def test_what_defers_a_run_is_looked_at_again(daemon: Daemon, apply: Apply) -> None:
    """The deferral of quiet hours is for hours, and other settings end it at once."""
    now = datetime.now()
    span = "-".join((now + timedelta(hours=hours)).strftime("%H:%M") for hours in (-2, 2))
    apply("[lora]\nauto_train_threshold = 1000000")
    assert status(daemon)["deferral"] is None
    apply(f"[lora]\nauto_train_threshold = 1\n[resources]\nquiet_hours = '{span}'")
    until(lambda: "quiet hour" in json.dumps(status(daemon)["deferral"]))
    apply("[lora]\nauto_train_threshold = 1\n[resources]\nmin_free_disk_mb = 1000000000")
    until(lambda: "of disk are free" in json.dumps(status(daemon)["deferral"]))
    apply("[lora]\nenabled = false")
    until(lambda: status(daemon)["deferral"] is None)
    assert status(daemon)["threshold"] == 100


def test_the_gate(daemon: Daemon, apply: Apply, bundle: Bundle) -> None:
    apply("[lora]\nenabled = false\n[gate]\nmax_empty = 0.25")
    with opened(daemon.home) as store:
        add_adapter(daemon.home, store, bundle, "tried", 3)
        store.adapters.set_state("tried", "candidate")
    (daemon.home.adapters / "tried.safetensors").rename(daemon.home.adapters / "again.safetensors")
    limits = daemon.home.runs / "dropped" / "gate.json"
    until(limits.exists)
    assert json.loads(limits.read_text())["max_empty"] == 0.25


def test_the_console(daemon: Daemon, apply: Apply) -> None:
    apply("[lora]\nenabled = false\n[console]\nname = 'Kitchen box'\nsession_hours = 2")
    assert "Kitchen box</title>" in daemon.get("/").text
    with opened(daemon.home) as store:
        set_password(store, PASSWORD)

    def age() -> str:
        response = httpx.post(
            f"{daemon.url}/login", data={"password": PASSWORD}, headers={"Sec-Fetch-Site": "same-origin"}
        )
        return response.headers["set-cookie"]

    assert "Max-Age=7200" in age()
    apply("[lora]\nenabled = false\n[console]\nsession_hours = 3")
    assert "Max-Age=10800" in age()


def test_a_broken_file_changes_nothing(daemon: Daemon) -> None:
    daemon.home.config.write_text("[console]\nname = 'Broken'\nflux = 1\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "The settings stay as they are: config.toml line 3" in daemon.log)
    assert "Broken" not in daemon.get("/login").text
    assert daemon.process.poll() is None
