"""Every page in a real browser: accessible, narrow and wide, light and dark, live, by keyboard."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from browsing import DESKTOP, FIRST, NASTY, PHONE, SCREENSHOTS, SECOND, opened, violations
from daemons import Daemon
from playwright.sync_api import Page, Route, TimeoutError, expect

from appliance.store.owner import set_password

OpenPage = Callable[..., Page]
PAGES = {"status": "/", "conversation": "/?chat=chatcmpl-shown", "error": "/console/exchange/none"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_sound(
    box: Daemon, open_page: OpenPage, name: str, size: tuple[int, int], scheme: str
) -> None:
    page = open_page(box.url + PAGES[name], size, scheme)
    for fold in page.locator("details").all():
        fold.evaluate("element => { element.open = true }")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{size[0]}-{scheme}.png", full_page=True)


def test_text_of_people_stays_text(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + PAGES["conversation"])
    # What would have run shows as a dialog, and fails the test at its end.
    expect(page.locator("#transcript")).to_contain_text(NASTY)
    expect(page.locator("#review")).to_contain_text(NASTY)
    expect(page.locator("#runs")).to_contain_text(NASTY)
    assert page.locator("img").count() == 0
    page.wait_for_timeout(500)


def test_empty_box(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/?chat=chatcmpl-unknown")
    expect(page.get_by_text("Ask it something.")).to_be_visible()


def test_chat_streams_and_praise_is_learnt(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    page.get_by_label("Message").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    exchange = page.locator(".exchange[id]")
    expect(exchange).to_contain_text("What is the capital of France?")
    # The conversation survives a reload, and goes on from where it was.
    expect(page).to_have_url(re.compile(r"\?chat=chatcmpl-"))
    answer = exchange.locator(".theirs").text_content() or ""
    page.reload()
    expect(exchange.locator(".theirs")).to_have_text(answer)
    exchange.get_by_role("button", name="Good answer").click()
    expect(exchange).to_contain_text("more like this")
    with opened(box.home) as store:
        example = store.examples.list(limit=1)[0]
    assert (example.kind, example.state, example.source) == ("praise", "pending", "console")
    assert example.target
    assert " ".join(example.target.split()) in " ".join(answer.split())
    page.reload()
    expect(exchange.get_by_role("button", name="Good answer")).to_have_count(0)
    page.get_by_label("Message").fill("And of Spain?")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_have_count(2)
    with opened(box.home) as store:
        assert [message["role"] for message in store.completions.recent(1)[0].messages] == [
            "user",
            "assistant",
            "user",
        ]


def test_correction_in_place_weighs_high(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url, PHONE)
    page.get_by_label("Message").fill("What is the name of our cat?")
    page.keyboard.press("Enter")
    exchange = page.locator(".exchange[id]")
    exchange.locator("summary").click()
    field = exchange.get_by_label("What should it have said?")
    expect(field).to_be_visible()
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(exchange.get_by_role("alert")).to_contain_text("the answer it corrects")
    field.fill("Your cat is called Minka.")
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(exchange).to_contain_text("will be learnt in the next run")
    with opened(box.home) as store:
        example = store.examples.list(limit=1)[0]
        rejected = store.examples.rejected_answers("What is the name of our cat?")
    assert (example.kind, example.target, example.weight) == ("correction", "Your cat is called Minka.", 10.0)
    assert len(rejected) == 1


def test_a_note_becomes_a_draft_to_review(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    before = page.locator("#review .review").count()
    page.get_by_label("Message").fill("How many legs does our table have?")
    page.keyboard.press("Enter")
    exchange = page.locator(".exchange[id]")
    exchange.locator("summary").click()
    exchange.get_by_label("Or only say what is wrong").fill("Should be 17")
    exchange.get_by_role("button", name="Send note").click()
    expect(exchange).to_contain_text("drafted for you")
    # The list follows by itself.
    expect(page.locator("#review .review")).to_have_count(before + 1)
    item = page.locator("#review .review").filter(has_text="legs does our table")
    # The model's draft, or the word that there is none, comes by itself too.
    with opened(box.home) as store:
        critique = store.examples.review(limit=1)[0]
        while critique.note is None:
            page.wait_for_timeout(200)
            critique = store.examples.get(critique.id)
    expect(item.get_by_role("textbox")).to_have_value(critique.target or "")
    item.get_by_role("textbox").fill("Our table has 17 legs.")
    item.get_by_role("button", name="Learn this").click()
    expect(page.locator(".flash-good")).to_contain_text("next run")
    expect(page.locator("#review .review")).to_have_count(before)
    with opened(box.home) as store:
        example = store.examples.list("pending", limit=1)[0]
    assert (example.kind, example.target) == ("critique", "Our table has 17 legs.")


def test_stopping_an_answer(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    for _ in range(5):
        page.get_by_label("Message").fill("Write a very long story about the sea.")
        page.keyboard.press("Enter")
        try:
            page.get_by_role("button", name="Stop", exact=True).click(timeout=5000)
            break
        except TimeoutError:  # the answer was there before the hand was, on a busy machine
            expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#transcript")).to_contain_text("(stopped)")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_the_queue_is_followed_live(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    number = page.locator("#overview .big .num")
    before = number.inner_text()
    box.ask("Name a colour.")
    expect(number).not_to_have_text(before)
    # An answer of the test before may have been collected just now too: the page shows what is stored.
    with opened(box.home) as store:
        expect(number).to_have_text(str(store.examples.count("pending")))


def test_updates_leave_alone_what_is_typed_and_opened(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    field = page.locator("#review textarea").first
    field.fill("Half a sentence")
    fold = page.locator("#runs details").last
    fold.locator("summary").click()
    with page.expect_response(re.compile("/console/part/review")):
        box.ask("Name an animal.")
    page.wait_for_timeout(500)
    expect(field).to_have_value("Half a sentence")
    assert fold.evaluate("element => element.open")


def test_what_happened_while_the_page_was_loading_is_shown(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)

    def happen(route: Route) -> None:
        answer = route.fetch()
        with opened(box.home) as store:
            before = store.examples.count("pending")
            box.ask("Name a plant.")
            while store.examples.count("pending") == before:
                time.sleep(0.05)
        route.fulfill(response=answer)  # the page as it was before

    page.route(box.url + "/", happen)
    page.reload()
    with opened(box.home) as store:
        expect(page.locator("#overview .big .num")).to_have_text(str(store.examples.count("pending")))


def test_promote_and_roll_back(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    service = page.locator("#overview article").first
    for name in (FIRST, SECOND):
        page.get_by_role("button", name=f"Promote {name}").click()
        expect(page.locator(".flash-good")).to_contain_text("in service")
        expect(service).to_contain_text(name)
        expect(page.locator(f"#row-{name}")).to_contain_text("In service")
    page.get_by_role("button", name="Roll back").click()
    expect(service).to_contain_text(FIRST)
    page.get_by_role("button", name="Promote the base model").click()
    expect(service).to_contain_text("Base model")
    with opened(box.home) as store:
        assert [switch.to for switch in store.adapters.switches(4)] == [None, FIRST, SECOND, FIRST]
        assert all(switch.actor == "owner" for switch in store.adapters.switches(4))
        assert {entry.action for entry in store.audit.list(4)} == {"adapter.promote"}


def test_by_keyboard_alone(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                # What has the focus shows it.
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid"
                return
        pytest.fail(f"{selector} cannot be reached by Tab")

    tab_to("#chat-message")
    page.keyboard.type("What is the capital of Italy?")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_be_visible()
    page.evaluate("document.querySelector('#transcript').focus()")
    tab_to(".wrong > summary")
    page.keyboard.press("Enter")
    tab_to("textarea[name=correction]")
    page.keyboard.press("Control+A")
    page.keyboard.type("Rome.")
    tab_to(".wrong .primary")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_contain_text("will be learnt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_login_page(daemon: Daemon, open_page: OpenPage, size: tuple[int, int], scheme: str) -> None:
    with opened(daemon.home) as store:
        set_password(store, "correct horse battery")
    page = open_page(daemon.url, size, scheme)
    expect(page).to_have_url(f"{daemon.url}/login")
    assert violations(page) == []
    page.screenshot(path=SCREENSHOTS / f"login-{size[0]}-{scheme}.png", full_page=True)
    page.get_by_label("Password").fill("wrong password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the password.")
    assert violations(page) == []
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Log out")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("status")).to_have_text("You are logged out.")
