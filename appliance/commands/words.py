"""Words on the command line, as what is sent to the box: bytes that are no UTF-8 are U+FFFD."""

from __future__ import annotations

from typing import Any

import click

from appliance.reading import well_formed


class _Words(click.ParamType[str]):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Python has such bytes as halves of characters, which can be neither stored nor sent."""
        return well_formed(str(value))


WORDS = _Words()
"""For names. Paths keep their bytes."""
