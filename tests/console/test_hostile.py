"""Requests no page of ours sends: what strangers try, what two tabs do at once, what is open for too long."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from browsing import opened
from daemons import Daemon, StartDaemon

from appliance.app import SHUTDOWN_SECONDS
from appliance.backup import archive
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import create_session, end_session, set_password

PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}
COOKIE = "shammah_session"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def locked(daemon: Daemon) -> Daemon:
    """The module's daemon, with a password."""
    with opened(daemon.home) as store:
        set_password(store, PASSWORD)
    return daemon


@contextmanager
def logged_in(box: Daemon) -> Iterator[httpx.Client]:
    with opened(box.home) as store:
        token = create_session(store, 1.0)
    with httpx.Client(base_url=box.url, cookies={COOKIE: token}, headers=OWN, timeout=60) as client:
        yield client


def write_log(box: Daemon, text: str) -> None:
    with (box.home.logs / "shammah.log").open("a") as file:
        file.write(f"2026-11-26 04:29:53,012 INFO appliance.app: {text}\n")


@pytest.mark.parametrize("path", ["/logs/follow?level=INFO", "/console/events?seen=0"])
def test_a_stream_ends_with_the_session(locked: Daemon, path: str) -> None:
    with logged_in(locked) as client, client.stream("GET", path) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines) == ": connected"
        with opened(locked.home) as store:
            end_session(store, client.cookies[COOKIE])
        write_log(locked, "nothing for strangers")
        began = time.monotonic()
        seen = []
        for line in lines:
            seen.append(line)
            assert time.monotonic() - began < 20, "the stream goes on"
    assert "strangers" not in "".join(seen)


def test_strangers_send_no_large_forms(locked: Daemon) -> None:
    fields = b"a=1&" * 100_000  # to take this apart costs as much as a hundred pages
    answer = httpx.post(f"{locked.url}/login", content=fields, headers={**OWN, **FORM}, timeout=60)
    assert (answer.status_code, "too large" in answer.text) == (400, True)
    longest = {"password": "\N{SNOWMAN}" * 1024}
    answer = httpx.post(f"{locked.url}/login", data=longest, headers=OWN, timeout=60)
    assert (answer.status_code, "That is not the password" in answer.text) == (401, True)


def test_one_backup_at_a_time(locked: Daemon) -> None:
    """Each that waited for the one before would take a thread from everything else the box does."""
    run = locked.home.runs / "run_20260101T000000Z"
    run.mkdir()
    (run / "log").write_bytes(os.urandom(30_000_000))
    said: list[int] = []
    with logged_in(locked) as client:
        presses = [
            threading.Thread(target=lambda: said.append(client.post("/backup/make").status_code))
            for _ in range(8)
        ]
        for press in presses:
            press.start()
        for press in presses:
            press.join()
        assert said == [303] * 8
        assert len(archive.backups(locked.home)) == 1
        # And it is not in the way of the next.
        client.post("/backup/make")
    assert len(archive.backups(locked.home)) == 2


def test_addresses_that_no_page_has(locked: Daemon) -> None:
    huge = "9" * 4_500
    with logged_in(locked) as client:
        for before in (huge, 2**70):
            assert client.get(f"/audit?before={before}").status_code == 200
        for path in ("/adapters", "/review", "/runs", "/settings/history"):
            assert client.get(f"{path}?page={huge}").status_code == 400, path
        assert client.get(f"/settings/history/{2**70}").status_code == 404
        undone = client.post(f"/settings/history/{2**70}/undo")
        assert undone.status_code == 303
        with client.stream("GET", f"/logs/follow?after={huge}") as stream:
            assert stream.status_code == 200


def test_headers_that_are_not_text(locked: Daemon) -> None:
    """The act is done: only the way back is not known."""
    with logged_in(locked) as client:
        answer = client.post("/adapters/unpin", headers={"Referer": b"http://box/adapters\xff\xfe"})  # type: ignore[dict-item]
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")


def test_what_is_left_of_a_message(locked: Daemon) -> None:
    for content in (b"W1tb" * 900, b"eyJtZXNzYWdlIjoiXHVkODAwIiwidG9uZSI6ImJhZCJ9", b"e30=", b"x"):
        cookie = {"Cookie": f"shammah_flash={content.decode()}"}
        assert httpx.get(f"{locked.url}/login", headers=cookie, timeout=60).status_code == 200


def test_an_upload_does_not_fill_the_disk(bundle: Bundle, tmp_path: Path, start_daemon: StartDaemon) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"this test mounts a tmpfs and so needs root: {mounted.stderr}"
    try:
        home = Home(place / "home")
        home.root.mkdir()
        home.models.symlink_to(bundle.path.parent)
        home.ensure()
        box = start_daemon("[lora]\nenabled = false", home=home)
        files = {"file": ("backup_20260101T000000Z.tar.gz", os.urandom(60_000_000))}
        answer = httpx.post(f"{box.url}/backup/bring", files=files, headers=OWN, timeout=60)
        assert answer.status_code == 303
        shown = box.get("/backup", headers={"Cookie": answer.headers["Set-Cookie"].partition(";")[0]})
        assert "The disk is too full" in shown.text
        assert list(home.backups.iterdir()) == []
        assert shutil.disk_usage(place).free > 70_000_000
        box.kill()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_an_open_log_does_not_hold_up_the_stop(start_daemon: StartDaemon) -> None:
    box = start_daemon("[lora]\nenabled = false\n")
    with httpx.stream("GET", f"{box.url}/logs/follow", timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": connected"
        began = time.monotonic()
        assert box.process is not None
        box.process.terminate()
        assert "".join(lines) == ""  # it ends in an orderly way, not by being cut off
    assert box.stop() == 0
    assert time.monotonic() - began < SHUTDOWN_SECONDS
