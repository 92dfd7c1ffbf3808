"""Models in the console: a second one is imported, measured, served, deleted; what goes wrong is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
from browsing import NASTY, PHONE, check_sound, give_past, opened
from checkpoints import make_checkpoint
from daemons import Daemon, install_bundle
from playwright.sync_api import Page, expect

from appliance.config import Config, load_config
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.figures import FIGURES, Figures, read_figures
from appliance.learning.jobs import Jobs
from appliance.model.bundle import MANIFEST, Bundle, load_bundle

OpenPage = Callable[..., Page]
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A box that has no hub."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n[model]\ndefault_max_tokens = 40\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(home.root / "hub"))
        running = Daemon(home).start()
    give_past(home, bundle)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


def post(daemon: Daemon, path: str, **fields: str) -> str:
    """Send a form as a browser on this machine would; what the page after it says on top."""
    response = httpx.post(daemon.url + path, data=fields, headers=SAME_SITE, timeout=30)
    assert response.status_code == 303, response.text
    page = httpx.get(daemon.url + response.headers["location"], cookies=response.cookies, timeout=30).text
    flash = re.search(r'<p class="flash flash-(?:good|bad|info)"[^>]*>(.*?)</p>', page, re.DOTALL)
    return flash[1] if flash else ""


def ended(daemon: Daemon) -> str:
    """The page when no job is going on any more."""
    deadline = time.monotonic() + 120
    while "/models/cancel" in (page := daemon.get("/models").text):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return page


def residents(home: Home) -> set[str]:
    return {path.name for path in home.models.iterdir()} - {".lock"}


def test_a_model_comes_serves_and_goes(
    daemon: Daemon, bundle: Bundle, checkpoint: Path, open_page: OpenPage
) -> None:
    home = daemon.home
    page = open_page(daemon.url + "/models")
    first = page.locator(f"[id='model-{bundle.name}']")
    expect(first).to_contain_text("134 million")
    expect(first).to_contain_text("2 fit")
    expect(first.get_by_role("button", name="Delete")).to_have_count(0)

    page.get_by_label("Hub id or path").fill(str(checkpoint))
    page.get_by_label("Name on this box").fill("second")
    page.get_by_role("button", name="Import").click()
    expect(page.locator(".flash-info")).to_contain_text("it goes on")
    expect(page.locator("#job-stage")).to_contain_text("Building graph")  # live, without a reload
    page.reload()
    expect(page.locator("#job")).to_contain_text(str(checkpoint))
    second = page.locator("#model-second")
    expect(second).to_be_visible()
    expect(page.locator("#job")).to_contain_text("second is installed.")
    assert residents(home) == {bundle.name, "second"}
    page.get_by_role("button", name="Put away").click()
    expect(page.locator("#job")).to_have_count(0)

    expect(second).to_contain_text("has not been measured yet")
    second.get_by_role("button", name="Measure").click()
    expect(second).to_contain_text("Measured")
    made = load_bundle(home.models / "second")
    figures = read_figures(made)
    assert figures is not None
    assert (figures.base_hash, figures.cores, figures.asked) == (made.manifest.base_hash, os.cpu_count(), 25)
    assert figures.passed is not None and 0 <= figures.passed <= 25
    assert 0 < figures.decode < figures.prefill
    assert 0 < figures.first_token < 10
    assert 0 < figures.bits < 20  # random weights, sure of themselves
    expect(second).to_contain_text(f"{figures.decode:,.0f} tokens/s")
    # Of other weights, or of another box: as if nothing had been measured.
    for change in ({"base_hash": "0" * 64}, {"cores": 999}, {"more": 1}):
        (made.path / FIGURES).write_text(json.dumps({**asdict(figures), **change}))
        assert read_figures(made) is None
    (made.path / FIGURES).write_text(json.dumps(asdict(figures)))

    # What is in a manifest came from elsewhere. And one that is damaged can be seen, and deleted.
    manifest = json.loads((made.path / MANIFEST).read_text())
    (made.path / MANIFEST).write_text(json.dumps({**manifest, "source": NASTY, "family": NASTY}))
    (home.models / "damaged").mkdir()
    (home.models / "damaged" / MANIFEST).write_text(json.dumps({"format": NASTY}))
    known = Figures(bundle.manifest.base_hash, time.time(), os.cpu_count() or 1, 2, 800.0, 60.0, 0.05, 18.5,
                    0.93, 24, 25)  # fmt: skip
    (home.models / bundle.name / FIGURES).write_text(json.dumps(asdict(known)))
    page.reload()
    expect(second).to_contain_text(NASTY)
    expect(page.locator("#model-damaged")).to_contain_text("Broken")
    expect(page.get_by_role("table")).to_contain_text("24 of 25")

    second.locator("summary", has_text="Switch to it").click()
    expect(second).to_contain_text("stay aside meanwhile, and come back")
    second.get_by_role("button", name="Serve second").click()
    expect(second).to_contain_text("After a restart")
    notice = page.locator("#restart-notice")
    expect(notice).to_contain_text("model.name")
    for fold in page.locator("main details").all():
        fold.evaluate("element => { element.open = true }")
    check_sound(page, "models")
    assert load_config(home.config).model.name == "second"
    assert "to serve from the next start" in post(daemon, "/models/delete", name="second")

    notice.get_by_role("button", name="Restart now").click()
    expect(page.get_by_role("heading", name="The box restarts")).to_be_visible()
    expect(page.locator(".flash-good")).to_have_text("The box has restarted.")  # it found back by itself
    expect(page).to_have_url(daemon.url + "/models")
    expect(second).to_contain_text("In service")
    expect(page.locator(f"[id='model-{bundle.name}']")).to_contain_text("2 fit, set aside")
    assert daemon.get("/ready").json() == {"status": "ready", "model": "second", "adapter": None}

    # Back again, without scripts.
    plain = open_page(daemon.url + "/models", PHONE, scripts=False)
    original = plain.locator(f"[id='model-{bundle.name}']")
    original.locator("summary", has_text="Switch to it").click()
    original.get_by_role("button", name=f"Serve {bundle.name}").click()
    plain.get_by_role("button", name="Restart now").click()
    expect(plain.get_by_role("heading", name="The box restarts")).to_be_visible()
    expect(plain.locator(".flash-good")).to_have_text("The box has restarted.")
    expect(original).to_contain_text("In service")

    # Deleting asks first.
    plain.locator("#model-second summary", has_text="Delete").click()
    expect(plain.locator("#model-second")).to_contain_text("This frees")
    plain.get_by_role("button", name="Delete second").click()
    expect(plain.locator(".flash-good")).to_contain_text("second is deleted")
    expect(plain.locator("#model-second")).to_have_count(0)
    post(daemon, "/models/delete", name="damaged")
    assert residents(home) == {bundle.name}
    with opened(home) as store:
        acts = [entry.action.removeprefix("console.") for entry in store.audit.list(20)]
    assert acts[::-1] == [
        *("model.import", "model.measure", "settings.save", "model.switch", "restart"),
        *("settings.save", "model.switch", "restart", "model.delete", "model.delete"),
    ]


def test_what_cannot_be_imported(daemon: Daemon, bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    before = residents(daemon.home)
    for source, said in (
        ("", "Say which model"),
        ("nowhere", "is no model"),
        (NASTY, "&lt;script&gt;"),
        ("-x", "is no model"),
        ("a\x00b", "no name of a model"),
        ("x" * 2000, "no name of a model"),
        (str(checkpoint / "config.json"), "is no model"),
    ):
        assert said in post(daemon, "/models/import", source=source), source
    assert "letters, digits" in post(daemon, "/models/import", kind="default", name="../up")
    assert "is here already" in _failure(daemon, source=str(checkpoint), name=bundle.name)
    assert "the hub is out of reach" in _failure(daemon, source="owner/model")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(json.dumps({"model_type": NASTY}))
    failed = _failure(daemon, source=str(strange))
    assert "are not supported" in failed
    assert "<script>alert" not in failed
    # So big that it fits no disk; and nobody reads it to find out.
    big = shutil.copytree(checkpoint, tmp_path / "big")
    os.truncate(big / "model.safetensors", 2 * 10**12)
    failed = _failure(daemon, source=str(big))
    assert re.search(r"The import needs [\d,.]+ GB of disk for a while; .* has [\d.]+ GB", failed)
    assert residents(daemon.home) == before


def _failure(daemon: Daemon, **fields: str) -> str:
    assert "Importing" in post(daemon, "/models/import", **fields)
    page = ended(daemon)
    assert "Failed" in page
    return page


def test_cancelling_leaves_nothing(daemon: Daemon, bundle: Bundle) -> None:
    before = residents(daemon.home)
    assert "could be cancelled" in post(daemon, "/models/cancel")
    post(daemon, "/models/import", kind="default", name="copy")
    deadline = time.monotonic() + 60
    while residents(daemon.home) == before:  # until there is something that could be left
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "is being imported" in post(daemon, "/models/measure", name=bundle.name)
    assert "is being imported" in post(daemon, "/models/import", source="owner/model")
    assert "being cancelled" in post(daemon, "/models/cancel")
    assert "Nothing of it is left." in ended(daemon)
    assert residents(daemon.home) == before


def test_what_is_not_there_or_is_needed(daemon: Daemon, bundle: Bundle) -> None:
    for act in ("measure", "switch", "delete"):
        for name in ("absent", "..", "", NASTY):
            assert "is no model" in post(daemon, f"/models/{act}", name=name).replace("There is no", "is no")
    assert "in service" in post(daemon, "/models/delete", name=bundle.name)
    assert "Nothing was changed" in post(daemon, "/models/switch", name=bundle.name)
    assert residents(daemon.home) == {bundle.name}


def test_a_job_waits_for_a_run_and_ends_with_the_daemon(bundle: Bundle, home: Home) -> None:
    install_bundle(home, bundle)
    running, told = threading.Event(), threading.Event()
    running.set()
    events = EventBus()
    jobs = Jobs(home, Config(), events, wait=running.is_set)
    jobs.start()
    jobs.measure(bundle.name)
    deadline = time.monotonic() + 60
    while jobs.job is None or "Waiting for the run" not in jobs.job.stage:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert jobs.job.state == "waiting"
    events.listen(lambda _: told.set() if jobs.job and jobs.job.stage.startswith("Measuring") else None)
    running.clear()
    assert told.wait(60)
    jobs.stop()
    assert jobs.job.state == "cancelled"
    assert not (home.models / bundle.name / FIGURES).exists()
