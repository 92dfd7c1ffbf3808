"""The whole way in a browser, first run to rollback, with the real trainer; on a phone, then at a desk."""

from __future__ import annotations

import re
from collections.abc import Callable

import openai
import pytest
from browsing import DESKTOP, PHONE, confirm, opened
from daemons import Daemon, StartDaemon
from playwright.sync_api import Page, expect

PASSWORD = "correct horse battery"
# A small run, judged by the real gate with limits that a small run keeps: what counts here is the way.
CONFIG = """
[lora]
auto_train_threshold = 1000
[model]
default_max_tokens = 24
[train]
nice = 0
epochs = 2
layers = 0.1
rank = 4
anchor_weight = 0
drift_weight = 0
[gate]
max_perplexity_rise = 9
max_probe_drop = 99
max_heldout_rise = 99
min_taught = 0
min_recall = 0
[resources]
max_load_per_core = 1000
min_free_memory_mb = 0
"""
SECTIONS = ("Playground", "Queue", "Needs review", "Runs", "Adapters", "Devices", "Models", "Settings")
TABS = ("History", "Backup", "Logs", "Audit trail", "Health")


def set_up(page: Page, box: Daemon) -> str:
    """From the link in the log to the first device's key."""
    page.goto(re.findall(r"Set up this box: (http://\S+)", box.log)[-1])
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_label("Name of the box").fill("Walking box")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Name of the device").fill("Phone")
    page.get_by_role("button", name="Make its key").click()
    key = page.locator("#key").inner_text()
    page.goto(box.url)
    expect(page.locator(".brand")).to_contain_text("Walking box")
    return key


def look_around(page: Page) -> None:
    """Every section and tab by its link in the navigation; none fails, none is wider than the screen."""
    wide = page.viewport_size
    assert wide is not None
    menu = page.locator(".menu > summary")
    folded = menu.is_visible()  # of this screen, once: between two pages nothing is visible
    for section in (*SECTIONS, "Home"):
        if folded:
            menu.click()
        page.locator(".sections:visible").get_by_role("link", name=section).click()
        marked = page.locator(".sections [aria-current=page]").filter(has_text=section)
        expect(marked.first).to_be_attached()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= wide["width"], section
        if section == "Settings":
            for tab in TABS:
                page.locator(".tabs").get_by_role("link", name=tab).click()
                expect(page.locator(".tabs [aria-current=page]")).to_have_text(tab)
                assert page.evaluate("document.documentElement.scrollWidth") <= wide["width"], tab


@pytest.mark.slow
def test_first_run_to_rollback(start_daemon: StartDaemon, open_page: Callable[..., Page]) -> None:
    box = start_daemon(CONFIG)
    page = open_page(box.url, PHONE, "dark")
    key = set_up(page, box)
    look_around(page)

    # A device asks, as devices do. The owner sees what came of it, and corrects an answer of his own.
    client = openai.OpenAI(base_url=f"{box.url}/v1", api_key=key, max_retries=0)
    for question in ("Name a colour.", "Name an animal.", "Name a town in Italy."):
        client.chat.completions.create(
            model="shammah", messages=[{"role": "user", "content": question}], max_tokens=16
        )
    with opened(box.home) as store:
        while store.examples.count("pending") < 3:
            page.wait_for_timeout(100)
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    page.goto(f"{box.url}/queue")
    expect(page.locator("main")).to_contain_text("Name a town in Italy.")
    expect(page.locator("main")).to_contain_text("Phone")
    page.goto(f"{box.url}/playground")
    page.get_by_label("Message").fill("Who waters the plants?")
    page.keyboard.press("Enter")
    exchange = page.locator(".exchange[id]")
    exchange.locator(".wrong > summary").click()
    exchange.get_by_label("What should it have said?").fill("Aunt Rosa waters the plants.")
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(exchange).to_contain_text("will be learned in the next run")

    # It learns, before one's eyes, and what it learned comes into service by itself.
    page.goto(box.url)
    page.get_by_role("button", name="Train now").click()
    expect(page.locator("#home")).to_contain_text("Run in progress")
    expect(page.locator("#home")).to_contain_text("On probation until", timeout=600_000)
    expect(page.locator("#happened")).to_contain_text("was put in service")
    with opened(box.home) as store:
        run, adapter = store.runs.list(1)[0], store.adapters.switches(1)[0].to
    assert (run.state, run.adapter) == ("promoted", adapter)
    page.goto(f"{box.url}/runs/{run.id}")
    expect(page.get_by_role("img", name=re.compile("[Ll]oss"))).to_be_visible()
    expect(page.locator("table.gate")).to_contain_text("Passed")
    page.goto(f"{box.url}/adapters")
    expect(page.locator(f"#row-{adapter}")).to_contain_text("In service")
    look_around(page)

    # And back.
    page.goto(box.url)
    confirm(page, "Roll back")
    expect(page.locator(".flash-good")).to_contain_text("the base model is in service")
    assert box.get("/ready").status_code == 200
    with opened(box.home) as store:
        assert store.adapters.switches(1)[0].to is None
        actions = {entry.action for entry in store.audit.list(100)}
    assert {"console.setup.password", "console.key.created", "console.train", "adapter.promote"} <= actions
