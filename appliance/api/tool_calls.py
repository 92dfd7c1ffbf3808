"""Reading calls of tools out of an answer as it comes."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.api.tools import HEAD, MIDDLE
from appliance.model.tokenizer import CALL_BEGIN, CALL_END

_END = f"\n{CALL_END}"  # JSON has no bare line break in a string, so this ends a call wherever it stands


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        arguments: a JSON object as text; its beginning only when a token limit cut it off.
    """

    id: str
    name: str
    arguments: str

    def shown(self) -> dict[str, Any]:
        """OpenAI's object for it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class CallReader:
    """Parts an answer into text and calls. It relies on the form that `api/tools.py` forces."""

    def __init__(self) -> None:
        self._held = ""
        self._calling = False
        self._any = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add a piece; returns (text to show, calls that it completes)."""
        self._held += text
        shown = ""
        calls: list[ToolCall] = []
        while True:
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
        keep = next((n for n in range(len(CALL_BEGIN) - 1, 0, -1) if self._held.endswith(CALL_BEGIN[:n])), 0)
        cut = len(self._held) - keep
        shown += self._outside(self._held[:cut])
        self._held = self._held[cut:]
        return shown, calls

    def flush(self, cut: bool) -> tuple[str, list[ToolCall]]:
        """What is held back at the end; `cut`: the answer ended where it should not have."""
        held, self._held = self._held, ""
        if not self._calling:
            return self._outside(held), []
        call = _parse(held) if cut else None
        return "", [call] if call else []

    def _outside(self, text: str) -> str:
        """Text outside calls; between and after calls there is nothing but line breaks."""
        return "" if self._any else text


def _parse(line: str) -> ToolCall | None:
    """The call in a line, perhaps cut off; None when not even its name is there."""
    name, mark, arguments = line.lstrip().removeprefix(HEAD).partition(MIDDLE)
    if not mark:
        return None
    with suppress(ValueError, RecursionError):
        arguments = arguments[: json.JSONDecoder().raw_decode(arguments)[1]]
    return ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)
