"""Which fields may be null, which are refused by name, and which part of a request an error names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from daemons import Daemon
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming

from appliance.api import unserved
from appliance.api.schemas import ChatBody, CompletionBody

CHAT, PLAIN, FEEDBACK = "/v1/chat/completions", "/v1/completions", "/v1/feedback"
SAY: dict[str, Any] = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {"model": "shammah", "messages": [SAY], "max_tokens": 2}
GO_ON: dict[str, Any] = {"model": "shammah", "prompt": "One,", "max_tokens": 2}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


def optional(hints: dict[str, Any]) -> list[str]:
    """The fields of OpenAI's own client that take None."""
    return sorted(name for name, kind in hints.items() if type(None) in get_args(_bare(kind)))


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if "Required" in str(get_origin(kind)) else kind


def test_every_optional_field_of_openai_may_be_null(daemon: Daemon) -> None:
    chat = optional(get_type_hints(chat_params.CompletionCreateParamsNonStreaming))
    plain = [
        name for name in optional(get_type_hints(CompletionCreateParamsNonStreaming)) if name != "prompt"
    ]
    assert {"frequency_penalty", "presence_penalty", "logit_bias", "stream_options"} <= {*chat, *plain}
    for path, body, names, model in (
        (CHAT, GOOD, chat, ChatBody),
        (PLAIN, GO_ON, plain, CompletionBody),
    ):
        ours = [name for name in model.model_fields if name not in ("model", "messages", "prompt")]
        answer = daemon.post(path, json=body | dict.fromkeys([*names, *ours]) | {"max_tokens": 2})
        assert answer.status_code == 200, answer.text
    body = GOOD | {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None}}
    assert '"usage"' not in daemon.post(CHAT, json=body).text
    nulls = dict.fromkeys(("weight", "feedback", "correction", "rating", "completion_id"))
    answer = daemon.post(FEEDBACK, json={"query": "2+2?", "response": "4", **nulls})
    assert (answer.status_code, answer.json()["kind"]) == (200, "praise")


@pytest.mark.parametrize(
    "said",
    [
        {"content": None},
        {"content": None, "tool_calls": []},
        {"tool_calls": []},
        {"content": None, "refusal": "I cannot say that."},
        {"refusal": "I cannot say that."},
        {"content": None, "refusal": None, "tool_calls": None, "function_call": None, "audio": None},
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": "Hello.", "name": None},
    ],
)
def test_an_answer_comes_back_as_it_was_given(daemon: Daemon, said: dict[str, Any]) -> None:
    messages = [SAY, {"role": "assistant", **said}, SAY]
    answer = daemon.post(CHAT, json=GOOD | {"messages": messages})
    assert answer.status_code == 200, answer.text


def test_a_refusal_is_what_was_said(daemon: Daemon) -> None:
    def tokens(said: dict[str, Any]) -> int:
        messages = [SAY, {"role": "assistant", **said}, SAY]
        return int(daemon.post(CHAT, json=GOOD | {"messages": messages}).json()["usage"]["prompt_tokens"])

    refused = "I cannot say that."
    assert (
        tokens({"content": None, "refusal": refused})
        == tokens({"content": refused})
        == tokens({"content": [{"type": "refusal", "refusal": refused}]})
        > tokens({"content": None})
    )


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [SAY | {"content": content} | more]}


TEXT = {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        (message([TEXT, {"type": "image_url", "image_url": {"url": "data:"}}]), "messages[0].content[1].type",
         "image_url is not served; this model reads text only"),
        (message([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type",
         "input_audio is not served"),
        (message([TEXT, {"type": "file", "file": {}}]), "messages[0].content[1].type", "file is not served"),
        (message([TEXT, TEXT, {"type": "text"}]), "messages[0].content[2].text", "Field required"),
        (message([{"type": "text", "text": 5}]), "messages[0].content[0].text", "valid string"),
        (message([TEXT, 5]), "messages[0].content[1]", "an object"),
        (message([TEXT, "words"]), "messages[0].content[1]", "an object"),
        (message([{"text": "no type"}]), "messages[0].content[0].type", "Field required"),
        (message(5), "messages[0].content", "a valid string or a valid list"),
        (message({"type": "text"}), "messages[0].content", "a valid string or a valid list"),
        ({"messages": [SAY, 5]}, "messages[1]", "an object"),
        ({"messages": [SAY, {"role": "assistant", "content": "", "tool_calls": [5]}]},
         "messages[1].tool_calls[0]", "an object"),
        ({"messages": [SAY, {"role": "assistant", "content": "", "function_call": {"name": "a"}}]},
         "messages[1]", "function_call is not served"),
        ({"stop": ["a", 5]}, "stop[1]", "valid string"),
        ({"stop": 5}, "stop", "a valid string or a valid list"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": 5}}]}, "tools[1].function.name", "str"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name",
         "required"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice", "'required' or an object"),
    ],
)  # fmt: skip
def test_the_part_at_fault_is_named(daemon: Daemon, change: dict[str, Any], param: str, told: str) -> None:
    answer = daemon.post(CHAT, json=GOOD | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert told in error["message"] and error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], [[1, 2]], [1]])
def test_lists_of_tokens_are_called_so(daemon: Daemon, prompt: list[Any]) -> None:
    answer = daemon.post(PLAIN, json=GO_ON | {"prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt: lists of tokens are not served; send the text"


@pytest.mark.parametrize(
    "change",
    [
        {"best_of": 3},
        {"n": 2, "best_of": 1},
        {"modalities": ["text", "audio"]},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "a+"},
        {"guided_choice": ["a", "b"]},
        {"structured_outputs": {"json": {}}},
        {"grammar": 'root ::= "a"'},
        {"format": "json"},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"suffix": "end"},
        {"echo": True},
        {"system": "You are a pirate."},
        {"typical_p": 0.5},
        {"top_a": 0.2},
        {"mirostat": 2},
        {"min_tokens": 5},
        {"ignore_eos": True},
        {"bad_words": ["no"]},
        {"stop_token_ids": [5]},
        {"skip_special_tokens": False},
        {"prompt_logprobs": 3},
        {"repeat_penalty": 1.2},
        {"max_new_tokens": 5},
        {"max_output_tokens": 5},
        {"stop_sequences": ["a"]},
        {"instructions": "Be brief."},
        {"input": "Hi"},
        {"images": ["aGk="]},
        {"raw": True},
        {"do_sample": False},
        {"options": {"num_ctx": 5}},
    ],
)
def test_what_would_change_the_answer_is_never_ignored(daemon: Daemon, change: dict[str, Any]) -> None:
    name = list(change)[-1]
    for path, body in ((CHAT, GOOD), (PLAIN, GO_ON)):
        answer = daemon.post(path, json=body | change)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", name)
        assert error["message"].startswith(f"{name} is not served")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"add_generation_prompt": False}),
        (CHAT, {"continue_final_message": True}),
        (CHAT, {"chat_template": "{{ messages }}"}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
        (CHAT, {"functions": [{"name": "time"}]}),
        (CHAT, {"function_call": {"name": "time"}}),
        (CHAT, {"prompt": "One,"}),
        (PLAIN, {"response_format": {"type": "json_object"}}),
        (PLAIN, {"tools": [TOOL]}),
        (PLAIN, {"messages": [SAY]}),
    ],
)
def test_what_belongs_elsewhere(daemon: Daemon, path: str, change: dict[str, Any]) -> None:
    answer = daemon.post(path, json=(GOOD if path == CHAT else GO_ON) | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == next(iter(change))


def test_a_schema_beside_json_object_is_not_ignored(daemon: Daemon) -> None:
    form = {"type": "json_object", "schema": {"type": "object"}}
    error = daemon.post(CHAT, json=GOOD | {"response_format": form}).json()["error"]
    assert (error["param"], error["code"]) == ("response_format.schema", "unsupported_parameter")


def test_values_that_mean_what_the_box_does(daemon: Daemon) -> None:
    same = {
        "best_of": 1, "n": 1, "modalities": ["text"], "guided_json": None, "grammar": "", "echo": False,
        "suffix": None, "reasoning_effort": None, "verbosity": "medium", "typical_p": 1.0, "mirostat": 0,
        "min_tokens": 0, "ignore_eos": False, "bad_words": [], "skip_special_tokens": True,
        "add_generation_prompt": True, "function_call": "none", "repeat_penalty": 1.0, "top_k": 0,
        "service_tier": "auto", "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"},
        "safety_identifier": "me", "prompt_cache_key": "k", "nobody_knows": [1, 2],
    }  # fmt: skip
    assert daemon.post(CHAT, json=GOOD | same).status_code == 200
    plain = same | {"response_format": {"type": "text"}, "tools": []}
    assert daemon.post(PLAIN, json=GO_ON | plain).status_code == 200


def test_the_newer_name_of_the_longest_answer(daemon: Daemon) -> None:
    body = {"model": "shammah", "prompt": "One, two,", "temperature": 0, "max_completion_tokens": 3}
    assert daemon.post(PLAIN, json=body).json()["usage"]["completion_tokens"] == 3
    assert daemon.post(PLAIN, json=body | {"max_completion_tokens": 0}).status_code == 400


def test_every_field_that_is_refused_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert not [name for name in (*unserved._CHAT, *unserved._PLAIN, "best_of") if f"`{name}`" not in text]
