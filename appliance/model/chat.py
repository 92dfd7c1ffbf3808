"""The chat template of a model that is imported: which of several, and whether it can be used.

Import time only: what a template cannot do is found here, and not by the first who talks to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import BundleError
from appliance.model.authored import authored, spans
from appliance.model.bundle import CHAT_TEMPLATE, TOOL_TEMPLATE
from appliance.model.template import ERRORS, ChatTemplate
from appliance.model.weights import read_json

_USER = {"role": "user", "content": "Good morning!"}
_TALK = [
    _USER,
    {"role": "assistant", "content": "Good morning."},
    {"role": "user", "content": "Who are you?"},
]
_SYSTEM = [{"role": "system", "content": "You are brief."}, _USER]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look something up.",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
        },
    }
]


def write_templates(checkpoint: Path, chosen: Any, out: Path) -> None:
    """Write the template for chats, and the one for tools if there is one of its own, to the bundle.

    Args:
        checkpoint: the source's directory.
        chosen: what transformers found: a template, several by name, or none.
        out: the bundle's directory.
    """
    if not chosen and (checkpoint / "chat_template.json").exists():  # an older form
        chosen = read_json(checkpoint / "chat_template.json").get("chat_template")
    if isinstance(chosen, list):
        chosen = {each.get("name"): each.get("template") for each in chosen if isinstance(each, Mapping)}
    if isinstance(chosen, Mapping):
        named = {str(name): text for name, text in chosen.items() if isinstance(text, str)}
        if "tool_use" in named and len(named) > 1:
            (out / TOOL_TEMPLATE).write_text(named["tool_use"], encoding="utf-8")
        chosen = named.get("default") or next(iter(named.values()), None)
    if chosen:
        (out / CHAT_TEMPLATE).write_text(str(chosen), encoding="utf-8")


def check_templates(out: Path) -> list[str]:
    """Compile the bundle's templates and let them write.

    Returns:
        What they cannot do, a sentence each.

    Raises:
        BundleError: they cannot be used for any conversation.
    """
    if not (out / CHAT_TEMPLATE).exists():
        return []
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    data = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    controls = [token["content"] for token in data.get("added_tokens") or [] if token["content"].strip()]
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
    names = {key: _special(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    template = _compiled(out / CHAT_TEMPLATE)
    tooled = _compiled(out / TOOL_TEMPLATE) if (out / TOOL_TEMPLATE).exists() else template
    notes = []
    for messages in ([_USER], _TALK):
        try:
            text = _render(template, messages, None, names)
        except ERRORS as error:
            raise BundleError(f"The model's chat template refuses a conversation: {_why(error)}.") from error
        written = sum(len(pattern.findall(str.__str__(text)[a:b])) for a, b in spans(text))
        if written != len(pattern.findall(str.__str__(text))):
            raise BundleError(
                "The model's chat template makes control tokens in a way that is not supported."
            )
    for what, writer, messages, tools in (
        ("a system message", template, _SYSTEM, None),
        ("tools", tooled, [_USER], _TOOLS),
    ):
        try:
            _render(writer, messages, tools, names)
        except ERRORS as error:
            notes.append(f"Its chat template does not take {what}: {_why(error)}.")
    return notes


def _compiled(path: Path) -> ChatTemplate:
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"))
    except (*ERRORS, SyntaxError) as error:
        raise BundleError(f"The model's chat template cannot be used: {_why(error)}.") from error


def _render(template: ChatTemplate, messages: list[dict[str, str]], tools: Any, names: dict[str, Any]) -> str:
    talk = [{**message, "role": authored(message["role"])} for message in messages]
    return template.render(messages=talk, tools=tools, documents=None, add_generation_prompt=True, **names)


def _special(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return authored(text if isinstance(text, str) else "")


def _why(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
