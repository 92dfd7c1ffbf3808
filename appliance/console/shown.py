"""Pages that answer a form, kept for a while so that Back, Forward and reload show them again.

A browser may keep nothing of the console (`no-store`), and an answer to a form it cannot fetch anew: going
forward to a preview was an error page. So a browser is led on to an address of the answer's own. Answers
live in memory, and only who is logged in gets there. Those that hold a secret, or that answer while the box
goes down, are not kept.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

PREFIX = "/console/shown/"
KEPT = 40
LARGEST = 2_000_000
"""Bytes of an answer that is kept: a form that gives back eight megabytes is shown once."""
SECONDS = 3600.0


@dataclass(frozen=True)
class Answer:
    """What answered a form.

    Attributes:
        body: the page.
        status: of it.
        origin: the page that the form was on.
        at: when, on a clock that never jumps.
    """

    body: str
    status: int
    origin: str
    at: float


class Shown:
    """The answers kept. It lives in the event loop."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def keep(self, body: str, status: int, origin: str) -> str:
        """Keep an answer; returns its address."""
        token = secrets.token_urlsafe(18)
        self._answers[token] = Answer(body, status, origin, time.monotonic())
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        return f"{PREFIX}{token}"

    def get(self, token: str) -> Answer | None:
        """The answer kept under a token."""
        found = self._answers.get(token)
        return found if found and time.monotonic() - found.at < SECONDS else None

    def origin(self, path: str) -> str:
        """The page that the form of a kept answer was on; any other path as it is."""
        if not path.startswith(PREFIX):
            return path
        found = self._answers.get(path.removeprefix(PREFIX))
        return found.origin if found else "/"


shown = Shown()
