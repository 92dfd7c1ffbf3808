"""Two adapters side by side: both stream, what differs is marked, and to prefer one teaches that one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from browsing import DESKTOP, NASTY, check_sound, opened
from daemons import Daemon, accept_adapter
from playwright.sync_api import Page, expect

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.console.compare import MARKED_WORDS, differences
from appliance.model.bundle import Bundle
from appliance.store.adapters import AdapterRow

OpenPage = Callable[..., Page]
ONE, OTHER = "adapter_20261118T080000Z", "adapter_20261119T080000Z"


@pytest.fixture(scope="module")
def box(daemon: Daemon, bundle: Bundle) -> Daemon:
    accept_adapter(daemon.home, bundle, ONE, seed=1, only="q_proj")
    accept_adapter(daemon.home, bundle, OTHER, seed=2, only="q_proj")
    return daemon


@pytest.fixture
def post(box: Daemon) -> Iterator[Callable[..., httpx.Response]]:
    """Posts a form as a page of the box would."""
    with httpx.Client(base_url=box.url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=60) as client:
        yield lambda path="", **form: client.post(f"/playground/compare{path}", data=form)


def ids(answer: httpx.Response) -> tuple[str, str]:
    assert answer.status_code == 303, answer.text
    found = re.findall(r"(?:first|second)=(chatcmpl-\w+)", answer.headers["location"])
    return found[0], found[1]


def test_only_the_base_model(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/playground/compare")
    expect(page.get_by_text("There is only the base model as yet")).to_be_visible()


def test_both_stream_at_once_and_the_better_one_is_praised(box: Daemon, open_page: OpenPage) -> None:
    for one in (ONE, OTHER):  # whose weights are not ready yet would begin when the other has ended
        box.ask("Hello.", model=f"shammah:{one}", max_tokens=1, store=False)
    page = open_page(f"{box.url}/playground/compare?left={ONE}&right={OTHER}&max_tokens=80&temperature=1")
    # What came in which order, as the page saw it.
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(changes => changes.forEach(change => {
            const answer = change.target.closest?.('[data-answer]');
            if (answer) seen.push([...document.querySelectorAll('[data-answer]')].indexOf(answer));
        })).observe(document.querySelector('#answers'), { childList: true, subtree: true }) }"""
    )
    page.locator("#compare-prompt").fill("Tell me all you know about the sea.")
    page.keyboard.press("Enter")
    sides = page.locator(".side-answer[id]")
    expect(sides).to_have_count(2)
    seen = page.evaluate("seen")
    last_of_first_to_end = min(max(i for i, side in enumerate(seen) if side == which) for which in (0, 1))
    assert set(seen[: last_of_first_to_end + 1]) == {0, 1}
    with opened(box.home) as store:
        right, left = sorted(store.completions.recent(2), key=lambda one: one.adapter or "", reverse=True)
        assert store.completions.conversations() == []
    assert (left.adapter, right.adapter) == (ONE, OTHER)
    assert left.response != right.response
    expect(sides.nth(0).locator("[data-copied]")).to_have_text(left.response, use_inner_text=True)
    expect(page).to_have_url(re.compile(f"first={left.id}&second={right.id}"))
    # Changing sides shows the same answers, and asks for no others.
    page.get_by_role("button", name="Change sides").click()
    expect(sides.nth(0)).to_have_id(right.id)
    expect(page.get_by_label("Left")).to_have_value(OTHER)
    page.reload()
    expect(sides.nth(0)).to_have_id(right.id)
    expect(page.locator("#compare-prompt")).to_have_value("Tell me all you know about the sea.")
    sides.nth(1).get_by_role("button", name="This one is better").click()
    expect(sides.nth(1)).to_contain_text("You said this one is better")
    expect(page.get_by_role("button", name="This one is better")).to_have_count(0)
    with opened(box.home) as store:
        example = store.examples.list(limit=1)[0]
        assert (example.kind, example.state, example.completion_id) == ("praise", "pending", left.id)
        assert store.examples.count("pending") == 1
        # The other is only less good, which does not make it a wrong answer.
        assert store.examples.rejected_answers(right.query) == set()
    sides.nth(0).locator("summary").click()
    sides.nth(0).get_by_label("What should it have said?").fill("Paris.")
    sides.nth(0).get_by_role("button", name="Learn this answer").click()
    expect(sides.nth(0)).to_contain_text("will be learned")
    sides.nth(1).get_by_role("link", name="Go on with this one").click()
    expect(page.get_by_label("Who answers")).to_have_value(ONE)
    expect(page.locator(".exchange [data-copied]")).to_have_text(left.response, use_inner_text=True)


def test_stopping_both(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{box.url}/playground/compare?left=base&right={ONE}&max_tokens=600")
    page.locator("#compare-prompt").fill("Write a very long story about the sea.")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#answers")).to_contain_text("(stopped)")
    expect(page.locator("#compare-prompt")).to_have_value("Write a very long story about the sea.")
    with opened(box.home) as store:
        assert all("story" not in one.query for one in store.completions.recent(5))


def test_without_scripts_and_sound(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{box.url}/playground/compare?left={ONE}&prompt={'Who are you?'}", scripts=False)
    expect(page.get_by_label("Right")).to_have_value("base")
    page.locator("#compare-prompt").fill(NASTY)
    page.get_by_text("How it answers").click()
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("button", name="Ask both").last.click()
    expect(page.get_by_role("alert")).to_contain_text("seed is a whole number")
    expect(page.locator("#compare-prompt")).to_have_value(NASTY)
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Change sides").click()
    expect(page.get_by_label("Left")).to_have_value("base")
    expect(page.locator("#compare-prompt")).to_have_value(NASTY)
    page.get_by_role("button", name="Ask both").last.click()
    sides = page.locator(".side-answer")
    expect(sides).to_have_count(2)
    expect(sides.nth(0).locator("h2")).to_have_text("Base model")
    assert page.locator("#main img").count() == 0
    answers = [side.inner_text() for side in sides.locator("[data-copied]").all()]
    page.get_by_role("button", name="Ask both").last.click()
    # The same seed again: the same answers.
    for side, answer in enumerate(answers):
        expect(sides.nth(side).locator("[data-copied]")).to_have_text(answer, use_inner_text=True)
    sides.nth(0).get_by_role("button", name="This one is better").click()
    expect(page.locator(".flash-good")).to_contain_text("more like this one")
    expect(sides.nth(0)).to_contain_text("You said this one is better")
    expect(page.get_by_label("Seed")).to_have_value("3")
    page = open_page(page.url, DESKTOP)
    for fold in page.locator("main details").all():
        fold.evaluate("element => { element.open = true }")
    check_sound(page, "compare")


def test_both_draw_from_the_same_seed(
    post: Callable[..., httpx.Response], box: Daemon, bundle: Bundle
) -> None:
    """An adapter that changes nothing says what the base model does, however high the temperature."""
    port = bundle.manifest.ports[0]
    part = port.parts[0]
    draft = box.home.root / "silent.safetensors"
    tensors = {
        tensor_key(part.module, "A"): np.ones((1, port.inputs), np.float32),
        tensor_key(part.module, "B"): np.zeros((part.out, 1), np.float32),
    }
    base = bundle.manifest.base_hash
    write_adapter(draft, tensors, AdapterMeta(base, 1, 1.0))
    made = read_adapter(draft, bundle.manifest)
    with opened(box.home) as store:
        row = AdapterRow("silent", 1.0, made.sha256, made.size, base, 1, None, None, "accepted", None)
        store.adapters.upsert(row)
    draft.rename(box.home.adapters / draft.name)
    first, second = ids(post(left="base", right="silent", prompt="Tell me a story.", temperature="1.5"))
    with opened(box.home) as store:
        left, right = store.completions.get(first), store.completions.get(second)
    assert left is not None and right is not None
    assert (left.adapter, right.adapter) == (None, "silent")
    assert left.response == right.response


def test_what_cannot_be_compared_is_said(post: Callable[..., httpx.Response], box: Daemon) -> None:
    for form, status, reason in (
        ({"left": "base", "right": "base", "prompt": "Hi"}, 400, "Both sides are the same"),
        ({"left": "base", "right": "current", "prompt": "Hi"}, 400, "Both sides are the same"),
        ({"left": "base", "right": "adapter_gone", "prompt": "Hi"}, 404, "no accepted adapter"),
        ({"left": "base", "right": ONE, "prompt": " "}, 400, "Write a message first"),
        ({"left": "base", "right": ONE, "prompt": "8 " * 9_999}, 400, "too long for the model"),
    ):
        answer = post(**form)
        assert (answer.status_code, reason in answer.text) == (status, True), reason
        assert form["prompt"].strip() in answer.text


def test_only_one_of_two_is_better(post: Callable[..., httpx.Response], box: Daemon) -> None:
    first, second = ids(post(left="base", right=ONE, prompt="Name a river."))
    third, _ = ids(post(left="base", right=ONE, prompt="Name a hill."))

    def pending() -> int:
        with opened(box.home) as store:
            return store.examples.count("pending")

    before = pending()
    for form in (
        {"first": first, "second": second, "better": third},
        {"first": first, "second": third, "better": first},
        {"first": first, "second": "chatcmpl-none", "better": first},
    ):
        assert post("/better", **form).status_code == 303
        assert pending() == before
    for better in (first, second, first):
        assert post("/better", first=first, second=second, better=better).status_code == 303
        assert pending() == before + 1
    assert httpx.get(f"{box.url}/playground/compare/answers?first={first}&second=none").status_code == 404
    page = httpx.get(f"{box.url}/playground/compare?first={first}&second=none")
    assert "not kept any more" in page.text


def test_differences() -> None:
    def marked(left: str, right: str) -> list[list[str]] | None:
        found = differences(left, right)
        if found is None:
            return None
        assert ["".join(text for text, _ in side) for side in found] == [left, right]
        return [[text.strip() for text, only in side if only] for side in found]

    assert marked("The capital is Paris.", "The capital is Lyon.") == [["Paris."], ["Lyon."]]
    assert marked("The  same\n", "The  same\n") == [[], []]
    assert marked("It is red.", "It is very red.") == [[], ["very"]]
    assert marked("Not a single word alike", "here, whatever you compare") is None
    assert marked("a " * (MARKED_WORDS + 1), "a") is None
    assert marked("", "") == [[], []]
