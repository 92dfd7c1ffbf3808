"""Templates that demand something, in a daemon: what the box inserts is never the fault of a client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from checkpoints import make_checkpoint
from daemons import Daemon

from appliance.home import Home
from appliance.model.importer import import_model

# As Gemma's: no system message, and turns.
STRICT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
LOOKUP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "maxLength": 3}},
            "required": ["word"],
        },
    },
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a small random model whose template refuses what it does not know."""
    place: Path = tmp_path_factory.mktemp("strict")
    checkpoint = make_checkpoint(place / "strict", max_position_embeddings=2048)
    (checkpoint / "chat_template.jinja").write_text(STRICT)
    home = Home(place / "home").ensure()
    bundle = import_model(str(checkpoint), home)
    shutil.rmtree(checkpoint)
    home.config.write_text(f'[model]\nname = "{bundle.name}"\n[lora]\nenabled = false\n')
    daemon = Daemon(home).start()
    yield daemon
    daemon.kill()


def call(ident: str) -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": "look_up", "arguments": '{"word": "a"}'}}


TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a?"},
    {"role": "assistant", "content": None, "tool_calls": [call("call_1"), call("call_2")]},
    {"role": "tool", "tool_call_id": "call_1", "content": "a letter"},
    {"role": "tool", "tool_call_id": "call_2", "content": "the first"},
    {"role": "user", "content": "And b?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [call("call_3")]},
    {"role": "tool", "tool_call_id": "call_3", "content": "another"},
    {"role": "user", "content": "Thanks. And c?"},
    {"role": "user", "content": "And d?"},
]


@pytest.mark.parametrize("length", [2, 5, 6, 8, 10])
@pytest.mark.parametrize("tools", [True, False])
def test_a_strict_template_takes_tools_and_system_messages(strict: Daemon, length: int, tools: bool) -> None:
    offered: dict[str, Any] = {"tools": [LOOKUP], "tool_choice": "required"} if tools else {}
    answer = strict.client().chat.completions.create(
        model="shammah",
        messages=TURNS[:length],  # type: ignore[arg-type]
        max_tokens=300,
        temperature=0,
        **offered,
    )
    (choice,) = answer.choices
    if tools:
        assert choice.message.tool_calls
        made = [call.function.arguments for call in choice.message.tool_calls]
        assert len(made) == len(set(made))
    said = sum(len(str(message["content"] or "")) for message in TURNS[:length])
    assert answer.usage is not None and answer.usage.prompt_tokens > said / 3, "all of it was read"


def test_what_the_client_does_wrong_is_still_said(strict: Daemon) -> None:
    with pytest.raises(openai.BadRequestError, match="alternate"):
        strict.client().chat.completions.create(
            model="shammah",
            messages=[{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi"}],
        )
