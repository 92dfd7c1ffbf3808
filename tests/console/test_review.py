"""The inbox of drafted corrections: learn, edit, drop, forget; page by page, live."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from browsing import NASTY, PHONE, check_sound, opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.console.review import SHOWN
from appliance.store import Store
from appliance.store.example import DRAFT_NOTE, Example
from appliance.store.examples import NewExample

OpenPage = Callable[..., Page]
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def store(box: Daemon) -> Iterator[Store]:
    with opened(box.home) as store:
        yield store


def add(store: Store, query: str, target: str | None = None) -> Example:
    return store.examples.add(
        NewExample(
            kind="critique",
            query=query,
            response="Nobody.",
            target=target,
            weight=3.0,
            messages=[{"role": "user", "content": query}],
            feedback="Wrong!",
            state="pending" if target else "review",
            note=f"{DRAFT_NOTE} by the model" if target else "The draft was not good, it is empty: ",
        )
    )


def test_sound(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/review")
    expect(page.locator(".review").first).to_contain_text(NASTY)
    assert page.locator("img").count() == 0
    check_sound(page, "review")


def test_decisions_without_scripts(box: Daemon, store: Store, open_page: OpenPage) -> None:
    drafted, bare, unwanted = add(store, "Who sings?", "Rosa."), add(store, "Who waters?"), add(store, "Who?")
    page = open_page(box.url + "/review", PHONE, scripts=False)

    page.locator(f"#{drafted.id}").get_by_role("button", name="Learn this").click()
    expect(page.locator(".flash-good")).to_contain_text("learned in the next run")
    now = store.examples.get(drafted.id)
    assert (now.state, now.target, now.note) == ("pending", "Rosa.", "reviewed")
    field = page.locator(f"#{bare.id}").get_by_role("textbox")
    for wrong, message in (("", "Write the answer"), ("nobody", "the answer that was rejected")):
        field.fill(wrong)
        page.locator(f"#{bare.id}").get_by_role("button", name="Learn this").click()
        expect(page.get_by_role("alert")).to_contain_text(message)
    field.fill("Aunt Rosa.\nAlways.")
    page.locator(f"#{bare.id}").get_by_role("button", name="Learn this").click()
    assert store.examples.get(bare.id).target == "Aunt Rosa.\nAlways."
    page.locator(f"#{unwanted.id}").get_by_role("button", name="Drop").click()
    expect(page.locator(".flash-good")).to_contain_text("Dropped")
    assert store.examples.get(unwanted.id).state == "excluded"
    assert (
        store.examples.is_rejected("Who?", "Nobody.") is False
    )  # nobody had said so: it was put there by hand
    assert [entry.detail["accepted"] for entry in store.audit.list(3)] == [False, True, True]
    expect(page.locator(f"#{unwanted.id}")).to_have_count(0)


def test_forgetting_asks_first_and_comes_back(box: Daemon, store: Store, open_page: OpenPage) -> None:
    secret = add(store, "Where is the xylophone of Aunt Rosa?")
    page = open_page(box.url + "/review", scripts=False)
    page.locator(f"#{secret.id}").get_by_role("link", name="Forget").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Forget 1 example?")
    expect(page.locator("main")).to_contain_text("No adapter has learned from it")
    page.get_by_role("link", name="Leave as it is").click()
    page.locator(f"#{secret.id}").get_by_role("link", name="Forget").click()
    page.get_by_role("button", name="Forget").click()
    expect(page.locator(".flash-good")).to_contain_text("its text is on this box no more")
    expect(page).to_have_url(box.url + "/review")
    assert store.forgotten.known([secret.id]) == {secret.id}


def test_what_is_no_decision_drops_nothing(box: Daemon, store: Store) -> None:
    example = add(store, "Who decides?")
    with httpx.Client(base_url=box.url, headers=OWN, timeout=60, follow_redirects=True) as client:
        for decision in ("", "burn"):
            answer = client.post("/review", data={"id": example.id, "decision": decision})
            assert "A decision is accept or drop" in answer.text
        assert "ex_none" in client.post("/review", data={"id": "ex_none", "decision": "drop"}).text
    assert store.examples.get(example.id).state == "review"


def test_pages_of_many_follow_live_without_losing_what_is_typed(
    box: Daemon, store: Store, open_page: OpenPage
) -> None:
    for number in range(2 * SHOWN):
        add(store, f"Question {number}?")
    total = store.examples.review_count()
    page = open_page(box.url + "/review")
    items = page.locator(".review")
    expect(page.locator("#review-title")).to_contain_text(f"{total} waiting for you")
    expect(page.locator(".pager")).to_contain_text(f"1\u2013{SHOWN} of {total}")
    page.get_by_role("link", name="Older").click()
    expect(items).to_have_count(SHOWN)
    expect(items.first).to_contain_text(f"Question {SHOWN - 1}?")
    field = items.nth(3).get_by_role("textbox")
    field.fill("Half a sentence")
    with page.expect_response(re.compile(r"/review/part\?page=2")):
        box.ask("Name an animal.")
    expect(field).to_have_value("Half a sentence")
    expect(page.locator(".pager")).to_contain_text(f"{SHOWN + 1}\u2013")
    page.get_by_role("link", name="Newer").click()
    expect(items.first).to_contain_text(f"Question {2 * SHOWN - 1}?")
    page.goto(box.url + "/review?page=999999")
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    expect(items.first).to_be_visible()
    assert box.get("/review?page=x").status_code == 400
