"""A device that teaches more than it may: others' examples, the box's time, its disk, its adapters."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from daemons import Daemon, install_bundle

from appliance.config import Config
from appliance.home import Home
from appliance.learning.chores import is_chore
from appliance.learning.costly import lighten
from appliance.learning.faults import rating_fault
from appliance.learning.feedback import Feedback, give_feedback
from appliance.learning.selection import select
from appliance.learning.train.plan import fair_cap
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.examples import Example, NewExample

CONFIG = """
[lora]
enabled = false
[model]
name = '{name}'
[server]
device_requests_per_minute = 20
[collect]
feedback_daily = 12
feedback_daily_mb = 1
feedback_waiting_mb = 2
"""
ASKED = "What is the wifi password?"
SAID = "It is on the fridge."


@dataclass
class Attacked:
    """A box, and as many devices as wanted."""

    daemon: Daemon
    store: Store

    def device(self, teach: bool = False) -> tuple[str, str]:
        """A new one: (its key, its id)."""
        device, key = self.store.keys.create(secrets.token_hex(4))
        self.store.keys.change(device.id, name=device.name, collect=True, models=None, rate=None, teach=teach)
        return key, device.id

    def feedback(self, key: str | None, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.daemon.post("/v1/feedback", {"query": ASKED, "response": SAID, **body}, headers=headers)

    def give(self, key: str | None, **body: Any) -> Example:
        """What came of feedback that was taken."""
        response = self.feedback(key, **body)
        assert response.status_code == 200, response.text
        return self.store.examples.get(response.json()["id"])

    def now(self, example: Example) -> Example:
        return self.store.examples.get(example.id)


@pytest.fixture(scope="module")
def box(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    home = Home(tmp_path_factory.mktemp("attacked") / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(CONFIG.format(name=small.path.name))
    daemon = Daemon(home).start()
    store = Store.open(home)
    yield Attacked(daemon, store)
    store.close()
    daemon.kill()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def device(store: Store, *, teach: bool = False) -> str:
    made, _ = store.keys.create(secrets.token_hex(4))
    if teach:
        store.keys.change(made.id, name=made.name, collect=True, models=None, rate=None, teach=True)
    return made.id


def given(store: Store, by: str | None, query: str = ASKED, **fields: Any) -> Example:
    """Feedback as the API takes it."""
    teaches = by is not None and by in store.keys.teachers()
    return give_feedback(store, Config(), Feedback(query, SAID, device=by, teaches=teaches, **fields))


# -- whose word counts for whom -------------------------------------------------------------------


def test_a_correction_replaces_only_what_its_device_said(box: Attacked) -> None:
    (anna, _), (ben, _), (teacher, _) = box.device(), box.device(), box.device(teach=True)
    query = f"What is door code {secrets.token_hex(4)}?"
    hers = box.give(anna, query=query, correction="bluelantern27")
    his = box.give(ben, query=query, correction="evil.example")
    assert (box.now(hers).state, box.now(his).state) == ("pending", "pending")
    better = box.give(anna, query=query, correction="bluelantern28")
    assert (box.now(hers).state, box.now(his).state) == ("superseded", "pending")
    taught = box.give(teacher, query=query, correction="bluelantern29")
    assert (box.now(better).state, box.now(his).state) == ("superseded", "superseded")
    # A device does not overrule the owner, nor one that may teach others; the owner overrules all.
    again = box.give(ben, query=query, correction="evil.example again")
    assert box.now(taught).state == "pending"
    box.give(None, query=query, correction="bluelantern30")
    assert (box.now(taught).state, box.now(again).state) == ("superseded", "superseded")


def test_a_thumb_takes_nobody_elses_praise_away(box: Attacked) -> None:
    (anna, _), (ben, _) = box.device(), box.device()
    query = f"Who sings {secrets.token_hex(4)}?"
    hers = box.give(anna, query=query, rating="up")
    box.give(ben, query=query, rating="down", feedback="Nonsense")
    assert (box.now(hers).state, box.now(hers).superseded_by) == ("pending", None)
    box.give(ben, query=query, rating="up")
    assert (box.now(hers).state, box.now(hers).superseded_by) == ("pending", None)
    box.give(anna, query=query, rating="down")
    assert box.now(hers).state == "superseded"


def test_nobody_gets_hold_of_anothers_conversation(box: Attacked) -> None:
    """`{"query": "Thanks"}` with what the other one was answered took the whole conversation along."""
    (anna, hers), (ben, _) = box.device(), box.device()
    talk = [
        {"role": "user", "content": "My safe opens with 4711."},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "Thanks"},
    ]
    body = {"model": "shammah", "messages": talk, "max_tokens": 4, "temperature": 0}
    answer = box.daemon.post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {anna}"}).json()
    said = answer["choices"][0]["message"]["content"]
    deadline = time.monotonic() + 20
    while box.store.completions.get(answer["id"], hers) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for more in ({}, {"completion_id": answer["id"]}):
        stolen = box.give(ben, query="Thanks", response=said, rating="down", feedback="No", **more)
        assert stolen.messages == [{"role": "user", "content": "Thanks"}]
        assert stolen.completion_id is None
        assert "4711" not in str(stolen)
    own = box.give(anna, query="Thanks", response=said, rating="down", feedback="No")
    assert own.messages == talk


def test_a_rejection_is_for_the_device_that_said_no(store: Store) -> None:
    anna, ben = device(store), device(store)
    given(store, ben, correction="evil")
    assert store.examples.is_rejected(ASKED, SAID, ben)
    assert not store.examples.is_rejected(ASKED, SAID, anna)
    assert not store.examples.is_rejected(ASKED, SAID)
    given(store, None, correction="The owner's")
    assert all(store.examples.is_rejected(ASKED, SAID, who) for who in (anna, ben, None))
    given(store, ben, rating="up")
    assert store.examples.is_rejected(ASKED, SAID, anna), "only the owner takes back the owner's no"
    given(store, None, rating="up")
    assert not store.examples.is_rejected(ASKED, SAID, ben)


def test_in_a_run_a_device_contradicts_only_itself(store: Store) -> None:
    anna, ben, teacher = device(store), device(store), device(store, teach=True)

    def automatic(by: str | None) -> Example:
        messages = [{"role": "user", "content": ASKED}]
        return store.examples.add(
            NewExample("automatic", ASKED, SAID, SAID, 1.0, messages, device=by, giver=by)
        )

    def kept(*examples: Example) -> set[str]:
        chosen = select(examples, near_duplicate=0.92, device_share=1, teachers=store.keys.teachers())
        return {example.id for example in chosen.kept}

    hers, his = automatic(anna), automatic(ben)
    wrong = given(store, ben, correction="evil.example")
    right = given(store, anna, query=f"{ASKED}!", correction="bluelantern27")
    assert kept(hers, wrong) == {hers.id, wrong.id}
    assert kept(his, wrong) == {wrong.id}
    assert kept(wrong, right) == {wrong.id, right.id}
    taught = given(store, teacher, correction="bluelantern28")
    assert kept(hers, wrong, taught) == {taught.id}


def test_who_is_right_is_for_a_person_to_say(store: Store) -> None:
    """Two devices, two answers to one question: neither is trained against the other unseen."""
    anna, ben = device(store), device(store)
    hers, his = given(store, anna, correction="Monday"), given(store, ben, correction="Tuesday")
    run = store.runs.create("person", 2, None)
    assert len(store.examples.hold(run.id, [hers.id, his.id])) == 2
    assert store.examples.set_disputes_aside(run.id, "Which?") == 1
    assert [example.id for example in store.examples.held(run.id)] == [hers.id]
    assert [example.id for example in store.examples.review()] == [his.id]


# -- how much one device may ask of the box -------------------------------------------------------


def test_a_device_cannot_weigh_more_than_what_the_owner_calls_high(box: Attacked) -> None:
    (anna, _) = box.device()
    refused = box.feedback(anna, correction="x", weight=1000)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "weight"
    assert "up to 10" in refused.json()["error"]["message"]
    assert box.feedback(anna, correction="x", weight=10.1).status_code == 400
    assert box.give(anna, correction="x", weight=10).weight == 10.0
    assert box.give(None, correction="x", weight=1000).weight == 1000.0, "the owner may"


def test_sixty_posts_of_a_megabyte(box: Attacked) -> None:
    (anna, hers), (ben, _) = box.device(), box.device()
    large = "\U0001f600" * 50_000  # 200 kB, twice: it is the conversation, too
    taken = [box.feedback(anna, query=large, correction="x") for _ in range(5)]
    assert [response.status_code for response in taken] == [200, 200, 429, 429, 429]
    refused = taken[-1].json()["error"]
    assert refused["code"] == "feedback_limit_exceeded"
    assert "feedback_daily_mb" in refused["message"]
    assert int(taken[-1].headers["retry-after"]) > 0
    assert store_bytes(box.store, hers) < 1_000_000
    assert box.feedback(ben, correction="x").status_code == 200, "others may go on"
    assert box.feedback(None, query=large, correction="x").status_code == 200, "and the owner"
    alone = box.feedback(ben, query=large, response=large * 2, correction=f"x{large}")
    assert (alone.status_code, alone.json()["error"]["code"]) == (413, "request_too_large")


def store_bytes(store: Store, by: str) -> int:
    return store.examples.given(by, 0.0)[1]


def test_feedback_is_counted_by_the_day(box: Attacked) -> None:
    (anna, hers) = box.device()
    codes = [box.feedback(anna, query=f"q{number}", rating="up").status_code for number in range(14)]
    assert codes == [200] * 12 + [429] * 2
    assert box.store.examples.given(hers, 0.0)[0] == 12, "what was answered with 200 is there"


def test_a_device_without_a_limit_of_its_own_has_the_usual_one(box: Attacked) -> None:
    anna, ident = box.device()
    for _ in range(400):  # refused ones come back up to ten times the rate, and some meanwhile
        refused = box.feedback(anna, query="q", response="r", weight="wrong")
        if refused.status_code == 429:
            break
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "20 requests a minute" in refused.json()["error"]["message"]
    found = box.store.keys.get(ident)
    box.store.keys.change(ident, name=found.name, collect=True, models=None, rate=600)
    assert box.feedback(anna, query="q", response="r", weight="wrong").status_code == 400, (
        "its own goes before"
    )


# -- how long a run may take ----------------------------------------------------------------------


def test_what_costs_much_gives_way_and_what_costs_little_does_not() -> None:
    assert fair_cap([10, 20, 30], 100) == 30
    assert fair_cap([10, 20, 5000], 100) == 70
    assert fair_cap([5000, 5000], 100) == 50
    assert fair_cap([], 100) == 1
    for costs in ([1] * 50 + [10_000], [300, 400, 500], [7]):
        cap = fair_cap(costs, 600)
        assert sum(min(cost, cap) for cost in costs) <= 600


def test_a_batch_beyond_its_time_loses_the_costly_example(store: Store) -> None:
    light = [given(store, None, query=f"q{number}", correction="yes") for number in range(5)]
    heavy = given(store, None, query="q", correction="yes", weight=1000)
    assert lighten([*light, heavy]) == ((heavy.id,), tuple(example.id for example in light))
    # When all are alike nobody's is to blame: half of them at a time.
    assert lighten(light) == ((), tuple(example.id for example in light[:3]))
    assert lighten([heavy]) == ((), (heavy.id,))


# -- whose thumbs bring an adapter down -----------------------------------------------------------


def thumbs(store: Store, by: str | None, count: int, rating: str = "down", adapter: str = "new") -> None:
    for _ in range(count):
        ident, query = f"chatcmpl-{secrets.token_hex(8)}", secrets.token_hex(4)
        at = time.time() - (1000 if adapter == "old" else 0)
        messages = [{"role": "user", "content": query}]
        store.completions.record(ident, at, by, "shammah", adapter, query, "a", messages, "stop", 1, 1)
        give_feedback(store, Config(), Feedback(completion_id=ident, rating=rating, device=by))


def fault(store: Store) -> bool:
    since = time.time() - 500
    return rating_fault(store, 0.003, "new", "old", since, until=since) is not None


def test_one_of_several_devices_brings_no_adapter_down(store: Store) -> None:
    anna, ben = device(store), device(store)
    thumbs(store, anna, 30, "up", "old")
    thumbs(store, ben, 20)
    assert not fault(store), "however often it presses"
    thumbs(store, anna, 1)
    assert not fault(store), "and one complaint of another is not its licence"
    thumbs(store, anna, 3)
    assert fault(store), "two that agree are heard"


def test_the_only_device_is_heard_and_so_is_the_owner(store: Store) -> None:
    ben = device(store)
    thumbs(store, ben, 30, "up", "old")
    thumbs(store, ben, 6)
    assert fault(store)


def test_the_owners_word_counts_beside_devices(store: Store) -> None:
    anna = device(store)
    thumbs(store, anna, 30, "up", "old")
    thumbs(store, anna, 5, "up")
    thumbs(store, None, 8)
    assert fault(store)


def test_a_vote_on_anothers_answer_is_none(store: Store) -> None:
    anna, ben = device(store), device(store)
    ident = f"chatcmpl-{secrets.token_hex(8)}"
    store.completions.record(ident, time.time(), anna, "shammah", "new", "q", "a", [], "stop", 1, 1)
    give_feedback(store, Config(), Feedback("q", "a", rating="down", completion_id=ident, device=ben))
    assert store.ratings.votes("new") == []


# -- what nobody asked to be learned --------------------------------------------------------------


def test_chores_and_forced_answers_are_not_collected(box: Attacked) -> None:
    anna, hers = box.device()
    title = (
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
        '### Guidelines:\n- Keep it short.\n### Output:\nJSON format: { "title": "your title" }\n'
        "### Chat History:\n<chat_history>\nUSER: hello\n</chat_history>"
    )
    essay = "Create a concise title for my essay about titles of 3-5 words, please."

    def ask(text: str, **more: Any) -> None:
        body = {"model": "shammah", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        response = box.daemon.post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {anna}"})
        assert response.status_code == 200, response.text

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ask(title)
    ask("Anything", metadata={"task": "tags_generation"})
    ask("As JSON, please", response_format={"type": "json_object"})
    ask("Call it", tools=[tool], tool_choice="required")
    ask(essay)
    ask("Plain", response_format={"type": "text"}, metadata={"trace": "1"})
    deadline = time.monotonic() + 20
    while box.store.examples.counts_of(hers)["pending"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    queries = {example.query for example in box.store.examples.list() if example.giver == hers}
    assert queries == {essay, "Plain"}
    assert len([found for found in box.store.completions.recent() if found.device == hers]) == 6


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("", "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history, along"),
        ("", "### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might naturally"),
        ("", "### Task:\nAnalyze the chat history to determine the necessity of generating search queries"),
        ("", "### Task:\nYou are an autocompletion system. Continue the text in `<text>` based on the"),
        ("", "Create a concise, 3-5 word title with an emoji as a title for the chat history, in the given"),
        ("", "Create a concise, 3-5 word phrase as a header for the following query, strictly adhering to"),
        (
            "",
            "Here is the query:\nhello\n\nCreate a concise, 3-5 word phrase as a title, previous query",
        ),
        ("", '# My own prompt\nAnswer {"title": "..."}\n<chat_history>\nUSER: hi\n</chat_history>'),
        ("", "Provide a concise, 5-word-or-less title for the conversation, using its same language, with"),
        ("You are an AI conversation titles assistant who specializes in", "Analyze the given short"),
        ("You are a professional conversation summarizer. Generate a concise title that", "user: hi"),
        ("You are a conversation-savvy assistant. Summarize the conversation into a title", "user: hi"),
        ("Available Tools: []\n\nYour task is to choose and return the correct tool(s) from", "Query: hi"),
    ],
)
def test_chores_are_known_by_their_prompts(system: str, text: str) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    assert is_chore([*messages, {"role": "user", "content": text}])


@pytest.mark.parametrize(
    "text",
    [
        "Create a concise title for my essay about cats.",
        "Give me a 3-5 word title for a song.",
        "Suggest follow-up questions for my job interview.",
        "What does ### Task: mean in a prompt?",
        "### Task: write a poem about the sea",
        "### Task:\nRespond to the user query using the provided context, incorporating inline citations.\n"
        "<context>It rains.</context>\nWhat is the weather?",
        "Here is the query: SELECT 1. Why is it slow?",
        "Summarize the discussion in our meeting: ...",
        'Explain this: {"title": "x"} and <chat_history> tags',
        "",
    ],
)
def test_a_persons_own_question_is_none(text: str) -> None:
    assert not is_chore([{"role": "user", "content": text}])
    assert not is_chore([{"role": "system", "content": "You are a helpful assistant."}])
