from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from appliance.errors import BundleError, InvalidRequest
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hi!\n\n1. one\n\n2. two"}],
    [
        {"role": "user", "content": "  spaces before,\ttabs\tand after  "},
        {"role": "assistant", "content": "Yes.\n"},
        {"role": "user", "content": "Grüße aus 東京 👋🏽 — 3,14 % 2026"},
    ],
    [{"role": "user", "content": "def f(x):\n    return {'a': [1, 2]}  # <html> | {{ x }} {% if %}"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "\n"}, {"role": "assistant", "content": ""}],
    [{"role": "tool", "content": '{"t": 21}'}, {"role": "user", "content": "So?"}],
]
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "<|", "|>", "<", ">"),
                *("system\n", "assistant\n", "\n", " ", "{{", "}}", "{% raw %}", "{% endfor %}", "{#", "#}"),
                *(
                    "<repo_name>",
                    "<file_sep>",
                    "[user]",
                    "</s>",
                    "<s>",
                    "[assist",
                    "ant]",
                    "e0e",
                    "c3cx",
                    "x",
                ),
                *("{{ messages }}", "\ud800", "\x00", "\ufffd", "\u202e", "👋", "é", "e\u0301"),
            ]
        ),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)


def clean(text: str) -> str:
    """Without lone surrogates, which are no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def spelled(tokenizer: Tokenizer, text: str) -> str:
    """What of a text the vocabulary can spell: the default model's lacks some bytes of rare planes."""
    return "".join(c for c in clean(text) if tokenizer.decode(tokenizer.encode(c)) == c)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny: Bundle) -> Tokenizer:
    return Tokenizer(tiny)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_ordinary_conversations_get_the_models_own_tokens(
    bundle: Bundle, tokenizer: Tokenizer, messages: list[dict[str, Any]], prompt: bool
) -> None:
    reference = AutoTokenizer.from_pretrained(bundle.path)
    ids = reference.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
    assert tokenizer.encode_chat(messages, add_generation_prompt=prompt) == ids


def test_numbers_are_split_into_digits_as_in_training(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([ident]) for ident in tokenizer.encode("One.\n\n25 is")]
    assert pieces == ["One", ".", "\n\n", "2", "5", " is"]


@given(text=HOSTILE)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_text_never_becomes_control_tokens(
    tokenizer: Tokenizer, tiny_tokenizer: Tokenizer, text: str
) -> None:
    for each in (tokenizer, tiny_tokenizer):
        assert not each.control_ids.intersection(each.encode(text))
        whole = spelled(each, text)
        assert each.decode(each.encode(whole)) == whole


def controls(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[int]:
    return [ident for ident in tokenizer.encode_chat(messages) if ident in tokenizer.control_ids]


@given(system=HOSTILE, question=HOSTILE, answer=HOSTILE, again=HOSTILE)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_messages_never_become_control_tokens(
    tokenizer: Tokenizer, tiny_tokenizer: Tokenizer, system: str, question: str, answer: str, again: str
) -> None:
    def chat(*contents: str) -> list[dict[str, Any]]:
        roles = ("system", "user", "assistant", "user")
        return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]

    hostile = chat(system, question, answer, again)
    for each in (tokenizer, tiny_tokenizer):
        assert controls(each, hostile) == controls(each, chat("a", "b", "c", "d"))
    text = tokenizer.decode(tokenizer.encode_chat(hostile))
    for content in (system, question, answer, again):
        if spelled(tokenizer, content) == clean(content):
            assert clean(content) in text


@given(text=HOSTILE)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_fields_are_guarded_as_well(tiny: Bundle, tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools"
    shutil.copytree(tiny.path, path, dirs_exist_ok=True)
    (path / "chat_template.jinja").write_text(
        "{% for t in tools %}{{ t | tojson }}{% if t.type == 'function' %}</s>{% endif %}{% endfor %}"
        "{% for m in messages %}[user]{{ m.name }}{{ m.tool_calls | tojson }}{{ m.content }}</s>{% endfor %}"
    )
    tokenizer = Tokenizer(Bundle(path, tiny.manifest))
    messages = [
        {"role": "user", "content": text, "name": text, "tool_calls": [{"type": text, text: text, "n": 1.5}]}
    ]
    ids = tokenizer.encode_chat(messages, tools=[{"type": "function", "name": text}])
    assert [tokenizer.decode([i]) or i for i in ids if i in tokenizer.control_ids] == [
        *tokenizer.eos_ids,
        *[i for i in ids if i in tokenizer.control_ids][1:2],
        *tokenizer.eos_ids,
    ]


def test_an_answer_ends_as_the_template_ends_it(tokenizer: Tokenizer, tiny_tokenizer: Tokenizer) -> None:
    for each in (tokenizer, tiny_tokenizer):
        question = {"role": "user", "content": "Hi"}
        answer = "Hello there."
        both = each.encode_chat([question]) + each.encode_answer(answer, end=True)
        whole = each.encode_chat(
            [question, {"role": "assistant", "content": answer}], add_generation_prompt=False
        )
        assert whole[: len(both)] == both
        assert both[-1] in each.eos_ids
        assert each.encode_answer(answer, end=False) == both[len(each.encode_chat([question])) : -1]
    assert not tokenizer.control_ids.intersection(tokenizer.encode_answer("<|im_end|>", end=False))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "wizard", "content": "x"},
        {"role": "user<|im_end|>", "content": "x"},
        {"role": None, "content": "x"},
        {"content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": {"a": 1}},
    ],
)
def test_what_the_template_cannot_take_is_the_callers_error(
    tokenizer: Tokenizer, message: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode_chat([message])
    assert caught.value.param == "messages"


def test_roles_and_missing_content(tokenizer: Tokenizer) -> None:
    as_system = tokenizer.encode_chat([{"role": "system", "content": "x"}])
    assert tokenizer.encode_chat([{"role": "developer", "content": "x"}]) == as_system
    assert tokenizer.encode_chat([{"role": "assistant", "content": None}])


def test_a_template_is_a_sandbox_and_may_refuse(tiny: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "b"
    shutil.copytree(tiny.path, path)
    template = path / "chat_template.jinja"
    for text in (
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].role.x.y }}",
    ):
        template.write_text(text)
        with pytest.raises(InvalidRequest):
            Tokenizer(Bundle(path, tiny.manifest)).encode_chat([{"role": "user", "content": "x"}])
    template.write_text("{% if %}")
    with pytest.raises(BundleError):
        Tokenizer(Bundle(path, tiny.manifest))
    template.unlink()
    with pytest.raises(InvalidRequest, match="no chat format"):
        Tokenizer(Bundle(path, tiny.manifest)).encode_chat([{"role": "user", "content": "x"}])


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = tokenizer.stream()
    return [*(detokenizer.push(ident) for ident in ids), detokenizer.flush()]


@given(text=st.text(max_size=60) | HOSTILE)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streaming_gives_the_text_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, [1, *ids, 2])
    whole = tokenizer.decode(ids)
    assert "".join(pieces).rstrip("\ufffd") == whole.rstrip("\ufffd")
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


def test_streaming_emoji(tokenizer: Tokenizer) -> None:
    text = "👩‍👩‍👧‍👦 waves 👋🏽 and 🇩🇪, 東京!"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text.split())
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    # Cut off in the middle of a character: what is whole comes out, the rest does not.
    assert "".join(stream(tokenizer, tokenizer.encode("ok 👋")[:-1])).rstrip() == "ok"


@given(ids=st.lists(st.integers(0, 49151), max_size=60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tokens_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    pieces = stream(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert "".join(pieces).rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_broken_tokenizer_file(tiny: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "b"
    shutil.copytree(tiny.path, path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer(Bundle(path, load_bundle(tiny.path).manifest))
