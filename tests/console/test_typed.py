"""What was typed is not lost: when the session ends, when the box is away, when one goes back and forward."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from browsing import opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.store.owner import end_session, set_password

OpenPage = Callable[..., Page]
PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}
COOKIE = "shammah_session"


@pytest.fixture(scope="module")
def owned(daemon: Daemon) -> Iterator[Daemon]:
    """The module's box, with a password and a device."""
    with opened(daemon.home) as store:
        set_password(store, PASSWORD)
        store.keys.create("Lamp")
    yield daemon


@pytest.fixture
def log_in(owned: Daemon, open_page: OpenPage) -> Callable[..., Page]:
    """`log_in(path)`: the owner's browser, on that page."""

    def open_(path: str, *, scripts: bool = True) -> Page:
        page = open_page(f"{owned.url}{path}", scripts=scripts)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url(f"{owned.url}{path}")
        return page

    return open_


def end(box: Daemon, page: Page) -> None:
    """The session of this browser ends on the box, as after its hours."""
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == COOKIE)
    with opened(box.home) as store:
        end_session(store, token)


def answer_dialog(page: Page, password: str = PASSWORD) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Password of the owner").fill(password)
    dialog.get_by_role("button", name="Log in").click()


def test_a_message_survives_the_end_of_the_session(owned: Daemon, log_in: Callable[..., Page]) -> None:
    page = log_in("/playground")
    page.get_by_label("Message").fill("What is the capital of Spain?")
    end(owned, page)
    # The live connection notices by itself; the page stays, and nothing is asked twice.
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page).to_have_url(f"{owned.url}/playground")
    page.get_by_role("dialog").get_by_role("button", name="Later").click()
    expect(page.locator("#logged-out")).to_be_visible()
    expect(page.get_by_label("Message")).to_have_value("What is the capital of Spain?")
    page.get_by_label("Message").press("Enter")
    answer_dialog(page)
    expect(page.locator(".exchange[id]")).to_contain_text("What is the capital of Spain?")
    expect(page.locator("#logged-out")).to_be_hidden()


def test_a_form_goes_through_after_the_login_in_place(owned: Daemon, log_in: Callable[..., Page]) -> None:
    with opened(owned.home) as store:
        lamp = store.keys.list()[0]
    page = log_in(f"/devices/{lamp.id}")
    page.get_by_label("Requests a minute").fill("17")
    end(owned, page)
    page.get_by_role("button", name="Save").click()
    answer_dialog(page, "not the password")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("not the password")
    answer_dialog(page)
    expect(page.locator(".flash-good")).to_contain_text("Saved")
    with opened(owned.home) as store:
        assert store.keys.get(lamp.id).rate == 17


def test_a_reload_leads_over_the_login_back_to_what_was_typed(
    owned: Daemon, log_in: Callable[..., Page]
) -> None:
    page = log_in("/settings/lora")
    page.locator("#in-lora-auto_train_threshold").fill("123")
    page.locator("#in-lora-enabled").check()
    page.goto(f"{owned.url}/account")
    page.get_by_label("New password").fill("a secret of mine")
    page.goto(f"{owned.url}/settings/lora")
    expect(page.locator("#in-lora-auto_train_threshold")).to_have_value(
        "100"
    )  # left by oneself: nothing comes back
    page.locator("#in-lora-auto_train_threshold").fill("123")
    page.locator("#in-lora-enabled").check()
    page.locator("#in-lora-high_weight").press("Tab")
    end(owned, page)
    page.reload()
    expect(page).to_have_url(re.compile("/login"))
    stored = page.evaluate("JSON.stringify(sessionStorage)")
    assert "123" in stored
    assert "secret of mine" not in stored
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{owned.url}/settings/lora")
    expect(page.locator("#in-lora-auto_train_threshold")).to_have_value("123")
    expect(page.locator("#in-lora-enabled")).to_be_checked()
    page.get_by_role("button", name="Look at the changes").click()
    expect(page.locator("main")).to_contain_text("123")

    # Forward to a preview shows it again.
    page.go_back()
    expect(page.locator("#in-lora-auto_train_threshold")).to_be_visible()
    page.go_forward()
    expect(page.locator("main")).to_contain_text("Nothing is saved yet")
    page.reload()
    expect(page.locator("main")).to_contain_text("123")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("Saved")
    assert "123" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_without_scripts_the_login_page_keeps_the_form(owned: Daemon, log_in: Callable[..., Page]) -> None:
    page = log_in("/devices", scripts=False)
    page.get_by_label("Name").fill("Küche <b>2</b>")
    end(owned, page)
    page.get_by_role("button", name="Make its key").click()
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    page.get_by_label("Password").fill("wrong wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Send it again").click()
    expect(page.locator("#key")).to_contain_text("sk-shammah-")
    with opened(owned.home) as store:
        assert store.keys.list()[-1].name.startswith("Küche <b>2</b>")


def test_a_page_with_nothing_typed_goes_to_the_login_and_comes_back(
    owned: Daemon, log_in: Callable[..., Page]
) -> None:
    page = log_in("/runs?state=failed")
    end(owned, page)
    expect(page).to_have_url(f"{owned.url}/login?next=%2Fruns%3Fstate%3Dfailed")
    page.get_by_label("Password").fill("wrong wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not the password")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{owned.url}/runs?state=failed")


@pytest.mark.parametrize(
    ("wanted", "to"),
    [
        ("/queue?state=all&q=a%20b", "/queue?state=all&q=a%20b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("/\r\nSet-Cookie: a=b", "/"),
        ("javascript:alert(1)", "/"),
        ("https://evil.example/", "/"),
        ("evil.example", "/"),
        ("/%2f%2fevil.example", "/%2f%2fevil.example"),  # a path of this box to every browser
        ("/a\\..\\..\\evil", "/"),
        ("/ /evil.example", "/"),
        ("/é", "/"),
        ("/login?next=//evil.example", "/"),
        ("/logout", "/"),
        ("/console/events", "/"),
        ("/" + "x" * 5000, "/"),
        ("", "/"),
    ],
)
def test_the_way_back_stays_on_the_box(owned: Daemon, wanted: str, to: str) -> None:
    done = httpx.post(
        f"{owned.url}/login", data={"password": PASSWORD, "next": wanted}, headers=OWN, timeout=60
    )
    assert (done.status_code, done.headers["Location"]) == (303, to)
    cookies = {COOKIE: done.cookies[COOKIE]}
    again = httpx.get(f"{owned.url}/login", params={"next": wanted}, cookies=cookies, timeout=60)
    assert (again.status_code, again.headers["Location"]) == (303, to)


def test_a_lost_connection_is_told_and_nothing_typed_is_lost(
    owned: Daemon, log_in: Callable[..., Page]
) -> None:
    page = log_in("/devices")
    # Whether the banner showed while one only went from page to page.
    page.add_init_script(
        "new MutationObserver(() => sessionStorage.setItem('lost', 'shown'))"
        ".observe(document, {subtree: true, attributes: true, attributeFilter: ['data-lost']})"
    )
    for section in ("Runs", "Queue", "Home", "Adapters", "Devices"):
        page.locator(".side").get_by_role("link", name=section).click()
    expect(page.get_by_label("Name")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('lost')") is None
    page.get_by_label("Name").fill("Radio")
    owned.stop()
    expect(page.locator("#lost")).to_contain_text("cannot be reached")
    expect(page.locator("#devices")).to_have_css("opacity", "0.55")
    page.get_by_role("button", name="Make its key").click()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("Radio")
    owned.start()
    with opened(owned.home) as store:
        store.keys.create("Made meanwhile")
    expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#devices")).to_contain_text("Made meanwhile")  # what is shown is new again
    page.get_by_role("button", name="Make its key").click()
    expect(page.locator("main")).to_contain_text("The key of Radio")
