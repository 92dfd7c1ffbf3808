"""Which messages a chat template takes, found out by trying it, and how to say the others.

Some templates refuse or drop a system message, or demand that user and assistant take turns. What such a
template does not take is said in the next best way: a system message at the head of the user's next one,
two messages of the same speaker as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import InvalidRequest

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, Sequence[Mapping[str, Any]] | None], str]
"""Conversation and tools to text; raises `InvalidRequest` where the template refuses them."""

_FIRST, _SECOND, _THIRD, _NAME = "qwxzfirst", "qwxzsecond", "qwxzthird", "qwxz_name"
_SYSTEM = ("system", "developer")
_FOLDED = "\n\n"  # stands between what two messages said


@dataclass(frozen=True)
class Takes:
    """What a template takes as it is.

    Attributes:
        system: a system message before all others.
        later_system: one further on.
        repeats: two messages of the same speaker after each other.
        tools: tools, calls in the form that we read, and their results.
    """

    system: bool = True
    later_system: bool = True
    repeats: bool = True
    tools: bool = False


def find_out(render: Render, call_mark: str) -> Takes:
    """Try a template.

    Args:
        render: what it makes of messages.
        call_mark: what stands before a call, a JSON object, in a template that speaks of tools our way.
    """

    def says(texts: Sequence[str], messages: Messages, tools: Messages | None = None) -> bool:
        try:
            said = render(messages, tools)
        except InvalidRequest:
            return False
        return all(text in said for text in texts)

    user, other = _message("user", _FIRST), _message("user", _SECOND)
    if not says([_FIRST], [user]):
        return Takes()  # nothing can be learned of it; what it refuses, it says itself
    answer = _message("assistant", _SECOND)
    system = says([_FIRST, _SECOND], [_message("system", _SECOND), user])
    later = [user, answer, _message("system", _THIRD), user]
    call = {
        "id": "qwxzcall0",
        "type": "function",
        "function": {"name": _NAME, "arguments": {"a": _SECOND}},
    }
    function = {"name": _NAME, "description": _THIRD, "parameters": {"type": "object", "properties": {}}}
    return Takes(
        system=system,
        later_system=system and says([_FIRST, _SECOND, _THIRD], later),
        repeats=says([_FIRST, _SECOND], [user, other])
        and says([_FIRST, _SECOND, _THIRD], [user, answer, _message("assistant", _THIRD)]),
        tools=says([_FIRST, _NAME, _THIRD], [user], [{"type": "function", "function": function}])
        and says(
            [call_mark, f'"name": "{_NAME}"', _SECOND, _THIRD],
            [
                user,
                {**_message("assistant", ""), "tool_calls": [call]},
                {**_message("tool", _THIRD), "tool_call_id": call["id"]},
            ],
        ),
    )


def fitted(messages: Messages, takes: Takes) -> list[Mapping[str, Any]]:
    """The conversation in messages that the template takes."""
    turns: list[Mapping[str, Any]] = []
    join = False  # whether the message before was no turn of its own
    for message in messages:
        role, content = message.get("role"), message.get("content") or ""
        if role in _SYSTEM and not (takes.later_system if turns else takes.system):
            if turns and turns[-1].get("role") in _SYSTEM:
                turns[-1] = _joined(turns[-1], message)
                continue
            if not content:
                continue
            message, role, folded = {**message, "role": "user"}, "user", True
        else:
            folded = False
        same = bool(turns) and turns[-1].get("role") == role and role in ("user", "assistant")
        if same and (join or not takes.repeats):
            turns[-1] = _joined(turns[-1], message)
        else:
            turns.append(message)
        join = folded
    return turns


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two messages of one speaker as one."""
    said = [text for message in (first, second) if (text := message.get("content"))]
    joined = {**first, **second, "role": first["role"], "content": _FOLDED.join(said)}
    if calls := [*(first.get("tool_calls") or ()), *(second.get("tool_calls") or ())]:
        joined["tool_calls"] = calls
    return joined


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
