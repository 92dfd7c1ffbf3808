"""Long lists in pages, counted from 1, the newest on the first."""

from __future__ import annotations

from dataclasses import dataclass

from sanic import Request

from appliance.errors import InvalidRequest


@dataclass(frozen=True)
class Sheet:
    """One page of a list.

    Attributes:
        number: of the page, from 1.
        total: how long the list is.
        size: how many fit on a page.
    """

    number: int
    total: int
    size: int

    @property
    def start(self) -> int:
        """How many are on the pages before."""
        return (self.number - 1) * self.size

    @property
    def end(self) -> int:
        """How many are on this page and those before."""
        return min(self.start + self.size, self.total)

    @property
    def last(self) -> int:
        """The number of the last page."""
        return max(1, -(-self.total // self.size))


def sheet(wanted: int, total: int, size: int) -> Sheet:
    """The page that is asked for; beyond the last, the last."""
    last = Sheet(1, total, size).last
    return Sheet(min(wanted, last), total, size)


def page_number(request: Request) -> int:
    """The page of a list that an address asks for, from 1.

    Raises:
        InvalidRequest: it is no such number.
    """
    text = request.args.get("page", "1")
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text)):
        raise InvalidRequest("There is no such page: pages are counted from 1.", param="page")
    return int(text)
