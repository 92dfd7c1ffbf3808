"""Health: what the doctor finds on a running box, in a browser, with scripts and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from browsing import NASTY, PHONE, check_sound
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.console.render import commands

OpenPage = Callable[..., Page]


def test_a_quick_look_when_the_page_is_opened(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/doctor", PHONE, scripts=False)
    expect(page.get_by_role("heading", level=1)).to_have_text("Health")
    expect(page.locator("#doctor")).to_contain_text("A quick look")
    expect(page.locator("#doctor")).to_contain_text("healthy and ready")
    expect(page.locator("#doctor .chip-bad")).to_have_count(0)
    page.goto(daemon.url + "/doctor/whole")  # there was none yet
    expect(page).to_have_url(daemon.url + "/doctor")


def test_everything_is_looked_at_without_scripts(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/doctor", scripts=False)
    page.get_by_role("button", name="Look at everything").click()
    expect(page).to_have_url(daemon.url + "/doctor/whole")
    for _ in range(600):
        if page.get_by_text("Everything was looked at").is_visible():
            break
        page.wait_for_timeout(200)
        page.reload()
    expect(page.locator("#doctor")).to_contain_text("all files have their hash")
    expect(page.locator("#doctor")).to_contain_text("pages, indexes and references are sound")
    page.get_by_role("link", name="Look again quickly").click()
    expect(page.locator("#doctor")).to_contain_text("A quick look")
    page.get_by_role("link", name="what was found then").click()
    expect(page.locator("#doctor")).to_contain_text("all files have their hash")


def test_what_is_wrong_is_said_with_its_fix(daemon: Daemon, open_page: OpenPage) -> None:
    home = daemon.home
    home.current.symlink_to("gone.safetensors")
    home.config.write_text(home.config.read_text() + "\n[train]\nbackend = 'ort'\nort_python = '/x'\n")
    home.root.chmod(0o755)
    try:
        page = open_page(daemon.url + "/doctor")
        wrong = page.locator("#doctor section").first
        expect(wrong).to_contain_text("to look after")
        expect(wrong.locator(".chip-bad")).not_to_have_count(0)
        expect(wrong).to_contain_text("'gone', which is gone")
        expect(wrong.locator("code").filter(has_text="shammah adapters rollback")).to_be_visible()
        expect(wrong.locator("code").filter(has_text=f"chmod 700 {home.root}")).to_be_visible()
        check_sound(page, "health")
        # Everything is followed live, from the press of the button on.
        page.get_by_role("button", name="Look at everything").click()
        expect(page.locator("#doctor")).to_contain_text("Everything was looked at")
        # Home says so, and leads there.
        page.goto(daemon.url)
        need = page.locator(".needs .need-bad").filter(has_text="wrong with the box")
        expect(need).to_be_visible()
        need.get_by_role("link").click()
        expect(page).to_have_url(daemon.url + "/doctor")
    finally:
        home.current.unlink()
        home.root.chmod(0o700)
        home.config.write_text("[lora]\nenabled = false\n")
    page.get_by_role("link", name="Look again quickly").click()
    expect(page.locator("#doctor .chip-bad")).to_have_count(0)
    page.goto(daemon.url)
    expect(page.locator(".needs")).not_to_contain_text("wrong with the box")


def test_commands_are_marked_and_nothing_else() -> None:
    assert commands("Do `rm <x>`, or not.") == "Do <code>rm &lt;x&gt;</code>, or not."
    assert NASTY not in commands(f"`{NASTY}` {NASTY}")


def test_a_hostile_name_is_text(daemon: Daemon, open_page: OpenPage, tmp_path: Path) -> None:
    other = daemon.home.models / "x-onerror-alert"
    other.mkdir()
    (other / "manifest.json").write_text(f'{{"format": "{NASTY.replace(chr(34), "")}"}}')
    page = open_page(daemon.url + "/doctor", scripts=False)
    expect(page.locator("#doctor")).to_contain_text("<script>alert(1)</script>")
    assert page.locator("main img").count() == 0
    (other / "manifest.json").unlink()
    other.rmdir()
