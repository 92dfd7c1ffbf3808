"""Pages for people of any language: where a text begins, how a date looks, whose day a day is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from browsing import opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.store.examples import NewExample

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
