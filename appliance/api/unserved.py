"""Fields that would change an answer and are not served: refused by name, never ignored.

They are OpenAI's own, and those of other servers and front ends that clients send to any of them. A value
that means what the box does anyway (null, false, nothing, the default) is fine. Whatever is not named here
does not change an answer, or nobody knows it: it is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.errors import InvalidRequest

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
"""0 is False to Python, and means as little."""

_UNLESS_NOTHING = (
    # OpenAI's
    *("audio", "functions", "function_call", "modalities", "moderation", "reasoning", "reasoning_effort"),
    *("verbosity", "suffix", "echo"),
    # The form of the answer
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern"),
    *("structured_outputs", "grammar", "json_schema", "regex", "ebnf", "format"),
    # The prompt
    *("system", "chat_template", "chat_template_kwargs", "continue_final_message", "documents", "options"),
    *("safe_prompt", "truncate_prompt_tokens", "thinking", "enable_thinking", "think"),
    *("input", "instructions", "previous_response_id", "images", "template", "raw", "negative_prompt"),
    # Sampling
    *("top_a", "top_n_sigma", "epsilon_cutoff", "eta_cutoff", "xtc_probability", "dry_multiplier"),
    *("dynatemp_range", "smoothing_factor", "penalty_alpha", "mirostat", "mirostat_mode"),
    *("no_repeat_ngram_size", "use_beam_search", "samplers", "logits_processors", "bad_words"),
    *("bad_words_ids", "banned_tokens", "allowed_token_ids"),
    # Where it ends, and what is told of it
    *("min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output"),
    *("return_tokens_as_token_ids", "prompt_logprobs"),
    # What is served by another name
    *("max_new_tokens", "max_output_tokens", "n_predict", "num_predict", "random_seed", "stop_sequences"),
)
_ALSO_FINE: dict[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "thinking": ({"type": "disabled"},),
    "top_n_sigma": (-1,),
    "n_predict": (-1,),
    "num_predict": (-1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
}
"""Values of these that mean what the box does."""
_UNLESS: dict[str, tuple[Any, ...]] = {
    "web_search_options": (),  # an empty object asks for a search
    "add_generation_prompt": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "do_sample": (True,),
    "typical_p": (1,),
    "tfs": (1,),
    "tfs_z": (1,),
    "length_penalty": (1,),
    "num_beams": (1,),
    "repeat_penalty": (1,),
}
"""Where nothing, or false, would mean something: only these are fine, and null."""
_IN_CHAT_ONLY = ("messages", "response_format", "tools", "tool_choice", "top_logprobs")
_INSTEAD = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "guided_json": "use response_format",
    "structured_outputs": "use response_format",
    "json_schema": "use response_format",
    "format": "use response_format",
    **dict.fromkeys(("system", "instructions"), "send a message with the role system"),
    "input": "send messages",
    "stop_sequences": "use stop",
    "prompt": "it belongs to /v1/completions",
    **dict.fromkeys(_IN_CHAT_ONLY, "it belongs to /v1/chat/completions"),
    **dict.fromkeys(("max_new_tokens", "max_output_tokens", "n_predict", "num_predict"), "use max_tokens"),
    "repeat_penalty": "use repetition_penalty",
    "random_seed": "use seed",
    "do_sample": "use temperature",
    "best_of": "use n, and choose",
}


def _fine(others: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """The values, by field, that need not be refused."""
    nothing = (*_UNLESS_NOTHING, *others)
    return {name: (*_NOTHING, *_ALSO_FINE.get(name, ())) for name in nothing} | {
        name: (None, *fine) for name, fine in _UNLESS.items()
    }


_CHAT = _fine(("prompt",))
_PLAIN = _fine(_IN_CHAT_ONLY)


def refuse(data: Mapping[str, Any], *, chat: bool) -> None:
    """Refuse a body that asks for what would have to be ignored.

    Args:
        data: the body as it came.
        chat: whether it asks for an answer, not for a text to be continued.

    Raises:
        InvalidRequest: `param` names the field.
    """
    for name, fine in (_CHAT if chat else _PLAIN).items():
        if name in data and data[name] not in fine:
            raise _not_served(name)
    form = data.get("response_format")
    if isinstance(form, Mapping) and form.get("type") == "json_object" and form.get("schema"):
        raise InvalidRequest(
            "response_format.schema is not served: use the type json_schema.",
            param="response_format.schema",
            code="unsupported_parameter",
        )
    # The best of as many as are answered is all of them.
    if data.get("best_of") not in (None, data.get("n") or 1):
        raise _not_served("best_of")


def refuse_in_message(message: Mapping[str, Any]) -> None:
    """The same for a message of the assistant's; a `ValueError`, since pydantic knows where it stands."""
    for name in ("function_call", "audio", "prefix"):
        if message.get(name):
            raise ValueError(f"{name} is not served in a message")


def _not_served(name: str) -> InvalidRequest:
    instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
    return InvalidRequest(f"{name} is not served{instead}.", param=name, code="unsupported_parameter")
