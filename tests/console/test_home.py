"""Home: what the box does now, what needs the owner, what happened lately; live."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from browsing import FIRST, NASTY, PHONE, SECOND, check_sound, confirm, opened
from daemons import Daemon
from playwright.sync_api import Page, Route, expect

from appliance.console.acts import in_words
from appliance.store.audit import AuditEntry
from appliance.store.examples import NewExample

OpenPage = Callable[..., Page]


def test_sound(box: Daemon, open_page: OpenPage) -> None:
    with opened(box.home) as store:
        store.audit.add(f"1.2.3.4 {NASTY}", "login.failed", {"address": NASTY})
        store.audit.add("owner", f"something {NASTY}", {"what": NASTY})
    page = open_page(box.url)
    expect(page.locator("#happened")).to_contain_text(f"Something {NASTY}")
    expect(page.locator(".needs")).to_contain_text(f"rejected: because of {NASTY}")
    assert page.locator("main img").count() == 0
    check_sound(page, "home")


def test_what_needs_the_owner_leads_there(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url, PHONE, scripts=False)
    needs = page.locator(".needs")
    expect(needs).to_contain_text("2 drafts to review")
    expect(needs).to_contain_text("Learning by itself is switched off")
    needs.get_by_role("link", name="Review").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Needs review")
    # The way back is in the menu, which opens without scripts.
    page.get_by_text("Menu").click()
    page.locator(".menu").get_by_role("link", name="Home").click()
    expect(page.locator("#home")).to_be_visible()


def test_the_queue_is_followed_live(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    number = page.locator("#home .big .num")
    before = number.inner_text()
    box.ask("Name a colour.")
    expect(number).not_to_have_text(before)
    with opened(box.home) as store:
        expect(number).to_have_text(str(store.examples.count("pending")))


def test_drafts_are_counted_live_in_the_navigation(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url)
    badge = page.locator("#side-review-count")
    expect(badge).to_have_text("2")
    done = box.post(
        "/v1/feedback",
        json={"query": "Who?", "response": "Me.", "rating": "down", "feedback": "no", "weight": "high"},
    )
    assert done.status_code in (200, 202)
    expect(badge).to_have_text("3")
    expect(page.locator(".needs")).to_contain_text("3 drafts")


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
        expect(page.locator("#home .big .num")).to_have_text(str(store.examples.count("pending")))


def test_what_devices_asked_is_drawn(box: Daemon, open_page: OpenPage) -> None:
    box.ask("Name a metal.")
    page = open_page(box.url, PHONE, scripts=False)
    usage = page.locator("#usage")
    expect(usage).to_contain_text(re.compile(r"[1-9]\d* requests?, [1-9]\d* tokens, [\d.]+ tokens a second"))
    requests = usage.get_by_role("img", name=re.compile("Requests by the hour"))
    expect(requests).to_be_visible()
    usage.locator("summary").first.click()
    expect(usage.locator("table").first).to_contain_text("Requests")


def test_roll_back_from_home(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/adapters", scripts=False)
    confirm(page, f"Promote… {FIRST}")
    page.goto(box.url)
    expect(page.locator("#home article").first).to_contain_text(FIRST)
    expect(page.locator(".happened li").first).to_contain_text(f"Put {FIRST} in service")
    # Nothing happens at one click, and first it is told what would.
    page.locator("summary", has_text="Roll back").click()
    asked = page.locator("details.confirm", has_text="Roll back")
    expect(asked).to_contain_text(f"the base model answers, in place of {FIRST}")
    assert box.get("/v1/adapters").json()["current"] == FIRST
    asked.get_by_role("button", name="Yes, roll back").click()
    expect(page.locator(".flash-good")).to_contain_text("Rolled back: the base model is in service")
    expect(page).to_have_url(box.url + "/")
    service = page.locator("#home article").first
    expect(service).to_contain_text("Base model")
    expect(service).to_contain_text(re.compile(rf"Nothing is further back. Until .+ {FIRST} was in service"))
    expect(service.get_by_role("button", name="Roll back")).to_be_disabled()
    # A page that was opened before somebody else switched rolls nothing back.
    own = {"Sec-Fetch-Site": "same-origin"}
    box.post("/adapters/promote", data={"name": FIRST}, headers=own)
    stale = box.post("/adapters/rollback", data={"serving": SECOND}, headers=own, follow_redirects=True)
    assert f"Nothing was rolled back: {FIRST} is in service by now" in stale.text
    assert box.get("/v1/adapters").json()["current"] == FIRST
    box.post("/adapters/rollback", data={"serving": FIRST}, headers=own)
    assert box.get("/v1/adapters").json()["current"] is None


def test_what_changes_the_service_or_destroys_asks_first(box: Daemon) -> None:
    """Every form that does, on every page that has one, stands behind a question."""
    own = {"Sec-Fetch-Site": "same-origin"}
    acts = (
        r"/adapters/(?:promote|rollback|unpin|[^/\"]+/delete)|/models/(?:cancel|delete|switch)|/runs/cancel"
        r"|/backup/(?:tidy|delete|restore)|/playground/forget|/account/sessions|/devices/\w+/(?:revoke|forget)"
    )
    device = box.post("/devices", data={"name": "Lamp"}, headers=own)
    lamp = re.findall(r"/devices/(dev_\w+)", device.text)[0]
    box.post("/backup/make", headers=own)
    box.post("/adapters/promote", data={"name": FIRST}, headers=own)
    box.post("/adapters/pin", data={"name": FIRST}, headers=own)
    paths = ["/", "/adapters", f"/adapters/{FIRST}", f"/adapters/{SECOND}", "/backup", f"/devices/{lamp}"]
    seen, bare = set(), []
    for path in paths:
        page = box.get(path).text
        for form in re.finditer(rf'<form[^>]*action="({acts})"', page):
            before = page[: form.start()]
            if before.count("<details") == before.count("</details>"):
                bare.append(f"{path}: {form[1]}")
            seen.add(form[1].rpartition("/")[2])
    box.post("/adapters/unpin", headers=own)
    box.post("/adapters/promote", data={"name": "base"}, headers=own)
    assert bare == []
    assert seen >= {"promote", "rollback", "unpin", "delete", "revoke", "forget"}


def test_an_empty_box(daemon: Daemon, open_page: OpenPage) -> None:
    # The module's box has a past by now; what matters is that a page of nothing is not an error.
    page = open_page(daemon.url + "/audit?search=nobody-ever-did-this")
    expect(page.get_by_text("Nobody has done anything of the kind.")).to_be_visible()


def test_acts_in_words() -> None:
    def words(action: str, **detail: object) -> str:
        return in_words(AuditEntry(0.0, "owner", action, detail, 1))

    assert words("login") == "Logged in"
    assert words("adapter.promote", to="B", **{"from": None}) == "Put B in service, after the base model"
    assert words("examples.forget", examples=1, adapters=["A"]) == "Forgot 1 example; A had learned from it"
    assert words("console.some_act", address="::1", name="x") == "Some act: name x"
    assert words("settings.save") == "Changed the settings"
    assert words("settings.save", keys=5) == "Settings save: keys 5"  # not as it should be: no error


def test_a_long_queue(box: Daemon, open_page: OpenPage) -> None:
    with opened(box.home) as store:
        for number in range(130):
            store.examples.add(
                NewExample(
                    kind="automatic", query=f"q{number}", response="a", target="a", weight=1.0, messages=[]
                )
            )
    page = open_page(box.url)
    progress = page.get_by_role("progressbar", name="Examples in the queue")
    assert progress.evaluate("bar => bar.value") == 100  # full, however many there are
