"""Where the box listens, by real sockets over both families."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from daemons import Daemon, free_port, install_bundle

from appliance.config import parse_config
from appliance.errors import ConfigError, Unavailable
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.network.lan import Network
from appliance.network.listening import listen_all, name_of, nearest, split_bind
from appliance.origin import is_loopback, unmapped
from appliance.store import Store
from appliance.store.owner import set_password

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def names(bind: str) -> set[str]:
    """The addresses that are really listened on; each is tried."""
    places, sockets = listen_all(split_bind(bind))
    with ExitStack() as made:
        for sock in sockets:
            made.enter_context(closing(sock))
        for host, port in map(name_of, sockets):
            here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            socket.create_connection((here, port), 5).close()
        assert all(port for _, port in places)
        return {f"{host} {index}" for host, index in _numbered(map(name_of, sockets))}


def _numbered(found: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Ports by their order, for they are any."""
    ports: list[int] = []
    for host, port in found:
        if port not in ports:
            ports.append(port)
        yield host, ports.index(port)


@needs_ipv6
def test_what_is_asked_for_is_what_is_listened_on() -> None:
    port = free_port()
    assert names("127.0.0.1:0") == {"127.0.0.1 0"}
    assert names("0.0.0.0:0") == {"0.0.0.0 0"}
    assert names("[::1]:0") == {"::1 0"}
    for _ in range(20):  # one port for both, whichever is free
        assert names("[::]:0") == {":: 0", "0.0.0.0 0"}
    assert names(f"localhost:{port}") == {"127.0.0.1 0", "::1 0"}
    assert names(f"127.0.0.1:{port}, [::1]:{port}") == {"127.0.0.1 0", "::1 0"}
    assert names(f"127.0.0.1:{port} [::1]:0 127.0.0.1:{port}") == {"127.0.0.1 0", "::1 1"}


@needs_ipv6
def test_what_another_covers_needs_no_socket_of_its_own() -> None:
    port = free_port()
    for bind in (
        f"[::]:{port},0.0.0.0:{port}",
        f"0.0.0.0:{port},[::]:{port}",
        f"127.0.0.1:{port},[::]:{port},localhost:{port}",
    ):
        assert names(bind) == {":: 0", "0.0.0.0 0"}
    assert names(f"0.0.0.0:{port},127.0.0.1:{port}") == {"0.0.0.0 0"}
    assert names(f"0.0.0.0:{port},localhost:{port}") == {"0.0.0.0 0", "::1 0"}


def test_a_taken_address_is_named_and_the_others_are_let_go() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        theirs = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1 port {theirs}: Address already in use"):
            listen_all(split_bind(f"127.0.0.1:{port},127.0.0.1:{theirs}"))
        with pytest.raises(Unavailable, match="Address already in use"):
            listen_all(split_bind(f"[::]:{theirs}"))
    assert names(f"127.0.0.1:{port}") == {"127.0.0.1 0"}


@pytest.mark.parametrize(
    "bind",
    ["", ",", "8080", ":8080", "::1:8080", "[127.0.0.1]:80", "a:b", "a:99999", "a:1,b", "[::]:-1", "a:²"],
)
def test_what_is_no_address_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError):
        split_bind(bind)


def test_this_machine_uses_loopback_where_it_can() -> None:
    assert nearest(split_bind("192.0.2.1:80,[::1]:81")) == ("::1", 81)
    assert nearest(split_bind("192.0.2.1:80,[::]:81")) == ("::", 81)
    assert nearest(split_bind("192.0.2.1:80,192.0.2.2:81")) == ("192.0.2.1", 80)


def test_an_address_in_the_dress_of_the_other_family_is_the_same() -> None:
    assert unmapped("::ffff:192.0.2.1") == unmapped("::FFFF:c000:201") == "192.0.2.1"
    for address in (
        "::1",
        "192.0.2.1",
        "::ffff:nonsense",
        "fe80::1%eth0",
        "2001:db8::1",
        "::ffff:0:192.0.2.1",
    ):
        assert unmapped(address) == address
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:192.0.2.1")


def test_all_addresses_of_the_first_port_are_announced(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ("192.0.2.1", "2001:db8::1")
    monkeypatch.setattr("appliance.network.names.machine_addresses", lambda: here)
    network = Network(home, parse_config(""), lambda: True)
    network.listens([("127.0.0.1", 80), ("::", 8080), ("0.0.0.0", 8080)], [("0.0.0.0", 8443), ("::", 8443)])
    told = network._announcement()
    assert told is not None
    assert (set(told.addresses), told.http, told.https) == (set(here), 8080, 8443)
    network.listens([("127.0.0.1", 80)], [])
    assert network._announcement() is None
    assert network.https_port is None
    network.listens([("127.0.0.1", 80)], [("127.0.0.1", 8443)])
    assert network.https_port == 8443


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return [free_port() for _ in range(3)]


@pytest.fixture(scope="module")
def box(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Daemon]:
    """On every address of both families, on another port for this machine, and by HTTPS on both loopbacks."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(
        f'[lora]\nenabled = false\n[server]\nbind = "127.0.0.1:1"\n'
        f'[tls]\nbind = "localhost:{ports[2]}"\n[mdns]\nenabled = false\n'
    )
    daemon = Daemon(home, port=ports[0])
    command = [sys.executable, "-m", "appliance.cli", "daemon"]
    binds = ["--bind", f"[::]:{ports[0]}", "--bind", f"[::1]:{ports[1]}"]
    with (home.root / "daemon.out").open("ab") as out:
        daemon.process = subprocess.Popen(
            [*command, *binds],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"SHAMMAH_HOME": str(home.root), "PATH": "/usr/bin:/bin"},
        )
    daemon.wait_ready()
    yield daemon
    daemon.kill()


@needs_ipv6
def test_a_daemon_is_reached_over_both_families(box: Daemon, ports: list[int]) -> None:
    for url in (f"http://127.0.0.1:{ports[0]}", f"http://[::1]:{ports[0]}", f"http://[::1]:{ports[1]}"):
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200, url
    for host in ("127.0.0.1", "[::1]", "localhost"):
        url = f"https://{host}:{ports[2]}/v1/models"
        assert httpx.get(url, verify=False, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{ports[1]}/health", trust_env=False)


@needs_ipv6
def test_it_tells_where_it_is(box: Daemon, ports: list[int]) -> None:
    record = json.loads(box.home.daemon.read_text())
    assert set(record["listens"]) == {f"[::]:{ports[0]}", f"[::1]:{ports[1]}"}
    assert (record["host"], record["port"], record["https"]) == ("::", ports[0], ports[2])
    for place in record["listens"]:
        assert f"Console: http://{place}/   API: http://{place}/v1" in box.log
    assert f"http://127.0.0.1:{ports[0]}/setup?token=" in box.log
    command = [sys.executable, "-m", "appliance.cli"]
    environment = {"SHAMMAH_HOME": str(box.home.root), "PATH": "/usr/bin:/bin"}
    for arguments in (["status"], ["doctor", "--quick"]):
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert "cannot be reached" not in done.stdout + done.stderr
    assert (
        subprocess.run([sys.executable, "-m", "appliance.probe"], env=environment, check=False).returncode
        == 0
    )


@needs_ipv6
def test_who_is_on_this_machine_is_so_over_every_family(box: Daemon, ports: list[int]) -> None:
    """And nobody becomes it by the address alone: the name that was asked for is this machine's too."""
    with _password(box):
        for address in ("127.0.0.1", "::1"):
            for host, status in (
                ("localhost", 200),
                ("[::1]", 200),
                ("[::ffff:127.0.0.1]", 200),
                ("a.lan", 401),
            ):
                with socket.create_connection((address, ports[0]), 10) as sock:
                    sock.sendall(f"GET /v1/models HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                    assert f" {status} ".encode() in sock.recv(65_536), (address, host)


@needs_ipv6
def test_a_stop_ends_all_sockets(bundle: Bundle, tmp_path: Path) -> None:
    """With streams open over both, and the ports are free for the next start."""
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    port = free_port()
    home.config.write_text(f'[lora]\nenabled = false\n[server]\nbind = "localhost:{port}"\n')
    daemon = Daemon(home, port=port)
    with (home.root / "daemon.out").open("ab") as out:
        daemon.process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "daemon"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"SHAMMAH_HOME": str(home.root), "PATH": "/usr/bin:/bin"},
        )
    daemon.wait_ready()
    with socket.create_connection(("::1", port), 10) as sock:
        sock.sendall(b"GET /console/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        assert daemon.stop() == 0
        sock.settimeout(10)
        with suppress(ConnectionError):
            while sock.recv(4096):
                pass
    assert names(f"localhost:{port}") == {"127.0.0.1 0", "::1 0"}
    assert "Traceback" not in daemon.log


class _password:
    """Set for a while: then a request has to show that it comes from here, or a key."""

    def __init__(self, box: Daemon) -> None:
        self._box = box

    def __enter__(self) -> None:
        store = Store.open(self._box.home)
        set_password(store, "correct horse battery")
        store.close()
        time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        store = Store.open(self._box.home)
        store.settings.delete("owner.password")
        store.close()
