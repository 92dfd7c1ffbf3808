"""Text of others, made fit to be shown to people on a terminal or in a log."""

from __future__ import annotations

import re

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What ends a line for somebody, moves the cursor of a terminal, or turns a line around; but for line feeds
and tabs."""


def readable(text: str) -> str:
    """Text without what could pass for something else: control characters are written out."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
