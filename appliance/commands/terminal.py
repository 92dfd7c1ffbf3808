"""What the command says, made fit for what reads it: the one place that all of it passes.

Names, questions and answers come from devices. Printed as they are, they could set a terminal's title, hide
what follows, or turn a line around; so what steers a terminal is written out. And a terminal that lacks a
character gets a question mark for it, not an error.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

from appliance.plain import UNSAFE, readable

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = re.compile("[^\x00-\x7f]")


class Tamed(io.TextIOBase):
    """A stream that passes text on without what steers a terminal.

    Attributes:
        behind: where it goes; for a progress bar, which has to steer one.
    """

    def __init__(self, behind: TextIO) -> None:
        self.behind = behind

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.behind.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.behind.errors

    def write(self, text: str) -> int:
        """Write it; the length is that of the text as it was given."""
        self.behind.write(readable(text))
        return len(text)

    def flush(self) -> None:
        self.behind.flush()

    def isatty(self) -> bool:
        return self.behind.isatty()

    def fileno(self) -> int:
        return self.behind.fileno()

    def writable(self) -> bool:
        return True


def tame() -> None:
    """From now on stdout and stderr are such, and stdin is there."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - for as long as we run
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # it may have been closed before we came
            stream.reconfigure(errors="replace")
            setattr(sys, name, Tamed(stream))


def console(*, stderr: bool = False) -> Console:
    """For tables and progress bars, which draw with what `Tamed` writes out: give them `readable` text."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=getattr(stream, "behind", stream), markup=False, highlight=False, emoji=False, soft_wrap=False
    )


def json_text(text: str) -> str:
    """JSON that comes unchanged to where it is read: what would be changed on the way is escaped."""
    text = UNSAFE.sub(_escaped, text)
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return text if encoding.startswith("utf") else _WIDE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
