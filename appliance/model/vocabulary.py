"""The bytes behind each token, which need not be whole characters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # what SentencePiece writes for a space


class Vocabulary:
    """Token ids to bytes, for one tokenizer. Thread-safe."""

    def __init__(self, data: dict[str, Any], plain: tokenizers.Tokenizer) -> None:
        """Make it from a `tokenizer.json` and the tokenizer that was loaded from it."""
        self._name: Callable[[int], str | None] = plain.id_to_token
        self._added = {token["id"]: token["content"] for token in data.get("added_tokens") or []}
        self._letters = _byte_letters() if '"ByteLevel"' in json.dumps(data.get("decoder")) else None

    def bytes_of(self, ident: int) -> bytes:
        """UTF-8 bytes of one token as it stands inside a text; empty for ids without a token."""
        added = self._added.get(ident)
        if added is not None:
            return str(added).encode()
        name = self._name(ident)
        if name is None:
            return b""
        if self._letters is not None:
            letters = self._letters
            return b"".join(
                bytes([letters[char]]) if char in letters else char.encode("utf-8", "replace")
                for char in name
            )
        match = _BYTE.fullmatch(name)
        if match:
            return bytes([int(match[1], 16)])
        return name.replace(_SPACE, " ").encode("utf-8", "replace")


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary.

    Bytes that print as themselves in Latin-1 do; the others follow in order from U+0100 on.
    """
    letters: dict[str, int] = {}
    shifted = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (byte >= 0xA1 and byte != 0xAD):
            letters[chr(byte)] = byte
        else:
            letters[chr(shifted)] = byte
            shifted += 1
    return letters
