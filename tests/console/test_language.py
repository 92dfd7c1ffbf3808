"""Pages for people of any language: where a text begins, how a date looks, whose day a day is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from browsing import opened
from daemons import Daemon
from playwright.sync_api import Browser, Page, expect

from appliance.store.examples import NewExample
from appliance.store.usage import KEYLESS, UsagePoint

OpenPage = Callable[..., Page]
RTL = "מתי אוספים את הפח?"
# Every element whose own text has it, with the direction it is shown in.
DIRECTIONS = """text => {
  const found = [], walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const box = node.parentElement;
    if (!node.data.includes(text) || box.closest("option, template, .visually-hidden")) continue;
    found.push([box.outerHTML.slice(0, 120), getComputedStyle(box).direction]);
  }
  for (const field of document.querySelectorAll("main input, main textarea"))
    if (field.value.includes(text) && field.type !== "hidden")
      found.push([field.outerHTML.slice(0, 120), getComputedStyle(field).direction]);
  return found;
}"""


@pytest.fixture(scope="module")
def spoken(daemon: Daemon) -> Iterator[tuple[Daemon, list[str]]]:
    """The module's box, in which everything is said from right to left; and the pages that show it."""
    with opened(daemon.home) as store:
        device, _ = store.keys.create(RTL)
        made = {}
        for state, target in (("pending", RTL), ("review", RTL)):
            made[state] = store.examples.add(
                NewExample(
                    kind="critique",
                    query=RTL,
                    response=RTL,
                    target=target,
                    weight=1.0,
                    messages=[{"role": "user", "content": RTL}],
                    feedback=RTL,
                    device=device.id,
                    state=state,  # type: ignore[arg-type]
                    note=RTL,
                )
            )
        run = store.runs.create("person", 1)
        answer = {"question": RTL, "before": RTL, "after": RTL, "expected": RTL}
        check = {"name": "x", "title": "X", "passed": True, "detail": RTL, "measured": 1.0, "reference": 1.0}
        report = {"passed": False, "summary": RTL, "checks": [check | {"limit": 1.0}], "answers": [answer]}
        store.runs.update(run.id, state="rejected", ended=time.time(), report=report, reason=RTL)
        store.completions.record(
            id="chatcmpl-spoken",
            created=time.time(),
            device=None,
            model="m",
            adapter=None,
            query=RTL,
            response=RTL,
            messages=[{"role": "user", "content": RTL}],
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
        )
        ident = made["pending"].id
    paths = ["/queue?state=all", f"/queue/{ident}", "/review", f"/devices/{device.id}", "/devices", "/runs"]
    paths += [f"/runs/{run.id}", "/playground?chat=chatcmpl-spoken", f"/queue/act?act=forget&id={ident}"]
    yield daemon, paths


def test_a_text_from_right_to_left_begins_at_the_right(
    spoken: tuple[Daemon, list[str]], open_page: OpenPage
) -> None:
    box, paths = spoken
    page, wrong, seen = open_page(box.url), [], 0
    for path in paths:
        page.goto(f"{box.url}{path}")
        found = page.evaluate(DIRECTIONS, RTL)
        seen += len(found)
        wrong += [f"{path}: {element}" for element, direction in found if direction != "rtl"]
        assert found, (path, page.locator("main").inner_text())
    assert wrong == []
    assert seen > 25
    # As one types, and in what a script makes.
    page.goto(f"{box.url}/playground")
    field = page.get_by_label("Message")
    field.fill(RTL)
    assert field.evaluate("field => getComputedStyle(field).direction") == "rtl"
    field.press("Enter")
    expect(page.locator("[data-question]")).to_have_css("direction", "rtl")
    expect(page.locator(".exchange[id] [data-question]")).to_have_css("direction", "rtl")
    assert (
        page.evaluate(
            "document.querySelector('#exchange-template').content.querySelector('[data-answer]').dir"
        )
        == "auto"
    )
    page.get_by_label("Message").fill("From left to right")
    expect(page.get_by_label("Message")).to_have_css("direction", "ltr")


# Every moment shown, and the day and month that the viewer's language and zone make of it.
MOMENTS = """() => [...document.querySelectorAll("main time:not([data-style=ago])")].map((time) => {
  const parts = new Intl.DateTimeFormat("de-DE", { day: "numeric", month: "short" });
  return [time.textContent, parts.format(new Date(time.dateTime)), time.dataset.style];
})"""


def test_dates_are_in_the_viewers_language_and_days_in_the_viewers_zone(
    spoken: tuple[Daemon, list[str]], browser: Browser
) -> None:
    box, paths = spoken
    here = ZoneInfo("America/Los_Angeles")
    # Three in the morning of a day in UTC is the evening before in California.
    moment = (datetime.now(UTC) - timedelta(days=5)).replace(hour=3, minute=0, second=0, microsecond=0)
    evening = moment.astimezone(here)
    assert evening.date() != moment.date()
    with opened(box.home) as store:
        store.usage.add([(KEYLESS, UsagePoint(moment.timestamp(), requests=3, prompt_tokens=8))])
    context = browser.new_context(locale="de-DE", timezone_id="America/Los_Angeles")
    page = context.new_page()
    page.goto(f"{box.url}/account")  # whatever page comes first tells the zone
    styles, wrong = set(), []
    for path in [*paths, "/devices/this-machine", "/audit", "/models", "/logs", "/"]:
        page.goto(f"{box.url}{path}")
        for text, wanted, style in page.evaluate(MOMENTS):
            styles.add(style)
            if wanted not in text or "UTC" in text:
                wrong.append(f"{path}: {text} is not {wanted}")
    assert wrong == []
    assert styles >= {"short", "full", "day", "exact"}
    page.goto(f"{box.url}/devices/this-machine")
    chart = page.locator("figure").filter(has_text="Requests by the day")
    labels = chart.locator(".y-labels span").all_inner_texts()
    assert labels
    assert all(re.fullmatch(r"\d+", label) for label in labels), labels
    chart.locator("summary").click()
    told = page.evaluate(
        "at => new Intl.DateTimeFormat('de-DE', {day: 'numeric', month: 'short'}).format(at)",
        evening.timestamp() * 1000,
    )
    expect(chart.get_by_role("row").filter(has_text=told)).to_contain_text("3")
    context.close()


@pytest.mark.parametrize("zone", ["", "Europe", "../../etc/passwd", "Nowhere/City", "x" * 500, "%FF"])
def test_a_zone_that_is_none_is_utc(spoken: tuple[Daemon, list[str]], zone: str) -> None:
    box, _ = spoken
    cookie = {"Cookie": f"shammah-zone={zone}"}
    answer = box.get("/devices/this-machine", headers=cookie)
    assert answer.status_code == 200
    assert "Day (UTC)" in answer.text
    assert (
        "Day (UTC)"
        not in box.get("/devices/this-machine", headers={"Cookie": "shammah-zone=Asia%2FKolkata"}).text
    )
