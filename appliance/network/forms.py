"""Forms as browsers send them, taken apart within bounds."""

from __future__ import annotations

from urllib.parse import parse_qsl

from multipart import MultipartSegment, PushMultipartParser
from sanic.headers import parse_content_header

from appliance.errors import InvalidRequest

MAX_FORM = 2_000_000
"""Bytes. The longest text of a form has 200,000 characters, of up to twelve bytes each; files are not read
here but by `console/upload.py`, to disk."""
MAX_FIELDS = 5_000
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_CHUNK = 1 << 16

Fields = list[tuple[str, str]]


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form."""
    return content_type.partition(";")[0].strip().lower() in (URLENCODED, MULTIPART)


def read_form(body: bytes, content_type: str) -> Fields:
    """The fields in their order, those left empty included; bytes that are no UTF-8 are U+FFFD.

    Raises:
        InvalidRequest: it has too many fields, or is no form.
    """
    kind, parameters = parse_content_header(content_type)
    try:
        if kind == MULTIPART:
            return _read_parts(body, str(parameters.get("boundary", "")))
        text = body.decode("utf-8", "replace")
        return parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MAX_FIELDS)
    except ValueError as error:  # MultipartError is one
        raise InvalidRequest("That form cannot be read. Nothing was done.") from error


def _read_parts(body: bytes, boundary: str) -> Fields:
    fields: Fields = []
    part: MultipartSegment | None = None
    text = bytearray()
    with PushMultipartParser(boundary, max_segment_count=MAX_FIELDS) as parser:
        for at in range(0, len(body), _CHUNK):
            for piece in parser.parse(body[at : at + _CHUNK]):
                if isinstance(piece, MultipartSegment):
                    part = piece
                elif piece is not None:
                    text += piece
                elif part is not None:
                    if part.name and part.filename is None:
                        fields.append((part.name, text.decode("utf-8", "replace")))
                    text.clear()
    return fields
