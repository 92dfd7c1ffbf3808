"""Reading what others have written: JSON within bounds, and text without halves of characters.

Whatever the box reads passes one of the two, at whichever door it comes in. So what is answered is what is
stored and found again, and no reading takes the interpreter for longer than a few milliseconds at once.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

from appliance.errors import InvalidRequest

MAX_JSON = 16_000_000
"""Bytes. Texts are read at a gigabyte a second, so this takes some hundredths of one."""
MAX_VALUES = 100_000
"""Numbers, texts, lists and objects in one document: they are what costs, fifty times as much as text."""
MAX_DEPTH = 100
MAX_DIGITS = 1000
"""Of a whole number. Reading one takes the square of them, and the parser does not pause between numbers."""

_BLOCK = 1 << 17
_NO_STRUCTURE = bytes(set(range(256)) - set(b",[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_HALVES, _WHOLE = re.compile(r"[\ud800-\udfff]"), "\ufffd"
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"


def read_json(data: bytes, what: str = "The body") -> Any:
    """The value of a JSON document, its texts well-formed.

    Args:
        data: UTF-8.
        what: it is called in messages.

    Raises:
        InvalidRequest: it is no JSON, or has more in it than anybody means.
    """
    text = _text(data, what)
    try:
        # Python's parser takes NaN and Infinity, which are not JSON.
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error}", code="invalid_json") from error
    return _mended(value) if _has_halves(text) else value


def tidy_json(data: bytes, what: str) -> str:
    """A JSON document within the same bounds as it is, for another parser; only halves are replaced.

    Raises:
        InvalidRequest: it has more in it than anybody means.
    """
    text = _text(data, what)
    if not _has_halves(text):
        return text
    try:
        return json.dumps(_mended(json.loads(text)))
    except (ValueError, RecursionError):
        return well_formed(text)  # the parser will say what it is


def well_formed(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can carry and UTF-8 cannot, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_HALVES.sub(_WHOLE, text[at : at + _BLOCK]) for at in range(0, len(text), _BLOCK))
    return text


def _text(data: bytes, what: str) -> str:
    data = data.removeprefix(_BOM)
    if len(data) > MAX_JSON:
        raise _too_much(f"{what} is JSON of more than {MAX_JSON // 1_000_000} MB.")
    if (fault := _screened(data)) is not None:
        raise _too_much(f"{what} is JSON {fault}.")
    try:
        return data.decode("utf-8", "surrogatepass")
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON: it is no UTF-8.", code="invalid_json") from error


def _has_halves(text: str) -> bool:
    """Whether there may be one, as it is or as an escape: most documents need not be gone through."""
    return _ESCAPED_HALF.search(text) is not None or well_formed(text) is not text


def _screened(data: bytes) -> str | None:
    """What of a document is too much, found before it is taken apart, in pieces of a millisecond each."""
    structure = bytearray()
    inside = at = 0
    while at < len(data):
        block = data[at : at + _BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # an escape stays in one piece
            block = data[at : at + _BLOCK + 1]
        at += len(block)
        pieces = block.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        structure += b"".join(pieces[inside::2]).translate(None, _NO_STRUCTURE)
        inside = (inside + len(pieces) - 1) % 2
        if len(structure) > 2 * MAX_VALUES:
            break
    if len(structure) - structure.count(b"]") - structure.count(b"}") >= MAX_VALUES:
        return f"with more than {MAX_VALUES:,} values in it"
    brackets = structure.translate(None, b",")
    deepest = max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)
    return f"nested more than {MAX_DEPTH} deep" if deepest > MAX_DEPTH else None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): _mended(item) for key, item in value.items()}
    return value


def _too_much(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="request_too_complex")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number with more than {MAX_DIGITS:,} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
