from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.store.normalise import context_key, message_text, normalise, text_key


@pytest.mark.parametrize(
    "left, right",
    [
        ("What is 2+2?", "  what  IS\n2+2 "),
        ("**Paris**", "paris."),
        ("\u201cParis\u201d!", "(Paris)"),
        ("Stra\u00dfe", "STRASSE"),
        ("Caf\u00e9", "Cafe\u0301"),
        ("\u00bfQu\u00e9?", "qu\u00e9"),
    ],
)
def test_same(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)
    assert text_key(left) == text_key(right)


@pytest.mark.parametrize(
    "left, right", [("-5", "5"), (".5", "5"), ("5%", "5"), ("C#", "C"), ("?", "!"), ("a b", "ab")]
)
def test_different(left: str, right: str) -> None:
    assert text_key(left) != text_key(right)


@given(st.text())
def test_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_context_is_what_the_user_said_before() -> None:
    why = {"role": "user", "content": "Why?"}
    assert context_key([why]) == context_key([{"role": "system", "content": "Be kind."}, why]) == ""
    cats = [{"role": "user", "content": "I like cats."}, {"role": "assistant", "content": "Good."}, why]
    dogs = [{"role": "user", "content": "I like dogs."}, {"role": "assistant", "content": "Good."}, why]
    parts = [{"role": "user", "content": [{"type": "text", "text": "i like CATS"}]}, why]
    assert context_key(cats) == context_key(parts) != context_key(dogs)


def test_message_text_takes_any_shape() -> None:
    assert message_text({"role": "user"}) == message_text({"content": None}) == ""
    assert message_text({"content": [{"text": "a"}, {"type": "image_url"}, "b"]}) == "a\n"
