"""The playground in a real browser: chatting, teaching, conversations, and what can go wrong under way."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from browsing import DESKTOP, NASTY, PHONE, SECOND, check_sound, opened
from daemons import Daemon, accept_adapter, install_bundle
from playwright.sync_api import Locator, Page, expect

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.completions import StoredCompletion
from appliance.store.owner import set_password

OpenPage = Callable[..., Page]
STRONG = "adapter_20261118T080000Z"


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A box that gives short answers, two at a time, and lets nobody wait."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(
        "[lora]\nenabled = false\n[model]\ndefault_max_tokens = 40\nslots = 2\nqueue = 0\n"
    )
    accept_adapter(home, bundle, STRONG, seed=1, only="q_proj")
    running = Daemon(home).start()
    yield running
    running.kill()


def say(page: Page, message: str) -> Locator:
    """Ask by keyboard, and wait for the answer with its thumbs."""
    before = page.locator(".exchange[id]").count()
    page.get_by_label("Message").fill(message)
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_have_count(before + 1)
    return page.locator(".exchange[id]").last


def newest(box: Daemon) -> StoredCompletion:
    with opened(box.home) as store:
        return store.completions.recent(1)[0]


def test_an_empty_box_and_a_conversation_that_is_gone(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/playground?chat=chatcmpl-unknown&adapter=adapter_gone")
    expect(page.get_by_text("Ask it something.")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("not kept any more")
    expect(page.get_by_label("Who answers")).to_have_value("current")
    expect(page.locator("#history")).to_contain_text("None yet")


def test_the_page_is_sound_and_text_of_people_stays_text(box: Daemon, open_page: OpenPage) -> None:
    address = (
        "/playground?chat=chatcmpl-shown&temperature=0.7&message=%22%3E%3Cscript%3Ealert(3)%3C/script%3E"
    )
    page = open_page(box.url + address)
    # What would have run shows as a dialog, and fails the test at its end.
    expect(page.locator("#transcript")).to_contain_text(NASTY)
    expect(page.get_by_label("Message")).to_have_value('"><script>alert(3)</script>')
    assert page.locator("#main img").count() == 0
    say(page, NASTY)
    expect(page.locator("#history li").first).to_contain_text("What is the capital of France?")
    for fold in page.locator("main details").all():
        fold.evaluate("element => { element.open = true }")
    check_sound(page, "playground")


def test_chat_streams_and_praise_is_learned(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground")
    exchange = say(page, "What is the capital of France?")
    expect(exchange).to_contain_text("What is the capital of France?")
    expect(exchange.locator(".source")).to_have_text(re.compile(r"Base model, \d+ tokens, [\d.]+ a second"))
    # The conversation survives a reload, and goes on from where it was.
    expect(page).to_have_url(re.compile(r"\?chat=chatcmpl-"))
    answer = exchange.locator("[data-copied]").inner_text()
    page.reload()
    expect(exchange.locator("[data-copied]")).to_have_text(answer)
    exchange.get_by_role("button", name="Good answer").click()
    expect(exchange).to_contain_text("more like this")
    with opened(box.home) as store:
        example = store.examples.list(limit=1)[0]
        noted = store.audit.list(1)[0]
    assert (example.kind, example.state, example.source) == ("praise", "pending", "console")
    assert " ".join((example.target or "").split()) == " ".join(answer.split())
    assert (noted.action, noted.detail["example"]) == ("console.feedback", example.id)
    say(page, "And of Spain?")
    page.reload()
    # Every turn has its own thumbs; what has been rated stays so.
    expect(page.locator(".exchange[id]")).to_have_count(2)
    expect(page.locator(".exchange").first.get_by_role("button", name="Good answer")).to_have_count(0)
    expect(page.locator(".exchange").last.get_by_role("button", name="Good answer")).to_be_visible()
    roles = [message["role"] for message in newest(box).messages]
    assert roles == ["user", "assistant", "user"]
    expect(page.locator("#history [aria-current]")).to_have_text("What is the capital of France?")


def test_correction_in_place_weighs_high(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground", PHONE)
    exchange = say(page, "What is the name of our cat?")
    exchange.locator("summary").click()
    field = exchange.get_by_label("What should it have said?")
    expect(field).to_be_visible()
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(exchange.get_by_role("alert")).to_contain_text("the answer it corrects")
    field.fill("Your cat is called Minka.")
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(exchange).to_contain_text("will be learned in the next run")
    with opened(box.home) as store:
        example = store.examples.list(limit=1)[0]
        rejected = store.examples.rejected_answers("What is the name of our cat?")
    assert (example.kind, example.target, example.weight) == ("correction", "Your cat is called Minka.", 10.0)
    assert len(rejected) == 1


def test_a_note_asks_for_a_draft(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground")
    exchange = say(page, "How many legs does our table have?")
    exchange.locator("summary").click()
    exchange.get_by_label("Or only say what is wrong").fill("Should be 17")
    exchange.get_by_role("button", name="Send note").click()
    expect(exchange).to_contain_text("drafted for you")
    with opened(box.home) as store:
        (critique,) = [found for found in store.examples.list() if found.feedback == "Should be 17"]
        assert critique.kind == "critique"
        while critique.note is None and critique.target is None:  # the draft is made in the background
            page.wait_for_timeout(200)
            critique = store.examples.get(critique.id)


def test_who_answers_and_how_is_chosen_and_the_last_answer_can_be_given_anew(
    box: Daemon, open_page: OpenPage
) -> None:
    page = open_page(box.url + "/playground")
    expect(page.get_by_label("Who answers")).to_contain_text("withdrawn")
    page.get_by_label("Who answers").select_option(STRONG)
    page.get_by_text("How it answers").click()
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.2")
    for label, value in (
        ("Temperature", "0,5"),
        ("Top-p", "0.8"),
        ("Longest answer", "12"),
        ("Seed", "7"),
        ("System prompt", "You are a pirate."),
    ):
        page.get_by_label(label).fill(value)
    exchange = say(page, "Who are you?")
    expect(exchange.locator(".source")).to_contain_text("Learned")
    expect(exchange.locator(".source")).to_contain_text("cut off at the length limit")
    first = newest(box)
    assert (first.adapter, first.completion_tokens) == (STRONG, 12)
    assert first.messages[0] == {"role": "system", "content": "You are a pirate."}
    # All of it is in the address; the system prompt is in the conversation.
    page.reload()
    expect(page.get_by_label("Who answers")).to_have_value(STRONG)
    expect(page.get_by_label("Temperature")).to_have_value("0,5")
    expect(page.get_by_label("System prompt")).to_have_value("You are a pirate.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(f"#{first.id}")).to_have_count(0)
    expect(page.locator(".exchange[id]")).to_have_count(1)
    again = newest(box)
    assert again.id != first.id
    assert (again.conversation, again.messages) == (first.conversation, first.messages)
    assert again.response == first.response  # the seed says so
    page.get_by_label("Who answers").select_option("base")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".exchange .source")).to_contain_text("Base model")
    assert newest(box).response != first.response
    expect(page.locator("#history [aria-current]")).to_have_text("Who are you?")


def test_an_answer_is_copied_with_and_without_a_clipboard(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground?chat=chatcmpl-shown")
    answer = "It depends on your city. " + NASTY
    for secure in (True, False):
        if not secure:  # as on a page without TLS
            page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        page.get_by_role("button", name=re.compile("Copy answer|Copied")).click()
        expect(page.get_by_role("button", name="Copied")).to_be_focused()
        page.get_by_label("Message").fill("")
        page.keyboard.press("Control+V")
        expect(page.get_by_label("Message")).to_have_value(answer)


def test_stopping_an_answer(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground?max_tokens=600")
    page.get_by_label("Message").fill("Write a very long story about the sea.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#transcript")).to_contain_text("(stopped)")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    # It is no part of the conversation; what was asked can be asked again.
    expect(page.get_by_label("Message")).to_have_value("Write a very long story about the sea.")
    expect(page.get_by_label("Message")).to_be_focused()
    assert newest(box).query != "Write a very long story about the sea."
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#transcript")).to_contain_text("(stopped)")


def test_what_goes_wrong_is_said_in_place_and_nothing_typed_is_lost(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground")
    problem = page.locator("#chat-problem")

    def refused(message: str, reason: str) -> None:
        page.get_by_label("Message").fill(message)
        page.keyboard.press("Enter")
        expect(problem).to_contain_text(reason)
        expect(page.get_by_label("Message")).to_have_value(message)
        expect(page.locator(".exchange")).to_have_count(0)

    refused("8 " * 9_999 + "8", "too long for the model")
    page.get_by_text("How it answers").click()
    page.get_by_label("Temperature").fill("warm")
    refused("Hello?", "Temperature is a number from 0 to 2")
    page.get_by_label("Temperature").fill("")
    page.get_by_label("Who answers").select_option(SECOND)
    with opened(box.home) as store:
        store.adapters.set_state(SECOND, "missing")
    refused("Hello?", "no accepted adapter")
    page.get_by_label("Who answers").select_option("current")
    streams, leave = [], threading.Event()

    def occupy() -> None:
        body = {"model": "shammah", "stream": True, "store": False, "max_tokens": 1500, "temperature": 2}
        talk = {"messages": [{"role": "user", "content": "Tell me all about the sea."}], **body}
        with httpx.stream("POST", f"{box.url}/v1/chat/completions", json=talk, timeout=60) as response:
            for _ in response.iter_lines():
                streams.append(1)
                if leave.is_set():
                    return

    others = [threading.Thread(target=occupy) for _ in range(2)]
    for other in others:
        other.start()
    try:
        while box.get("/metrics").text.find("shammah_active_requests 2") < 0:
            page.wait_for_timeout(50)
        refused("Hello?", "Retry in a few seconds")
    finally:
        leave.set()
        for other in others:
            other.join()
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_have_count(1)
    expect(problem).to_be_hidden()


def test_by_keyboard_alone(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground")
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
    page.keyboard.type("What is the capital")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("of Italy?")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id] .mine")).to_contain_text("capital\nof Italy?", use_inner_text=True)
    page.evaluate("document.querySelector('#transcript').focus()")
    tab_to(".wrong > summary")
    page.keyboard.press("Enter")
    tab_to("textarea[name=correction]")
    page.keyboard.press("Control+A")
    page.keyboard.type("Rome.")
    tab_to(".wrong .primary")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange[id]")).to_contain_text("will be learned")


def test_without_scripts(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground?adapter=base&max_tokens=8", PHONE, scripts=False)
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Message").fill("Who waters the plants?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("Temperature is a number from 0 to 2")
    expect(page.get_by_label("Message")).to_have_value("Who waters the plants?")
    expect(page.get_by_label("Temperature")).to_have_value("3")
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Send").click()
    exchange = page.locator(".exchange")
    expect(exchange).to_contain_text("Who waters the plants?")
    expect(page.get_by_role("button", name="Copy answer")).to_be_hidden()
    expect(page).to_have_url(
        re.compile(r"chat=chatcmpl-\w+&adapter=base&temperature=0&max_tokens=8#chatcmpl-")
    )
    first = newest(box)
    page.get_by_label("Message").fill("Not yet sent")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_role("alert")).to_contain_text("Send or clear")
    expect(page.get_by_label("Message")).to_have_value("Not yet sent")
    page.get_by_label("Message").fill("")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_label("Message")).to_have_value("")
    expect(exchange).to_have_count(1)
    again = newest(box)
    assert (again.conversation, again.response) == (first.conversation, first.response)
    assert again.id != first.id
    exchange.locator("summary").click()
    exchange.get_by_label("What should it have said?").fill("Aunt Rosa waters the plants.")
    exchange.get_by_role("button", name="Learn this answer").click()
    expect(page.locator(".flash-good")).to_contain_text("high weight")
    expect(exchange).to_contain_text("will be learned in the next run")
    expect(page).to_have_url(re.compile("temperature=0"))
    # Going on from the earlier answer begins a conversation of its own; neither is lost.
    page.goto(f"{box.url}/playground?chat={first.id}&adapter=base&max_tokens=8")
    page.get_by_label("Message").fill("And who feeds the cat?")
    page.get_by_role("button", name="Send").click()
    expect(exchange).to_have_count(2)
    assert newest(box).conversation not in (None, first.conversation)
    expect(page.locator("#history a").filter(has_text="Who waters the plants?")).to_have_count(2)


def test_a_forgotten_conversation_is_gone(box: Daemon, open_page: OpenPage) -> None:
    secret = "the vault behind the lighthouse"
    body = {"message": f"Where is {secret}?", "max_tokens": "8", "adapter": "base"}
    with httpx.Client(base_url=box.url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=60) as client:
        assert client.post("/playground", data=body).status_code == 303
        assert client.post("/playground/forget", data={"conversation": "none"}).status_code == 303
    conversation = newest(box).conversation
    page = open_page(box.url + "/playground", scripts=False)
    entry = page.locator("#history li").filter(has_text=secret)
    entry.locator("summary").click()
    entry.get_by_role("button", name="Forget it").click()
    expect(page.locator(".flash-good")).to_contain_text("forgotten")
    expect(page.locator("#history")).not_to_contain_text(secret)
    with opened(box.home) as store:
        assert store.completions.conversation(conversation or "") == []
        entries = [entry for entry in store.audit.list(5) if entry.action == "console.conversation.forget"]
    assert [entry.detail["conversation"] for entry in entries] == [conversation]
    files = list(box.home.root.glob("store.db*"))
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_bad_forms_are_refused_as_a_whole(box: Daemon) -> None:
    before = newest(box).id
    with httpx.Client(base_url=box.url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=60) as client:
        for form, status, reason in (
            ({}, 400, "Write a message first"),
            ({"message": "x" * 20_001}, 400, "longer than 20,000"),
            ({"message": "Hi", "previous": "chatcmpl-none"}, 404, "not kept any more"),
            ({"message": "Hi", "adapter": "../../etc/passwd"}, 404, "no accepted adapter"),
            ({"message": "Hi", "top_p": "nan"}, 400, "Top-p is a number"),
            ({"message": "Hi", "max_tokens": "0"}, 400, "longest answer is a whole number"),
            ({"message": "Hi", "seed": "-1"}, 400, "seed is a whole number"),
            ({"message": "Hi", "seed": "\u0663"}, 400, "seed is a whole number"),
            ({"message": "Hi", "system": "x" * 4_001}, 400, "system prompt is longer"),
        ):
            answer = client.post("/playground", data=form)
            assert (answer.status_code, reason in answer.text) == (status, True), reason
        assert client.get("/playground/exchange/none").status_code == 404
        assert httpx.post(f"{box.url}/playground", data={"message": "Hi"}, headers={"Origin": "http://x"})
    assert newest(box).id == before


def test_a_session_that_ended_loses_nothing(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/playground", DESKTOP)
    with opened(box.home) as store:
        set_password(store, "correct horse battery")
    page.get_by_label("Message").fill("Am I still there?")
    page.keyboard.press("Enter")
    # The page knew of no password, so it leads to the login; and that leads back to what was typed.
    expect(page).to_have_url(f"{box.url}/login?next=%2Fplayground")
    page.get_by_label("Password").fill("correct horse battery")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{box.url}/playground")
    expect(page.get_by_label("Message")).to_have_value("Am I still there?")
