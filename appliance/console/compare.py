"""Two adapters, or one and the base model, on the same question side by side.

Both answer at the same time, with the same seed and settings, so that what differs comes from what was
learned. To say that one is better is praise for it and nothing more: an answer that is only less good is
not a wrong one, and must not be held against its adapter.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.api.choices import Choices
from appliance.console.answering import (
    BASE,
    Event,
    Options,
    argument,
    check_message,
    find_weights,
    keep,
    make_request,
    offered,
    read_options,
    send_events,
    wants_events,
    with_system,
)
from appliance.console.playground import Exchange, exchange, rate
from appliance.console.render import back, form_field, page, render, wants_fragment
from appliance.engine.request import Delta, GenerationRequest
from appliance.errors import Conflict, InvalidRequest, NotFound, ShammahError
from appliance.store.adapters import AdapterRow

MARKED_WORDS = 2_000
"""Longer answers are not compared word by word: that would take seconds on a small box."""
ALIKE = 0.3
"""Answers with less in common are not marked: all of them would be."""
_WORD = re.compile(r"\S+|\s+")

Pieces = Sequence[tuple[str, bool]]
"""A text in order, and for each piece whether only this side has it."""


@dataclass(frozen=True)
class Side:
    """One of the two answers."""

    exchange: Exchange
    pieces: Pieces


@dataclass(frozen=True)
class Answers:
    """The two answers beside each other.

    Attributes:
        same: whether they are equal.
        marked: whether their differences are.
        chosen: id of the one that the owner has praised; empty while there is none.
    """

    sides: tuple[Side, Side]
    same: bool
    marked: bool
    chosen: str

    @property
    def ids(self) -> tuple[str, str]:
        """Of the answers, left and right."""
        left, right = (_id(side.exchange) for side in self.sides)
        return left, right


@dataclass(frozen=True)
class Comparison:
    """What the page shows.

    Attributes:
        adapters: those to choose from.
        left: the name chosen for the left side, or `base`.
        right: the same for the right side.
        prompt: the question.
        answers: None before there are any.
    """

    adapters: Sequence[AdapterRow]
    left: str
    right: str
    prompt: str
    options: Options
    answers: Answers | None
    problem: str

    @property
    def address(self) -> str:
        """Where this very page is."""
        ids = self.answers.ids if self.answers else ("", "")
        return address(self.left, self.right, self.options, *ids)


def address(left: str, right: str, options: Options, first: str = "", second: str = "") -> str:
    """Where two are compared, with the answers they gave."""
    given = {"left": left, "right": right, "first": first, "second": second}
    query = urlencode({name: value for name, value in given.items() if value} | options.chosen)
    return f"/playground/compare?{query}"


def add_routes(blueprint: Blueprint) -> None:
    """Put `/playground/compare` on the blueprint."""
    blueprint.add_route(show, "/playground/compare", methods=["GET"], name="compare")
    blueprint.add_route(ask, "/playground/compare", methods=["POST"], name="compare_ask")
    blueprint.add_route(prefer, "/playground/compare/better", methods=["POST"], name="compare_better")
    blueprint.add_route(answers_part, "/playground/compare/answers", methods=["GET"], name="compare_answers")


async def show(request: Request) -> HTTPResponse:
    """The page; with the answers that `?first=` and `?second=` name."""
    left, right, prompt, first, second = (
        argument(request, name) for name in ("left", "right", "prompt", "first", "second")
    )
    options = read_options(lambda name: argument(request, name))
    return await _page(request, left, right, prompt, options, (first, second))


async def answers_part(request: Request) -> HTTPResponse:
    """The two answers, with what differs marked."""
    ids = (argument(request, "first"), argument(request, "second"))
    found = await asyncio.to_thread(find_answers, request.app.ctx, *ids)
    if found is None:
        raise NotFound("These answers are not kept any more.")
    return html(render("parts/answers.html", answers=found, problem=""))


async def ask(request: Request) -> HTTPResponse | None:
    """Have both answer, or change the sides."""
    left, right, prompt, first, second = (
        form_field(request, name) for name in ("left", "right", "prompt", "first", "second")
    )
    options = read_options(lambda name: form_field(request, name))
    if form_field(request, "swap"):
        return await _page(request, right, left, prompt, options, (second, first))
    async with aclosing(stream(request.app.ctx, left, right, prompt, options)) as events:
        if wants_events(request):
            await send_events(request, events)
            return None
        ids = {}
        try:
            async for name, data in events:
                if name == "done":
                    ids = data
        except ShammahError as error:
            return await _page(
                request, left, right, prompt, options, (first, second), error.message, error.status
            )
    return back(request, to=f"{address(left, right, options, ids['first'], ids['second'])}#answers")


async def prefer(request: Request) -> HTTPResponse:
    """Praise the better one of two answers."""
    ctx = request.app.ctx
    first, second, better = (form_field(request, name) for name in ("first", "second", "better"))
    to = None if "referer" in request.headers else address("", "", Options(), first, second)
    problem = ""
    try:
        before = await asyncio.to_thread(find_answers, ctx, first, second)
        if before is None:
            raise NotFound("These answers are not kept any more, so none can be chosen.")
        if better not in before.ids or before.sides[0].exchange.query != before.sides[1].exchange.query:
            raise InvalidRequest("Choose one of the two answers to the same question.", param="better")
        if before.chosen:
            raise Conflict("You have chosen already; under Queue this can be taken back.")
        await rate(request, better, "up")
    except ShammahError as error:
        if not wants_fragment(request):
            return back(request, error.message, "bad", to)
        problem = error.message
    if not wants_fragment(request):
        return back(request, "Noted: more like this one. The other answer is left as it is.", to=to)
    after = await asyncio.to_thread(find_answers, ctx, first, second)
    return html(render("parts/answers.html", answers=after, problem=problem))


async def stream(
    ctx: Any, left: str, right: str, prompt: str, options: Options
) -> AsyncGenerator[Event, None]:
    """Both answers as they come: `text` events with a side, and a last `done` with the ids.

    Raises:
        InvalidRequest: nothing is asked, an option makes no sense, or both sides are the same.
        NotFound: there is no such adapter.
        AdapterInvalid: an adapter's file is damaged.
        ContextOverflow: the question is too long for the model.
        Busy: too many requests wait already.
    """
    check_message(prompt)
    messages = with_system([{"role": "user", "content": prompt}], options)
    request = _same_draws(await asyncio.to_thread(make_request, ctx, messages, options))
    # Both are held from here on: where the engine keeps fewer ready, it frees them afterwards.
    weights = [await find_weights(ctx, name) or ctx.engine.weights for name in (left, right)]
    if weights[0].weights == weights[1].weights:
        raise InvalidRequest("Both sides are the same. Choose another one for one of them.", param="right")
    texts: tuple[list[str], list[str]] = ([], [])
    ids = ["", ""]
    started = time.monotonic()
    generations = []
    try:
        for session in weights:
            generations.append(ctx.engine.generate(request, session))
    except ShammahError:
        for generation in generations:
            await generation.aclose()
        raise
    async with aclosing(Choices(generations)) as choices:
        async for side, delta in choices:
            if delta.text:
                texts[side].append(delta.text)
                yield "text", {"side": side, "text": delta.text}
            if delta.finish_reason:
                took = time.monotonic() - started
                ids[side] = await asyncio.to_thread(_keep, ctx, messages, texts[side], delta, took)
    yield "done", {"first": ids[0], "second": ids[1]}


def find_answers(ctx: Any, first: str, second: str) -> Answers | None:
    """Two answers beside each other; None when one is not kept any more. Blocking."""
    left, right = exchange(ctx, first), exchange(ctx, second)
    if left is None or right is None:
        return None
    pieces = differences(left.response, right.response)
    praised = [_id(one) for one in (left, right) if one.rated is not None and one.rated.kind == "praise"]
    same = left.response == right.response
    return Answers(
        sides=(
            Side(left, pieces[0] if pieces else [(left.response, False)]),
            Side(right, pieces[1] if pieces else [(right.response, False)]),
        ),
        same=same,
        marked=bool(pieces) and not same,
        chosen=praised[0] if praised else "",
    )


def differences(left: str, right: str) -> tuple[Pieces, Pieces] | None:
    """Two texts in pieces, those marked that the other does not have; None when marks would not help."""
    words = _WORD.findall(left), _WORD.findall(right)
    if max(map(len, words)) > 2 * MARKED_WORDS:  # with the spaces between them
        return None
    matcher = difflib.SequenceMatcher(str.isspace, *words)
    if matcher.ratio() < ALIKE:
        return None
    found: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for tag, from_left, to_left, from_right, to_right in matcher.get_opcodes():
        for side, text in enumerate(
            ("".join(words[0][from_left:to_left]), "".join(words[1][from_right:to_right]))
        ):
            if text:
                found[side].append((text, tag != "equal"))
    return found


def gather(
    ctx: Any,
    left: str,
    right: str,
    prompt: str,
    options: Options,
    ids: tuple[str, str] = ("", ""),
    problem: str = "",
) -> Comparison:
    """What the page shows. Blocking."""
    answers = find_answers(ctx, *ids) if all(ids) else None
    if answers is not None:
        asked = [side.exchange.completion for side in answers.sides]
        names = [one.adapter or BASE for one in asked if one is not None]
        left, right = left or names[0], right or names[1]
        prompt = prompt or answers.sides[0].exchange.query
    elif any(ids):
        problem = problem or "The answers are not kept any more. Ask again to get new ones."
    adapters = offered(ctx, left, right)
    known = {BASE, *(row.name for row in adapters)}
    for name in (left, right):
        if name and name not in known:
            problem = problem or f"There is no accepted adapter {name!r} any more. Choose another one."
    # Unless something else is chosen: what was learned against what it began with.
    learned = [
        ctx.engine.adapter or BASE,
        *(row.name for row in adapters if not row.withdrawn),
        *sorted(known),
    ]
    left = left if left in known else next((name for name in (BASE, *learned) if name != right), BASE)
    right = right if right in known else next((name for name in learned if name != left), left)
    return Comparison(adapters, left, right, prompt, options, answers, problem)


def _keep(ctx: Any, messages: list[dict[str, Any]], pieces: list[str], last: Delta, seconds: float) -> str:
    """By itself: going on from it begins a conversation."""
    return keep(ctx, messages, "".join(pieces), last, seconds)


def _same_draws(request: GenerationRequest) -> GenerationRequest:
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbelow(2**31)))


def _id(one: Exchange) -> str:
    assert one.completion is not None
    return one.completion.id


async def _page(
    request: Request,
    left: str,
    right: str,
    prompt: str,
    options: Options,
    ids: tuple[str, str],
    problem: str = "",
    status: int = 200,
) -> HTTPResponse:
    ctx = request.app.ctx
    found = await asyncio.to_thread(gather, ctx, left, right, prompt, options, ids, problem)
    return page(
        request,
        "compare.html",
        status=status,
        section="playground",
        compare=found,
        defaults=ctx.config.model,
        in_service=ctx.engine.adapter,
    )
