"""Text to tokens and back, with the chat template.

Text from users must never become control tokens, whatever it contains:

* While the template runs, the first character of every control token inside a message is replaced
  by a mark that cannot be guessed, and the message's edges are marked too. So every control token
  that can be read in the result, in one piece, was written by the template.
* The tokenizer has its control tokens *renamed* to names drawn when it was loaded. The template's
  are translated to those names; then the marks go, and `<|im_start|>` in a message is characters
  like any others, because no token is called that.

All other text reaches the template and the tokenizer unchanged, so an ordinary conversation gets
exactly the tokens that the model was trained with.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import BundleError, InvalidRequest
from appliance.model.bundle import Bundle
from appliance.model.turns import Takes, find_out, fitted
from appliance.model.vocabulary import Vocabulary

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
"""What stands around a call of a tool in an answer; many families learn this form."""
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
# What a template can run into with messages it was not made for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# An unfinished character of n bytes reads as up to n replacement characters, and has 3 bytes at most.
_PENDING = 3


class Tokenizer:
    """The tokenizer of a bundle. Thread-safe.

    Attributes:
        eos_ids: tokens that end a turn.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            data = json.loads((bundle.path / "tokenizer.json").read_text(encoding="utf-8"))
            settings = json.loads((bundle.path / "tokenizer_config.json").read_text(encoding="utf-8"))
            template = bundle.path / "chat_template.jinja"
            source = template.read_text(encoding="utf-8") if template.exists() else None
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._vocabulary = Vocabulary(data, self._plain)
            self._secret = _rename_controls(data, secrets.token_hex(12))
            self._renamed = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._template = None if source is None else _compile(source)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise BundleError(
                f"The tokenizer of {bundle.path} cannot be read ({error}). Import the model again."
            ) from error
        self.eos_ids: tuple[int, ...] = bundle.manifest.eos_ids
        self._prefix = self._plain.encode("", add_special_tokens=True).ids
        controls = "|".join(re.escape(name) for name in sorted(self._secret, key=len, reverse=True))
        self._controls = re.compile(controls or r"(?!)")
        self._control_starts = re.compile(f"(?={controls})." if controls else r"(?!)", re.DOTALL)
        self._names = {
            key: _token_text(settings.get(key))
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        }

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; nothing in it becomes a control token."""
        return list(self._renamed.encode(_clean(text), add_special_tokens=False).ids)

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
        """
        text = self._render(fitted(messages, self._takes), add_generation_prompt, tools)
        return list(self._renamed.encode(text, add_special_tokens=False).ids)

    def encode_answer(self, text: str, end: bool) -> list[int]:
        """Tokens of an answer as the model generates it; with `end`, up to the end of its turn."""
        return [*self.encode(text), *(self._turn_end if end else ())]

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
        mark = self._secret.get(
            CALL_BEGIN, CALL_BEGIN
        )  # a control token has another name in what is rendered
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
    def _turn_end(self) -> tuple[int, ...]:
        """What the template puts after an answer, up to the token that ends it."""
        ids = self.eos_ids[:1]
        if self._template is None:
            return ids
        probe = "".join(secrets.choice("abcdefgh") for _ in range(24))
        question = {"role": "user", "content": "Hi"}
        text = self._render([question, {"role": "assistant", "content": probe}], False, None)
        tail = self._renamed.encode(text.rpartition(probe)[2], add_special_tokens=False).ids
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
        if self._template is None:
            raise InvalidRequest("This model has no chat format; use /v1/completions.", param="messages")
        guard = _Guard(self._control_starts)
        try:
            text = self._template.render(
                messages=[_message(message, guard) for message in messages],
                tools=guard.value(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except _TEMPLATE_ERRORS as error:
            raise InvalidRequest(
                f"The model's chat format does not allow these messages: {error}", param="messages"
            ) from error
        text = self._controls.sub(lambda match: self._secret[match[0]], text)
        return _clean(guard.undo(text))


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


class _Guard:
    """Marks what users wrote, for the time a template runs."""

    def __init__(self, control_starts: re.Pattern[str]) -> None:
        nonce = secrets.token_hex(12)
        self._starts = control_starts
        self._edge = f"e{nonce}e"
        self._char = f"c{nonce}x"
        self._mark = re.compile(f"{self._edge}|{self._char}([0-9a-f]+)x")

    def text(self, text: str) -> str:
        """`text` without any control token in it, and marked at its edges.

        The edges' marks stand inside the white space, which templates like to trim.
        """
        stripped = text.strip()
        if not stripped:
            return text
        at = text.index(stripped)
        inner = self._inner(stripped)
        return f"{text[:at]}{self._edge}{inner}{self._edge}{text[at + len(stripped) :]}"

    def value(self, value: Any) -> Any:
        """`value` with all strings in it guarded; keys keep their names unless they are hostile."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                # Templates compare a `type` with words of theirs, so those stay bare.
                self._inner(str(key)): item
                if key == "type" and isinstance(item, str) and _WORD.fullmatch(item)
                else self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def undo(self, text: str) -> str:
        """Take the marks out again."""
        return self._mark.sub(lambda match: chr(int(match[1], 16)) if match[1] else "", text)

    def _inner(self, text: str) -> str:
        return self._starts.sub(lambda match: f"{self._char}{ord(match[0]):x}x", text)


def _message(message: Mapping[str, Any], guard: _Guard) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(
            f"Unknown role {role!r}; these are known: {', '.join(ROLES)}.",
            param="messages",
            code="invalid_role",
        )
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    content = message.get("content")
    # An assistant message with tool calls has no content; templates expect a text all the same.
    return {
        **guard.value(rest),
        "role": ROLES[role],
        "content": "" if content is None else guard.value(content),
    }


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


def _compile(source: str) -> jinja2.Template:
    # The same environment as where templates come from, sandboxed: a bundle may be anyone's.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _clean(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
