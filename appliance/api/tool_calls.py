"""Reading calls of tools out of an answer as it comes."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.api.tools import HEAD, MIDDLE
from appliance.model.tokenizer import CALL_BEGIN, CALL_END

_END = f"\n{CALL_END}"  # JSON has no bare line break in a string, so this ends a call wherever it stands
# Models know these marks from chat templates, and write them where there is nothing to mark.
_MARKUP = re.compile(r"<tool_response>\n?|\n?</tool_response>|</?tool_call>\n?")
# Those whose line break, if they have one after them, has come too.
_WHOLE = re.compile(r"(?:<tool_response>|</?tool_call>)(?:\n|(?=[^\n]))|\n?</tool_response>")
_LONGEST = ("<tool_response>\n", "\n</tool_response>", "</tool_response>", "<tool_call>\n", "</tool_call>\n")
_BEGUN = re.compile(r"\n?</?tool\w*>?\n?")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        arguments: a JSON object as text; its beginning only when a token limit cut it off.
    """

    id: str
    name: str
    arguments: str

    def repeats(self, other: ToolCall) -> bool:
        """Whether it does the same as `other`, or is cut off where it may have become so."""
        if self.name != other.name:
            return False
        return other.arguments.startswith(self.arguments) or _canonical(self) == _canonical(other)

    def shown(self) -> dict[str, Any]:
        """OpenAI's object for it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class CallReader:
    """Parts an answer into text and calls. It relies on the form that `api/tools.py` forces.

    Marks of calls and results that stand for nothing are left out of the text.
    """

    def __init__(self, calls: bool = True, in_format: bool = False) -> None:
        """Begin an answer.

        Args:
            calls: whether it may call; otherwise all of it is text.
            in_format: whether it is in a format of the client's if it is no call: such text stays as it is.
        """
        self._calls = calls
        self._in_format = in_format
        self._held = ""
        self._calling = False
        self._any = False
        self._plain = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add a piece; returns (text to show, calls that it completes)."""
        self._held += text
        if self._in_format and not self._any and not CALL_BEGIN.startswith(self._held[: len(CALL_BEGIN)]):
            self._plain = True
        if self._plain:
            shown, self._held = self._held, ""
            return shown, []
        shown = ""
        calls: list[ToolCall] = []
        while self._calls:
            if not self._calling:
                before, mark, rest = self._held.partition(CALL_BEGIN)
                if not mark:
                    break
                shown += self._outside(before)
                self._held, self._calling, self._any = rest, True, True
            line, mark, rest = self._held.partition(_END)
            if not mark:
                return shown, calls
            self._held, self._calling = rest, False
            if (call := _parse(line)) is not None:
                calls.append(call)
        self._held = _WHOLE.sub("", self._held)
        cut = len(self._held) - max(_overlap(self._held, mark) for mark in _LONGEST)
        shown += self._outside(self._held[:cut])
        self._held = self._held[cut:]
        return shown, calls

    def flush(self, cut: bool) -> tuple[str, list[ToolCall]]:
        """What is held back at the end; `cut`: the answer ended where it should not have."""
        held, self._held = self._held, ""
        if not self._calling:
            begun = "<" in held if cut else _BEGUN.fullmatch(held)
            return "" if begun and not self._plain else self._outside(held), []
        call = _parse(held) if cut else None
        return "", [call] if call else []

    def _outside(self, text: str) -> str:
        """Text outside calls; between and after calls there is nothing but line breaks."""
        return "" if self._any else _MARKUP.sub("", text)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


def _parse(line: str) -> ToolCall | None:
    """The call in a line, perhaps cut off; None when not even its name is there."""
    name, mark, arguments = line.lstrip().removeprefix(HEAD).partition(MIDDLE)
    if not mark:
        return None
    with suppress(ValueError, RecursionError):
        arguments = arguments[: json.JSONDecoder().raw_decode(arguments)[1]]
    return ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)


def _canonical(call: ToolCall) -> str:
    """The arguments however they are written: in one order, 1.0 as 1."""
    with suppress(ValueError, RecursionError):
        return json.dumps(json.loads(call.arguments, parse_float=_number), sort_keys=True)
    return call.arguments


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number
