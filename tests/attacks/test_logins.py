"""Somebody with many addresses guesses the owner's password, and would keep the owner out by that alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from daemons import Daemon, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.known import KEY, MOST, known_as, remember
from appliance.store.owner import set_password

PASSWORD = "correct horse battery"
OTHER = "another horse entirely"
NAME = "box.example"
"""What a browser on the network calls the box: by it, no request counts as one of this machine."""


class Browser:
    """One at an address of its own (all of 127/8 leads here), with its cookies."""

    def __init__(self, daemon: Daemon, address: str, host: str = NAME) -> None:
        self.daemon, self.address, self.host = daemon, address, host
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **form: str) -> tuple[int, str]:
        body = urlencode(form)
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        lines = [
            f"{method} {path} HTTP/1.0",
            f"Host: {self.host}:{self.daemon.port}",
            "Sec-Fetch-Site: same-origin",
            "Accept: text/html",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(body)}",
            *([f"Cookie: {cookies}"] if cookies else []),
        ]
        got = b""
        place = ("127.0.0.1", self.daemon.port)
        with socket.create_connection(place, 60, source_address=(self.address, 0)) as sock:
            sock.sendall("\r\n".join([*lines, "", body]).encode())
            while part := sock.recv(65_536):
                got += part
        head, _, text = got.decode(errors="replace").partition("\r\n\r\n")
        for line in head.split("\r\n"):
            if line.lower().startswith("set-cookie: "):
                name, _, value = line[12:].partition(";")[0].partition("=")
                self.cookies[name] = value
        return int(head.split()[1]), head + text

    def log_in(self, password: str = PASSWORD) -> int:
        """303 when it succeeded, 401 for a wrong password, 429 for having to wait."""
        return self.ask("POST", "/login", password=password)[0]

    def forget_session(self) -> None:
        self.cookies.pop("shammah_session", None)

    @property
    def logged_in(self) -> bool:
        return self.ask("GET", "/account")[0] == 200


@pytest.fixture
def box(bundle: Bundle, tmp_path: Path) -> Iterator[Daemon]:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n")
    store = Store.open(home)
    set_password(store, PASSWORD)
    store.close()
    daemon = Daemon(home).start()
    yield daemon
    daemon.kill()


def flood(daemon: Daemon) -> None:
    """So many strangers' failures that everybody unknown has to wait. What is too long is not hashed."""
    tries = [Browser(daemon, f"127.9.0.{n}").log_in("no" * 1000) for n in range(1, 56)]
    assert 429 in tries
    assert Browser(daemon, "127.9.0.200").log_in() == 429


def test_who_has_logged_in_before_gets_in_while_strangers_wait(box: Daemon) -> None:
    """A browser, from wherever; an address, with another browser; through a restart; and this machine."""
    laptop = Browser(box, "127.1.0.1")
    assert laptop.log_in() == 303
    laptop.forget_session()
    assert not laptop.logged_in  # to be known is not to be logged in
    box.stop()
    box.start()
    flood(box)
    laptop.address = "127.1.0.99"  # it has got another since
    assert laptop.log_in() == 303
    assert laptop.logged_in
    assert Browser(box, "127.1.0.1").log_in() == 429  # known by the browser's last login only
    assert Browser(box, "127.1.0.99").log_in() == 303
    assert Browser(box, "127.0.0.1", "localhost").log_in() == 303  # through `ssh -L`, if need be
    assert laptop.ask("POST", "/account/password", old=PASSWORD, password=OTHER, again=OTHER)[0] == 303
    laptop.forget_session()
    assert laptop.log_in(OTHER) == 303


def test_a_known_one_guesses_no_more_than_others(box: Daemon) -> None:
    """With a stolen cookie, and from the owner's address, a few are free; and strangers do not reset that."""
    laptop = Browser(box, "127.1.0.1")
    assert laptop.log_in() == 303
    laptop.forget_session()
    known = laptop.cookies["shammah_known"]
    for thief in (laptop, Browser(box, "127.1.0.1")):
        tries = [thief.log_in("no") for _ in range(8)]
        assert tries == [401] * 5 + [429] * 3
        assert thief.log_in() == 429
    assert laptop.cookies["shammah_known"] == known
    assert Browser(box, "127.2.0.1").log_in() == 303  # others have nothing to do with it


def test_the_cookie_cannot_be_made_up_and_ends_with_the_password(box: Daemon) -> None:
    laptop = Browser(box, "127.1.0.1")
    assert laptop.log_in() == 303
    good = laptop.cookies["shammah_known"]
    assert good not in box.home.store.read_bytes().decode("latin-1")  # a copy of the store knows nobody
    command = [sys.executable, "-m", "appliance.cli", "console", "password"]
    environment = {"SHAMMAH_HOME": str(box.home.root), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, env=environment, input=OTHER, text=True, check=True, capture_output=True)
    flood(box)
    stranger = Browser(box, "127.3.0.1")
    for made_up in (good, good[:-1], "x" * 43, '{"address": "127.1.0.1"}', ""):
        stranger.cookies = {"shammah_known": made_up, "__Host-shammah_known": made_up}
        assert stranger.log_in(OTHER) == 429, made_up
    assert laptop.log_in(OTHER) == 429  # known under another password
    # The way back, beside the command, is this machine.
    assert Browser(box, "127.0.0.1", "127.0.0.1").log_in(OTHER) == 303


def test_known_ones_are_few_and_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(home)
    cookies = [remember(store, "", f"10.0.0.{n}") or "" for n in range(MOST + 10)]
    assert known_as(store, cookies[0], "10.9.9.9") is None
    assert known_as(store, cookies[-1], "10.9.9.9") is not None
    assert known_as(store, "", "10.0.0.3") is None
    assert known_as(store, "", "10.0.0.30") == "address 10.0.0.30"
    again = remember(store, cookies[-1], "10.0.0.1")
    assert again is not None
    assert known_as(store, cookies[-1], "10.9.9.9") is None  # each has one
    assert len(store.settings.get(KEY) or "") < 10_000
    monkeypatch.setattr("appliance.store.known.time.time", lambda: 5e9)
    assert known_as(store, again, "10.0.0.1") is None
    store.close()
