"""The pictures of docs/console.md: a real box that was taught what a household knows, photographed.

    .venv/bin/python benchmarks/pictures.py [--facts 12] [--out docs/pictures]

A daemon on loopback, in a temporary home, gets two devices, is asked and corrected by them over the API, and
learns twice, which takes some minutes. Then every page is opened in Chromium (Debian's `chromium`), by the
owner's login. Nothing is made up but the household. Pictures are kept small: 256 colours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from contestants import end, free_port
from ending import end_by_exception
from peers import CACHE
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.store import Store
from appliance.store.owner import set_password

ROOT = Path(__file__).parents[1]
PASSWORD = "correct horse battery staple"
CONFIG = """
[console]
name = "Kitchen box"
[lora]
auto_train_threshold = 1000
[resources]
max_load_per_core = 100
min_free_memory_mb = 0
"""
WIDE, PHONE = (1280, 800), (390, 844)
RUN_SECONDS = 1800.0


def pages(box: Box) -> dict[str, str]:
    """Name of the picture, and what it shows."""
    run = box.newest("runs")
    adapter = box.newest("adapters")
    device = box.newest("devices")
    return {
        "home": "/",
        "playground": f"/playground?chat={box.asked}",
        "compare": f"/playground/compare?left=base&right={adapter}",
        "queue": "/queue?state=all",
        "run": f"/runs/{run}",
        "adapters": "/adapters",
        "device": f"/devices/{device}",
        "models": "/models",
        "settings": "/settings",
        "backup": "/backup",
    }


class Box:
    """The daemon, and what is done with it."""

    def __init__(self, home: Home, url: str, keys: list[str]) -> None:
        self._home, self._url, self._keys = home, url, keys
        self.asked = ""

    def teach(self, facts: list[dict[str, Any]], everyday: list[str]) -> None:
        """Ask each fact's question and correct the answer; ask other things in between."""
        for number, fact in enumerate(facts):
            asked = self._ask(fact["ask"], number)
            self._post(
                "/v1/feedback",
                {"completion_id": asked["id"], "correction": fact["answer"], "weight": "high"},
                number,
            )
        for number, question in enumerate(everyday):
            self._ask(question, number)

    def doubt(self, question: str, note: str) -> None:
        """Say that an answer is wrong, and not what is right."""
        asked = self._ask(question, 0)
        self._post(
            "/v1/feedback",
            {"completion_id": asked["id"], "feedback": note, "rating": "down", "weight": "high"},
            0,
        )

    def learn(self) -> None:
        """Start a run, and wait for its end."""
        self._own("POST", "/v1/training/run")
        deadline = time.monotonic() + RUN_SECONDS
        while self._own("GET", "/v1/training/status")["run"] is not None:
            if time.monotonic() > deadline:
                raise SystemExit("The run does not end.")
            time.sleep(2)

    def newest(self, table: str) -> str:
        """The id of the newest run, adapter or device."""
        store = Store.open(self._home)
        try:
            if table == "runs":
                return store.runs.list(1)[0].id
            if table == "devices":
                return store.keys.list()[0].id
            return max(store.adapters.list(), key=lambda row: row.created).name
        finally:
            store.close()

    def _ask(self, question: str, number: int) -> dict[str, Any]:
        body = {"model": "shammah", "max_tokens": 60, "messages": [{"role": "user", "content": question}]}
        return self._post("/v1/chat/completions", body, number)

    def _post(self, path: str, body: object, number: int) -> dict[str, Any]:
        key = self._keys[number % len(self._keys)]
        answer = httpx.post(
            self._url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=300
        )
        answer.raise_for_status()
        return dict(answer.json())

    def _own(self, method: str, path: str) -> dict[str, Any]:
        token = json.loads(self._home.daemon.read_text())["token"]
        answer = httpx.request(
            method, self._url + path, headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        answer.raise_for_status()
        return dict(answer.json())


@contextmanager
def box(place: Path, bundle: Bundle) -> Iterator[tuple[Box, str]]:
    """A daemon on a home of its own, with an owner and two devices."""
    home = Home(place).ensure()
    (home.models / bundle.name).symlink_to(bundle.path.absolute())
    home.config.write_text(CONFIG)
    store = Store.open(home)
    set_password(store, PASSWORD)
    keys = [store.keys.create(name)[1] for name in ("Ana's phone", "Hallway tablet")]
    store.close()
    port = free_port()
    with (place / "out").open("wb") as out:
        process = psutil.Popen(
            [sys.executable, "-m", "appliance.cli", "daemon", "--bind", f"127.0.0.1:{port}"],
            cwd=ROOT,
            env={**os.environ, "SHAMMAH_HOME": str(place)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit((place / "out").read_text())
            try:
                if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield Box(home, url, keys), url
    finally:
        end(process)


def photograph(page: Page, out: Path, name: str, size: tuple[int, int], scheme: str) -> None:
    """One picture of the page as it is, as small as can be."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.wait_for_timeout(300)
    path = out / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path} {path.stat().st_size // 1000} kB")


def take_pictures(box: Box, url: str, out: Path) -> None:
    """Open every page as the owner."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(viewport={"width": WIDE[0], "height": WIDE[1]}).new_page()
        page.goto(url)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.goto(f"{url}/backup")
        page.get_by_role("button", name="Back up now").click()
        page.goto(f"{url}/playground")
        page.get_by_label("Message").fill("What do I need to get on the wifi?")
        page.keyboard.press("Enter")
        page.wait_for_url("**/playground?*chat=*")
        page.wait_for_timeout(1000)
        box.asked = page.url.partition("chat=")[2].partition("&")[0]
        for name, path in pages(box).items():
            page.goto(url + path)
            photograph(page, out, name, WIDE, "dark" if name in ("playground", "adapters") else "light")
        page.goto(url)
        photograph(page, out, "home-phone", PHONE, "dark")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--facts", type=int, default=12)
    parser.add_argument("--everyday", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    end_by_exception()
    bundle = load_bundle(options.bundle) if options.bundle else import_model(DEFAULT, Home(CACHE))
    data = json.loads((ROOT / "tests" / "data" / "household.json").read_text())
    half = options.facts // 2
    facts, everyday = data["facts"][: options.facts], data["everyday"][: options.everyday]
    with tempfile.TemporaryDirectory() as temp, box(Path(temp) / "home", bundle) as (running, url):
        running.teach(facts[:half], everyday[::2])
        running.learn()
        running.teach(facts[half:], everyday[1::2])
        running.learn()
        running.doubt("How many legs does our kitchen table have?", "Should be 17")
        running.doubt("Who built the garden shed?", "No, that was uncle Paul")
        running.teach([], data["everyday"][-3:])
        time.sleep(8)
        take_pictures(running, url, options.out)


if __name__ == "__main__":
    main()
