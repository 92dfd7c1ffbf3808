"""What is masked in automatic examples, and what is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn

from appliance.config import Config
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.collector import CollectedExchange, Collector
from appliance.learning.feedback import Feedback, give_feedback
from appliance.learning.privacy import mask, mask_example
from appliance.sections import CollectConfig
from appliance.store import Store
from appliance.store.example import NewExample
from appliance.store.mirror import QueueMirror

LETTER = "Write to anna.smith@example.org that I come on Sunday."


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail me at Anna.Smith+box@mail.example.co.uk, please.", "Mail me at [e-mail], please."),
        ("(jürgen@exämple.de)", "([e-mail])"),
        ("My card is 4111 1111 1111 1111.", "My card is [card number]."),
        ("4111-1111-1111-1111 123 is card and code", "[card number] 123 is card and code"),
        ("Amex 3782 822463 10005", "Amex [card number]"),
        ("pay with 5555555555554444 now", "pay with [card number] now"),
        ("IBAN DE89 3704 0044 0532 0130 00 is mine", "IBAN [IBAN] is mine"),
        ("gb82west12345698765432", "[IBAN]"),
        ("FR1420041010050500013M02606, thanks", "[IBAN], thanks"),
        ("Ring +44 20 7946 0958 after six", "Ring [phone number] after six"),
        ("Ring +1 (650) 253-0000 or +442079460958", "Ring [phone number] or [phone number]"),
        ("+44 207 946 0958", "[phone number]"),
        ("key sk-shammah-" + "aB3_" * 10 + ".", "key [key]."),
        ("token=ghp_" + "a1B2" * 9, "token=[key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nOK?", "[key]\nOK?"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27u", "[key]"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    found, counts = mask(text)
    assert found == masked
    assert sum(counts.values()) == masked.count("[")
    assert mask(found) == (found, {})


@pytest.mark.parametrize(
    "text",
    [
        "What is 2+2? It is 4, not +5.",
        "What is 7+442079460958, and 5 + 442079460958?",
        "The order 4111 1111 1111 1112 has a number that is no card's.",
        "Seconds: 1700000000000, pi: 3.14159265358979323846, ISBN 978-3-16-148410-0, EAN 4006381333931.",
        "The network is 192.168.178.0/24, the camera at 10.0.0.17:8554.",
        "On 12/05/2026 at 10:00, from 1999-2003, 1 000 000 people.",
        "Ask @anna or a@b, see user@localhost.",
        "DE89 3704 0044 0532 0130 01 fails its check, and AB12 is a seat.",
        "Our wifi password is bluelantern27.",
        "020 7946 0958 could be anything without a country.",
        "the risk-aware task-based disk-usage sk-1 approach",
        "0000 0000 0000 0000",
    ],
)
def test_left_alone(text: str) -> None:
    assert mask(text) == (text, {})


def test_numbers_of_ones_own_country() -> None:
    assert mask("Ring 020 7946 0958.", "GB")[0] == "Ring [phone number]."
    assert mask("Ring 0664 1234567 on 12.05.2026.", "AT")[0] == "Ring [phone number] on 12.05.2026."
    assert mask("192.168.178.1 and 12345678", "GB")[0] == "192.168.178.1 and 12345678"
    assert mask("Ring 020 7946 0958.", "ZZ")[0] == "Ring 020 7946 0958."


@given(st.integers(10**13, 10**14 - 1), st.sampled_from(["", " ", "-"]), st.sampled_from("3456"))
def test_every_sixteen_digit_card(number: int, separator: str, first: str) -> None:
    digits = f"{first}{number}"
    digits += luhn.calc_check_digit(digits)
    written = separator.join(digits[at : at + 4] for at in range(0, 16, 4))
    assert len(digits) == 16
    assert mask(f"It is {written}, yes.")[0] == "It is [card number], yes."


@given(st.text(max_size=300))
def test_any_text_is_survived_and_masking_ends(text: str) -> None:
    once, counts = mask(text, "GB")
    assert (once == text) == (not counts)


@pytest.mark.parametrize(
    "piece", ["a", "a@", "a.", "4", "4111 ", "+44 20 7946 0958 ", "ab12", "sk-", "-----BEGIN "]
)
def test_a_long_text_does_not_hold_the_box_up(piece: str) -> None:
    text = (piece * 32768)[:32768]
    started = time.process_time()
    mask(text, "GB")
    assert time.process_time() - started < 3


def test_every_part_of_an_example() -> None:
    parts = [{"type": "text", "text": LETTER}, {"type": "image_url", "image_url": {"url": "x"}}]
    new = NewExample(
        "automatic",
        LETTER,
        "Dear anna.smith@example.org, ring +44 20 7946 0958!",
        "Dear anna.smith@example.org, ring +44 20 7946 0958!",
        1.0,
        [{"role": "system", "content": "Home of bob@example.org"}, {"role": "user", "content": parts}],
    )
    done = mask_example(new)
    assert done.query == "Write to [e-mail] that I come on Sunday."
    assert done.target == done.response == "Dear [e-mail], ring [phone number]!"
    assert done.messages[0] == {"role": "system", "content": "Home of [e-mail]"}
    assert done.messages[1]["content"] == [{"type": "text", "text": done.query}, parts[1]]
    assert done.masked == {"e-mail": 3, "phone number": 1}
    plain = NewExample("automatic", "Hi", "Hello", "Hello", 1.0, [{"role": "user", "content": "Hi"}])
    assert mask_example(plain) is plain


# -- through the collector --------------------------------------------------------------------


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def collect(store: Store, config: Config, query: str = LETTER, response: str = "Done.") -> None:
    collector = Collector(store, config, EventBus())
    message = {"role": "user", "content": query}
    collector.collect(CollectedExchange("c1", [message], query, response, "stop", None, "m", None, 9, 1))
    collector.stop()


def test_collected_masked_in_store_and_file(store: Store, home: Home) -> None:
    mirror = QueueMirror(store, home)
    mirror.start()
    collect(store, Config(), response="I wrote to anna.smith@example.org.")
    mirror.stop()
    (example,) = store.examples.pending()
    assert example.query == example.messages[0]["content"] == "Write to [e-mail] that I come on Sunday."
    assert example.response == example.target == "I wrote to [e-mail]."
    assert example.masked == {"e-mail": 2}
    assert example.remark == "masked: e-mail 2"
    (line,) = home.queue.read_text().splitlines()
    assert json.loads(line)["query"] == example.query
    assert "anna" not in line
    rows = store.database.all("SELECT * FROM examples")
    assert "anna" not in str([tuple(row) for row in rows])


def test_switched_off(store: Store) -> None:
    collect(store, Config(collect=CollectConfig(mask_private=False)))
    (example,) = store.examples.pending()
    assert (example.query, example.masked) == (LETTER, None)


def test_what_a_person_teaches_is_kept_as_it_is(store: Store) -> None:
    taught = "The plumber's number is +44 20 7946 0958."
    example = give_feedback(store, Config(), Feedback("Who is the plumber?", "No idea.", correction=taught))
    assert (example.target, example.masked) == (taught, None)


def test_feedback_finds_the_masked_example(store: Store) -> None:
    """What was masked is still the same question: its correction supersedes the wrong answer."""
    collect(store, Config(), response="I wrote to bob@example.org.")
    (automatic,) = store.examples.pending()
    given = give_feedback(store, Config(), Feedback(completion_id="c1", correction="I wrote to her."))
    assert (given.query, given.target) == (LETTER, "I wrote to her.")
    assert store.examples.get(automatic.id).state == "superseded"
    collect(store, Config(), response="I wrote to bob@example.org.")
    assert [example.id for example in store.examples.pending()] == [given.id]


def test_praise_replaces_the_masked_example(store: Store) -> None:
    collect(store, Config(), response="I wrote to anna.smith@example.org.")
    given = give_feedback(store, Config(), Feedback(completion_id="c1", rating="up"))
    assert [example.id for example in store.examples.pending()] == [given.id]
    assert given.target == "I wrote to anna.smith@example.org."


def test_the_note_is_shown(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from appliance.cli import cli

    monkeypatch.setenv("SHAMMAH_HOME", str(home.root))
    collect(store, Config())
    shown = CliRunner().invoke(cli, ["queue", "show"]).output
    assert "REMARK" in shown
    assert "masked: e-mail 1" in shown
