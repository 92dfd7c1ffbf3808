"""What the owner does to several examples at once: a page that says what will happen, then the act.

Which are meant is either a list of ids, or all that a list lets through. Then what comes in meanwhile is
not meant, and if it would be another number than the one agreed to, nothing is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER, audit
from appliance.console.listing import Listing, given_in, read_listing
from appliance.console.queue import names
from appliance.console.render import back, page
from appliance.errors import Conflict, InvalidRequest, NotFound, ShammahError
from appliance.learning.forget import Foreseen, Forgotten, Wish
from appliance.store.bulk import LEFT, OUT, UNKNOWN, WAITING, Changed
from appliance.store.example import MAX_WEIGHT, STATES, State

ACTS: dict[str, tuple[State, ...]] = {
    "exclude": WAITING,
    "weight": WAITING,
    "put-back": OUT,
    "forget": STATES,
}
"""What can be done, and to examples of which states."""
NAMED = 5
"""So many are shown before anything is done to them."""
ORIGINS = ("review", "example")
FEW = 100
"""So many ids are named in an address and in the audit trail."""


@dataclass(frozen=True)
class Choice:
    """What is to be done to which examples.

    Attributes:
        act: one of `ACTS`.
        ids: the chosen ones; None for all of the list.
        listing: the list they were chosen from.
        at: its page.
        before: what came into the list after this is not meant.
        origin: "review" or "example" when it was begun there.
    """

    act: str
    ids: tuple[str, ...] | None
    listing: Listing
    at: str
    before: float
    origin: str

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The form fields that say the same again."""
        pairs = [*self.listing.given, ("act", self.act), ("before", repr(self.before))]
        pairs += [("scope", "all")] if self.ids is None else [("id", example) for example in self.ids]
        pairs += [("at", self.at)] if self.at else []
        return pairs + ([("from", self.origin)] if self.origin else [])

    @property
    def origin_address(self) -> str:
        """Where it was begun."""
        if self.origin == "example" and self.ids and self.act != "forget":
            return self.listing.address(f"/queue/{quote(self.ids[0], safe='')}", at=self.at)
        return "/review" if self.origin == "review" else self.listing.address(at=self.at)


@dataclass(frozen=True)
class Question:
    """What the owner is asked to agree to.

    Attributes:
        count: how many examples it is done to.
        left: how many are left alone, by reason.
        forgotten: all of them are forgotten already; what is left to give up is what was learned.
        some: what a few of them ask.
        foreseen: what forgetting takes along; None for other acts.
        running: the run that has to end before anything can be forgotten.
    """

    choice: Choice
    count: int
    left: dict[str, int]
    some: tuple[str, ...] = ()
    forgotten: bool = False
    foreseen: Foreseen | None = None
    running: str | None = None


def add_routes(blueprint: Blueprint) -> None:
    """Put `/queue/act` on the blueprint."""
    blueprint.add_route(ask, "/queue/act", methods=["GET"], name="queue-ask")
    blueprint.add_route(do, "/queue/act", methods=["POST"], name="queue-do")


async def ask(request: Request) -> HTTPResponse:
    """Say what will happen, and ask."""
    choice = read_choice(request.args)
    if choice.ids == ():
        return back(request, "Tick some examples first, or choose all.", "bad", choice.origin_address)
    question = await asyncio.to_thread(consider, request.app.ctx, choice)
    return page(
        request,
        "queue_act.html",
        section="review" if choice.origin == "review" else "queue",
        question=question,
        max_weight=MAX_WEIGHT,
        **names(),
    )


async def do(request: Request) -> HTTPResponse:
    """Do what was agreed to."""
    form: Mapping[str, Sequence[str]] = dict(request.form or {})
    choice = read_choice(form)
    if choice.ids == ():
        return back(request, "No example is named, so nothing was done.", "bad", choice.origin_address)
    ctx, agreed = request.app.ctx, _first(form, "count")
    again = f"{request.path}?{_query(choice)}" if choice.ids is None or len(choice.ids) <= FEW else None
    try:
        if choice.act == "forget":
            return await forget(request, choice, agreed, "retrain" in form)
        changed = await asyncio.to_thread(change, ctx, choice, agreed, form)
    except ShammahError as error:
        return back(request, error.message, "bad", again or choice.origin_address)
    detail: dict[str, Any] = {"count": changed.count}
    if choice.ids is None:
        detail["filter"] = dict(choice.listing.given)
    else:
        detail["examples"] = choice.ids[:FEW]
    await audit(request, f"examples.{choice.act}", **detail)
    ctx.events.publish("example.changed", count=changed.count)
    return back(
        request, tell(choice.act, changed), "good" if changed.count else "info", choice.origin_address
    )


async def forget(request: Request, choice: Choice, agreed: str, retrain: bool) -> HTTPResponse:
    """Forget them, and say what still knows them. The audit is where it happens."""
    ctx = request.app.ctx
    ids = choice.ids
    if ids is None:
        ids = tuple(await asyncio.to_thread(ctx.store.browse.ids, choice.listing.filter))
        _check(len(ids), agreed)
    done: Forgotten = await ctx.learning.forget(Wish(ids, retrain=retrain), OWNER)
    # What goes on knowing it can still be given up there.
    there = done.adapters and not done.retrained and len(ids) <= FEW
    address = f"/queue/act?{_query(choice)}" if there else choice.origin_address
    return back(request, tell_forgotten(done), "info" if done.adapters and not retrain else "good", address)


def read_choice(arguments: Mapping[str, Sequence[str]] | None) -> Choice:
    """What a form asks for.

    Raises:
        InvalidRequest: it makes no sense.
    """
    found = dict(arguments or {})  # Sanic's own `get` gives the first value only
    act, origin = _first(found, "act"), _first(found, "from")
    if act not in ACTS:
        raise InvalidRequest(f"An act is one of {', '.join(ACTS)}.", param="act")
    try:
        before = float(_first(found, "before") or time.time())
    except ValueError:
        raise InvalidRequest("`before` is a time in seconds.", param="before") from None
    ids = None
    if _first(found, "scope") != "all":
        ids = tuple(dict.fromkeys(value for value in found.get("id", ()) if value))
    listing = read_listing(given_in(found)).until(before)
    return Choice(act, ids, listing, _first(found, "at"), before, origin if origin in ORIGINS else "")


def consider(ctx: Any, choice: Choice) -> Question:
    """Count what would be done. Blocking.

    Raises:
        NotFound: none of the chosen ones is there any more.
    """
    counts, unknown = _states(ctx, choice)
    wanted = ACTS[choice.act]
    count = sum(counts[state] for state in wanted)
    some = _some(ctx, choice)
    if choice.act == "forget":
        return _consider_forgetting(ctx, choice, count, some)
    left = {LEFT[state]: number for state, number in counts.items() if number and state not in wanted}
    if unknown:
        left[UNKNOWN] = unknown
    return Question(choice, count, left, some)


def change(ctx: Any, choice: Choice, agreed: str, form: Mapping[str, Sequence[str]]) -> Changed:
    """Do an act of the store, on as many as was agreed to. Blocking.

    Raises:
        Conflict: it would be more or fewer by now; nothing was changed.
        InvalidRequest: there is no such weight.
    """
    store = ctx.store
    which = choice.listing.filter if choice.ids is None else choice.ids
    with store.transaction():
        if choice.ids is None:
            counts, _ = _states(ctx, choice)
            _check(sum(counts[state] for state in ACTS[choice.act]), agreed)
        if choice.act == "weight":
            return store.bulk.set_weight(which, read_weight(_first(form, "weight")))  # type: ignore[no-any-return]
        if choice.act == "put-back":
            return store.bulk.put_back(which)  # type: ignore[no-any-return]
        return store.bulk.exclude(which, _first(form, "note")[:500] or "by the owner")  # type: ignore[no-any-return]


def read_weight(text: str) -> float:
    """A weight as people write it.

    Raises:
        InvalidRequest: it is no number.
    """
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise InvalidRequest(
            f"The weight is a number above 0 and up to {MAX_WEIGHT:g}.", param="weight"
        ) from None


def tell(act: str, changed: Changed) -> str:
    """What was done, and what was left and why."""
    done = {"exclude": "excluded", "weight": "given the new weight", "put-back": "put back"}[act]
    said = f"{plural(changed.count)} {done}." if changed.count else "Nothing was changed."
    left = ", ".join(f"{number:,} {reason}" for reason, number in changed.left.items())
    return f"{said} Left as they were: {left}." if left else said


def tell_forgotten(done: Forgotten) -> str:
    """What is gone, and what still knows of it."""
    said = "Forgotten: its text is on this box no more."
    if len(done.examples) != 1:
        said = f"{plural(len(done.examples))} forgotten: the text is on this box no more."
    if not done.examples:
        said = ""
    if not done.adapters:
        return said or "It was forgotten before, and no adapter learned from it."
    learned = f"{len(done.adapters):,} adapter{'' if len(done.adapters) == 1 else 's'}"
    if done.retrained:
        again = f" {plural(done.requeued)} of the others wait to be learned anew." if done.requeued else ""
        return f"{said} {learned} that had learned from it {_were(done.adapters)} given up.{again}".strip()
    return f"{said} {learned} had learned from it before: {', '.join(done.adapters)}.".strip()


def plural(count: int) -> str:
    """So many examples, in words."""
    return f"{count:,} example{'' if count == 1 else 's'}"


def _were(things: Sequence[str]) -> str:
    return "was" if len(things) == 1 else "were"


def _some(ctx: Any, choice: Choice) -> tuple[str, ...]:
    """What a few of those ask that it is done to."""
    wanted = ACTS[choice.act]
    if choice.ids is None:
        filter = choice.listing.filter
        states = tuple(state for state in filter.states or STATES if state in wanted)
        if not states:
            return ()
        found = ctx.store.browse.page(replace(filter, states=states), size=NAMED, count=False).examples
        return tuple(example.query for example in found)
    asked = []
    for example_id in choice.ids[:FEW]:
        with suppress(NotFound):
            example = ctx.store.examples.get(example_id)
            if example.state in wanted:
                asked.append(example.query)
    return tuple(asked[:NAMED])


def _consider_forgetting(ctx: Any, choice: Choice, count: int, some: tuple[str, ...]) -> Question:
    ids = choice.ids
    if ids is None:
        ids = tuple(ctx.store.browse.ids(choice.listing.filter))
        count = len(ids)
    running = next((run.id for run in ctx.store.runs.unfinished()), None)
    foreseen = ctx.learning.foresee(Wish(ids)) if ids else Foreseen(0, 0, (), None)
    return Question(choice, count, {}, some, bool(ids) and not count, foreseen, running)


def _states(ctx: Any, choice: Choice) -> tuple[dict[State, int], int]:
    """How many of the meant ones each state has, and how many are not there."""
    if choice.ids is None:
        return ctx.store.browse.counts(choice.listing.filter), 0
    counts, unknown = dict.fromkeys(STATES, 0), 0
    for example in choice.ids:
        try:
            counts[ctx.store.examples.get(example).state] += 1
        except NotFound:
            unknown += 1
    return counts, unknown


def _check(count: int, agreed: str) -> None:
    if str(count) != agreed:
        raise Conflict(f"Meanwhile it would be {plural(count)}: nothing was done. Look again.")


def _first(form: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(form.get(name, ())), "").strip()


def _query(choice: Choice) -> str:
    return urlencode([pair for pair in choice.fields if pair[0] != "before"])
