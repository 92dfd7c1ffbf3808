"""The list of examples as its address says it: which ones, in which order.

All of it is in the query of the URL, so that a link, a bookmark and the back button mean what they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, cast
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from appliance.errors import InvalidRequest
from appliance.store.browse import EVERYTHING, SORTS, Filter
from appliance.store.example import Kind

FIELDS = (
    "state",
    "q",
    "device",
    "kind",
    "weight_from",
    "weight_to",
    "since",
    "until",
    "zone",
    "masked",
    "sort",
)
STATE, SORT = "pending", "newest"
"""What is shown when the address does not say."""
ALL = "all"
NO_DEVICE = "-"
_MASKED = {"yes": True, "no": False}
_NOT_A_NARROWING = ("state", "sort", "zone")


@dataclass(frozen=True)
class Listing:
    """A list of examples.

    Attributes:
        given: what the address says, without what is left empty or goes without saying.
        filter: which examples.
        sort: in which order.
    """

    given: tuple[tuple[str, str], ...] = ()
    filter: Filter = EVERYTHING
    sort: str = SORT

    def values(self, name: str) -> list[str]:
        """What is given for a field, as it was typed."""
        return [value for field, value in self.given if field == name]

    def value(self, name: str) -> str:
        """The same for a field that has one value."""
        return next(iter(self.values(name)), "")

    @property
    def state(self) -> str:
        """The state whose tab is shown, or "all"."""
        return self.value("state") or STATE

    @property
    def narrowed(self) -> bool:
        """Whether it is looked for something: not all of a state is shown."""
        return any(name not in _NOT_A_NARROWING for name, _ in self.given)

    def address(self, path: str = "/queue", **changes: str | None) -> str:
        """Where this list is, with other values or further ones."""
        pairs = [pair for pair in self.given if pair[0] not in changes]
        pairs += [(name, value) for name, value in changes.items() if value]
        return f"{path}?{urlencode(pairs)}" if pairs else path

    def until(self, moment: float) -> Listing:
        """The same without what came in later."""
        bound = self.filter.until
        return replace(self, filter=replace(self.filter, until=min(moment, bound or moment)))


def given_in(arguments: Mapping[str, Sequence[str]] | None) -> tuple[tuple[str, str], ...]:
    """The fields of a list in the arguments of a request, in one order and without empty ones."""
    sent = dict(arguments or {})  # Sanic's own `get` gives the first value only
    found = [
        (name, value.strip())
        for name in FIELDS
        for value in dict.fromkeys(sent.get(name, ()))
        if value.strip()
    ]
    dated = any(name in ("since", "until") for name, _ in found)
    silent = {("state", STATE), ("sort", SORT)}
    return tuple(pair for pair in found if pair not in silent and (dated or pair[0] != "zone"))


def read_listing(given: tuple[tuple[str, str], ...]) -> Listing:
    """The list that is meant.

    Raises:
        InvalidRequest: a field says nothing that can be; `param` names it.
    """
    said: dict[str, Any] = dict(given)
    state, sort = said.get("state", STATE), said.get("sort", SORT)
    if sort not in SORTS:
        raise InvalidRequest(f"`sort` is one of {', '.join(SORTS)}.", param="sort")
    device, masked = said.get("device"), said.get("masked")
    if masked is not None and masked not in _MASKED:
        raise InvalidRequest("`masked` is yes or no.", param="masked")
    zone = _zone(said.get("zone"))
    last = _day(said, "until")
    filter = Filter(
        search=said.get("q", ""),
        states=() if state == ALL else (state,),
        kinds=tuple(cast(Kind, value) for name, value in given if name == "kind"),  # it checks them
        device="" if device == NO_DEVICE else device,
        weight_from=_number(said, "weight_from"),
        weight_to=_number(said, "weight_to"),
        since=_midnight(_day(said, "since"), zone, "since"),
        until=_midnight(last, zone, "until", 1),  # the day itself is meant, too
        masked=None if masked is None else _MASKED[masked],
    )
    return Listing(given, filter, sort)


def _number(said: Mapping[str, str], name: str) -> float | None:
    if name not in said:
        return None
    try:
        return float(said[name].replace(",", "."))
    except ValueError:
        raise InvalidRequest(f"A weight is a number, not {said[name][:40]!r}.", param=name) from None


def _day(said: Mapping[str, str], name: str) -> date | None:
    if name not in said:
        return None
    try:
        return date.fromisoformat(said[name])
    except ValueError:
        raise InvalidRequest(f"Write a date like 2026-11-20, not {said[name][:40]!r}.", param=name) from None


def _zone(name: str | None) -> tzinfo:
    """Where the viewer's days begin. Without scripts a browser does not tell: then, it is UTC."""
    try:
        return ZoneInfo(name) if name else UTC
    except (ValueError, OSError, KeyError):  # KeyError: this box does not know it
        return UTC


def _midnight(day: date | None, zone: tzinfo, name: str, later: int = 0) -> float | None:
    if day is None:
        return None
    try:
        return datetime.combine(day + timedelta(days=later), time(), zone).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest("There is no such day.", param=name) from None
