"""Text to tokens and back, with the chat template.

Text from users must never become control tokens, whatever it contains:

* While the template runs, what it writes itself is told from what users wrote (`authored`), which it
  sees exactly as it was written. Only what the template wrote is looked through for control tokens.
* The tokenizer has its control tokens *renamed* to names drawn when it was loaded. The template's
  are translated to those names, and `<|im_start|>` in a message is characters like any others, because
  no token is called that.

All other text reaches the template and the tokenizer unchanged, so an ordinary conversation gets
exactly the tokens that the model was trained with.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from appliance.errors import BundleError, ContextOverflow, InvalidRequest
from appliance.model.authored import authored, spans
from appliance.model.bundle import CHAT_TEMPLATE, TOOL_TEMPLATE, Bundle
from appliance.model.template import ERRORS, ChatTemplate
from appliance.model.turns import Takes, find_out, fitted
from appliance.model.vocabulary import Vocabulary
from appliance.reading import well_formed

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
"""What stands around a call of a tool in an answer; many families learn this form."""
# An unfinished character of n bytes reads as up to n replacement characters, and has 3 bytes at most.
_PENDING = 3
_REASON = 500  # characters of what a template says when it refuses


class Tokenizer:
    """The tokenizer of a bundle. Thread-safe.

    Attributes:
        eos_ids: tokens that end a turn.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            data = json.loads((bundle.path / "tokenizer.json").read_text(encoding="utf-8"))
            settings = json.loads((bundle.path / "tokenizer_config.json").read_text(encoding="utf-8"))
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._vocabulary = Vocabulary(data, self._plain)
            self._secret = _rename_controls(data, secrets.token_hex(12))
            self._renamed = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._template = _template(bundle.path / CHAT_TEMPLATE)
            self._for_tools = _template(bundle.path / TOOL_TEMPLATE) or self._template
        except Exception as error:  # the tokenizers library raises bare Exception
            raise BundleError(
                f"The tokenizer of {bundle.path} cannot be read ({error}). Import the model again."
            ) from error
        self.eos_ids: tuple[int, ...] = bundle.manifest.eos_ids
        self._context = bundle.manifest.context_length
        self._prefix = self._plain.encode("", add_special_tokens=True).ids
        controls = "|".join(re.escape(name) for name in sorted(self._secret, key=len, reverse=True))
        self._controls = re.compile(controls or r"(?!)")
        self._names = {
            key: authored(_token_text(settings.get(key)))
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        }

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; nothing in it becomes a control token."""
        return self._ids(well_formed(text))

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a raw prompt: what the model wants before any text, then the text."""
        return [*self._prefix, *self.encode(text)]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Tokens of a conversation in the model's chat format, what it does not take fitted to it.

        Raises:
            InvalidRequest: the model has no chat format, or it refuses these messages.
            ContextOverflow: it makes more of them than the model can read.
        """
        text = self._render(fitted(messages, self._takes), add_generation_prompt, tools)
        if len(text) > self.longest_text(self._context):
            raise ContextOverflow(f"In the model's chat format this has {len(text):,} characters, too many.")
        return self._ids(text)

    def encode_answer(self, text: str, end: bool) -> list[int]:
        """Tokens of an answer as the model generates it; with `end`, up to the end of its turn."""
        return [*self.encode(text), *(self._turn_end if end else ())]

    def longest_text(self, tokens: int) -> int:
        """Characters that so many tokens have at most: a text with more has more tokens."""
        return tokens * self._longest_token

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens left out."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def bytes_of(self, ident: int) -> bytes:
        """UTF-8 bytes of one token, which need not be whole characters."""
        return self._vocabulary.bytes_of(ident)

    def stream(self) -> Detokenizer:
        """A decoder that takes one token at a time."""
        return Detokenizer(self._plain)

    @property
    def writes_calls(self) -> bool:
        """Whether the chat template describes tools, their results, and calls as JSON in `CALL_BEGIN`."""
        return self._takes.tools

    @cached_property
    def _takes(self) -> Takes:
        if self._template is None:
            return Takes()
        # A control token has another name in what is rendered.
        mark = self._secret.get(CALL_BEGIN, CALL_BEGIN)
        return find_out(lambda messages, tools: self._render(messages, True, tools), mark)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Every token that no text may yield."""
        return frozenset(
            ident for name in self._secret if (ident := self._plain.token_to_id(name)) is not None
        )

    @cached_property
    def marks(self) -> dict[str, int]:
        """Added tokens in angle brackets that an answer shows, such as `<tool_call>` where it is one."""
        return {
            name: ident
            for name in self._secret
            if name.startswith("<") and name.endswith(">")
            if (ident := self._plain.token_to_id(name)) is not None and self.decode([ident]) == name
        }

    @cached_property
    def _longest_token(self) -> int:
        """In characters, or letters that stand for bytes, which are no fewer."""
        return max(map(len, self._renamed.get_vocab()))

    def _ids(self, text: str) -> list[int]:
        # Only a batch, here of one, is encoded without the interpreter's lock.
        return list(self._renamed.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    @cached_property
    def _turn_end(self) -> tuple[int, ...]:
        """What the template puts after an answer, up to the token that ends it."""
        ids = self.eos_ids[:1]
        if self._template is None:
            return ids
        probe = "".join(secrets.choice("abcdefgh") for _ in range(24))
        question = {"role": "user", "content": "Hi"}
        text = self._render([question, {"role": "assistant", "content": probe}], False, None)
        tail = self._ids(text.rpartition(probe)[2])
        for at, ident in enumerate(tail):
            if ident in self.eos_ids:
                return tuple(tail[: at + 1])
        return ids

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> str:
        """The conversation as text for the renamed tokenizer."""
        called = any(message.get("role") == "tool" or message.get("tool_calls") for message in messages)
        template = self._for_tools if tools or called else self._template
        if template is None:
            raise InvalidRequest("This model has no chat format; use /v1/completions.", param="messages")
        try:
            text = template.render(
                messages=[_message(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except ERRORS as error:
            raise InvalidRequest(
                f"The model's chat format does not allow these messages: {str(error)[:_REASON]}",
                param="messages",
            ) from error
        return well_formed(self._renamed_controls(text))

    def _renamed_controls(self, text: str) -> str:
        """A rendered conversation, with the names drawn for control tokens where the template wrote some."""
        pieces, at, plain = [], 0, str.__str__(text)
        for start, end in spans(text):
            pieces.append(plain[at:start])
            pieces.append(self._controls.sub(lambda match: self._secret[match[0]], plain[start:end]))
            at = end
        return "".join([*pieces, plain[at:]])


class Detokenizer:
    """Turns tokens into text as they come, holding back what may still be part of a character."""

    def __init__(self, plain: tokenizers.Tokenizer) -> None:
        self._plain = plain
        self._ids: list[int] = []
        self._emitted = 0

    def push(self, ident: int) -> str:
        """The text that `ident` completes; empty for control tokens and unfinished characters."""
        # A window of tokens is decoded anew each time: a token's text may depend on its neighbours
        # (leading spaces), and a character may span several. It moves on at every whole character.
        self._ids.append(ident)
        text = self._text()
        stable = len(text)
        while stable and text[stable - 1] == "\ufffd" and len(text) - stable < _PENDING:
            stable -= 1
        fresh = text[self._emitted : stable]
        self._emitted = max(self._emitted, stable)
        if fresh and stable == len(text):
            self._ids = [ident]
            self._emitted = len(self._text())
        return fresh

    def flush(self) -> str:
        """What is still held back at the end, without the unfinished character."""
        return self._text()[self._emitted :].rstrip("\ufffd")

    def _text(self) -> str:
        return self._plain.decode(self._ids, skip_special_tokens=True)


def _template(path: Path) -> ChatTemplate | None:
    return ChatTemplate(path.read_text(encoding="utf-8")) if path.exists() else None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(
            f"Unknown role {role!r}; these are known: {', '.join(ROLES)}.",
            param="messages",
            code="invalid_role",
        )
    content = message.get("content")
    # A role is one of a few words, of which templates make control tokens: `'<|' + message.role + '|>'`.
    # An assistant message with tool calls has no content; templates expect a text all the same.
    return {**message, "role": authored(ROLES[role]), "content": "" if content is None else content}


def _rename_controls(data: dict[str, Any], nonce: str) -> dict[str, str]:
    """Rename the control tokens in a `tokenizer.json`; returns old name -> new name.

    Added tokens that are white space only (some families have them) are text, not control.
    """
    renamed = {}
    for at, token in enumerate(data.get("added_tokens") or []):
        if token["content"].strip():
            fresh = f"<{nonce}.{at}>"
            renamed[token["content"]], token["content"] = fresh, fresh
    model = data["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(name, name): ident for name, ident in vocab.items()}
    else:
        model["vocab"] = [[renamed.get(name, name), score] for name, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    # It would add tokens by their old names; `encode_prompt` adds them by id.
    data["post_processor"] = None
    return renamed


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
