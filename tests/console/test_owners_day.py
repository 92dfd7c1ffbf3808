"""Everything an owner must be able to do, in a browser that runs no script, on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browsing import FIRST, PHONE, confirm, give_past, opened
from daemons import StartDaemon
from playwright.sync_api import Page, expect

from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

CONFIG = """
[lora]
auto_train_threshold = 1000
[model]
default_max_tokens = 40
[train]
nice = 0
epochs = 1
[resources]
max_load_per_core = 1000
min_free_memory_mb = 0
"""


@pytest.mark.slow
def test_the_owners_day(start_daemon: StartDaemon, bundle: Bundle, open_page: Callable[..., Page]) -> None:
    box = start_daemon(CONFIG)
    give_past(box.home, bundle)
    with opened(box.home) as store:
        set_password(store, "correct horse battery")
    page = open_page(box.url, PHONE, scripts=False)
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()

    def go(section: str) -> None:
        page.locator(".menu > summary").click()
        page.locator(".menu").get_by_role("link", name=section).click()

    go("Playground")
    page.get_by_label("Message").fill("Who waters the plants?")
    page.get_by_role("button", name="Send").click()
    exchange = page.locator(".exchange")
    expect(exchange).to_contain_text("Who waters the plants?")
    exchange.locator(".wrong > summary").click()
    exchange.get_by_label("What should it have said?").fill("Aunt Rosa waters the plants.")
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(page.locator(".flash-good")).to_contain_text("high weight")
    expect(exchange).to_contain_text("will be learned in the next run")

    go("Needs review")
    review = page.locator("#review .review").first
    review.get_by_role("textbox").fill("The spare key hangs in the shed.")
    review.get_by_role("button", name="Learn this").click()
    expect(page.locator(".flash-good")).to_contain_text("learned in the next run")

    go("Home")
    page.get_by_role("button", name="Train now").click()
    expect(page.locator(".flash-good")).to_contain_text("on its way")
    expect(page.locator("#home")).to_contain_text("Run in progress")
    page.get_by_text("Stop this run").click()
    page.get_by_role("button", name="Yes, stop it").click()
    expect(page.locator(".flash-good")).to_contain_text("being stopped")

    go("Adapters")
    confirm(page, f"Promote… {FIRST}")
    expect(page.locator(".flash-good")).to_contain_text(f"{FIRST} is in service")
    go("Home")
    expect(page.locator("#home article").first).to_contain_text(FIRST)
    confirm(page, "Roll back")
    expect(page.locator(".flash-good")).to_contain_text("Rolled back")
    expect(page.locator("#home article").first).to_contain_text("Base model")

    page.locator(".menu > summary").click()
    page.locator(".menu").get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Password")).to_be_visible()
