"""When two texts count as the same question or the same answer, and what a search looks at."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# Sentence marks, quotes, brackets and Markdown emphasis. Signs that carry meaning stay: "-5" is
# not "5", ".5" is not "5", "5%" is not "5", "C#" is not "C".
_BOTH_SIDES = "\"'`*_\u201c\u201d\u201e\u2018\u2019«»()[]{}\u2026"
_LEADING = _BOTH_SIDES + "¿¡ "
_TRAILING = _BOTH_SIDES + ".,;:!?\u3002\u3001\uff01\uff1f "


_COMPOSED_AT_ONCE = 512
"""Characters. Accents that stand in a row are put in order in the square of their number."""


def fold(text: str) -> str:
    """Casefold and collapse white space."""
    return " ".join(_composed(text).casefold().split())


def searchable(*texts: str | None) -> str:
    """What a search looks at: the folded texts, each once, a line each."""
    return "\n".join(dict.fromkeys(fold(text) for text in texts if text))


def normalise(text: str) -> str:
    """Casefold, collapse white space, strip surrounding punctuation.

    A text of nothing but punctuation is kept as it is, so that "?" and "!" differ.
    """
    flat = fold(text)
    return flat.lstrip(_LEADING).rstrip(_TRAILING) or flat


def text_key(text: str) -> str:
    """A short, indexable stand-in for `normalise(text)`."""
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message whose content is a string, a list of parts, or missing."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def context_key(messages: Iterable[Mapping[str, Any]]) -> str:
    """Names the conversation before the last user message, by what the user said in it.

    "Why?" in two conversations is not the same question. System prompts and the model's own turns
    are left out: they vary between two askings of the same thing.
    """
    earlier = [normalise(message_text(item)) for item in messages if item.get("role") == "user"][:-1]
    return text_key("\n".join(earlier)) if earlier else ""


def _composed(text: str) -> str:
    """NFC, piece by piece, which is the same: ASCII, before which a piece ends, is composed with nothing."""
    if len(text) <= _COMPOSED_AT_ONCE or text.isascii():
        return unicodedata.normalize("NFC", text)
    pieces, at = [], 0
    while at < len(text):
        end = at + _COMPOSED_AT_ONCE
        if end < len(text):
            end = next((cut for cut in range(end, at, -1) if text[cut] < "\x80"), end)
        pieces.append(unicodedata.normalize("NFC", text[at:end]))
        at = end
    return "".join(pieces)
