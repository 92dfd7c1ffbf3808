"""A full disk: serving goes on, feedback is refused in words, nothing acknowledged is lost."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from daemons import StartDaemon

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.owner import set_password

PASSWORD = "correct horse battery"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"this test mounts a tmpfs and so needs root: {mounted.stderr}"
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(bundle: Bundle, small_disk: Path, start_daemon: StartDaemon) -> None:
    home = Home(small_disk / "home")
    home.root.mkdir()
    home.models.symlink_to(bundle.path.parent)
    home.ensure()
    store = Store.open(home)
    set_password(store, PASSWORD)
    store.close()
    daemon = start_daemon("[lora]\nenabled = false", home=home)
    acknowledged = []

    def teach(number: int) -> int:
        body = {"query": f"Question {number}?", "response": "No idea.", "correction": f"It is {number}."}
        response = daemon.post("/v1/feedback", json=body)
        if response.status_code == 200:
            acknowledged.append(response.json()["id"])
        else:
            assert response.json()["error"]["code"] == "storage_full", response.text
        return response.status_code

    assert teach(0) == 200
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    statuses = [teach(number) for number in range(1, 60)]
    assert statuses[-1] == 507
    assert daemon.ask("Say hello.", max_tokens=3)
    assert daemon.get("/health").status_code == 200
    # Who is to make room gets in, is told, and can leave.
    with httpx.Client(base_url=daemon.url, headers={"Origin": daemon.url}, timeout=60) as browser:
        assert browser.post("/login", data={"password": PASSWORD}).headers["location"] == "/"
        deadline = time.monotonic() + 60
        while "Nothing is collected: The disk is full" not in browser.get("/").text:
            assert time.monotonic() < deadline
            daemon.ask("What else?", max_tokens=3)
        cookie = browser.cookies["shammah_session"]
        browser.post("/logout")
        browser.cookies.set("shammah_session", cookie)
        assert browser.get("/").headers["location"] == "/login"
        browser.cookies.clear()
        assert browser.post("/login", data={"password": PASSWORD}).headers["location"] == "/"
        filler.unlink()
        assert browser.get("/").status_code == 200
    assert teach(100) == 200
    daemon.kill()
    daemon.start()
    store = Store.open(home)
    assert {store.examples.get(example).state for example in acknowledged} == {"pending"}
    store.close()
    assert daemon.ask("Say hello.", max_tokens=3)
    daemon.kill()
