"""The playground: chat with the box. With scripts the answer streams; without, the page comes back with it.

Conversations are answers that belong together (`store/completions.py`): each has the messages before it,
so the newest one is the whole conversation.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from appliance.console.actions import audit
from appliance.console.answering import (
    BASE,
    CURRENT,
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
from appliance.console.render import back, form_field, page, render, wants_fragment
from appliance.engine.request import Delta, GenerationRequest
from appliance.errors import InvalidRequest, NotFound, ShammahError
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store.adapters import AdapterRow
from appliance.store.completions import Conversation, StoredCompletion
from appliance.store.examples import Example
from appliance.store.normalise import message_text

RECENT = 30
"""Conversations listed."""

_THANKS = {
    "praise": "Noted: more like this.",
    "correction": "Noted: your answer will be learned in the next run, with high weight.",
    "critique": "Noted: the box drafts a better answer, and asks you to look at it under Needs review.",
}


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
        completion: the answer as it is kept; None for one that is known only as what came before.
        rated: the feedback given on it, newest first to count.
    """

    query: str
    response: str
    completion: StoredCompletion | None = None
    rated: Example | None = None


@dataclass(frozen=True)
class Playground:
    """What the page shows.

    Attributes:
        exchanges: the conversation.
        chat: id of the answer it ends in; empty for a new one.
        adapters: those to choose from.
        adapter: the one chosen.
        options: how to answer.
        message: what is written already.
        problem: what went wrong.
        history: earlier conversations, newest first.
        shown: the name of the one that is open.
    """

    exchanges: Sequence[Exchange]
    chat: str
    adapters: Sequence[AdapterRow]
    adapter: str
    options: Options
    message: str
    problem: str
    history: Sequence[Conversation]
    shown: str | None

    @property
    def address(self) -> str:
        """Where this very page is."""
        given = {"chat": self.chat, "adapter": self.adapter if self.adapter != CURRENT else ""}
        query = urlencode({name: value for name, value in given.items() if value} | self.options.chosen)
        return f"/playground?{query}" if query else "/playground"


@dataclass(frozen=True)
class Turn:
    """A question made ready for the model, and the conversation it belongs to."""

    messages: list[dict[str, Any]]
    request: GenerationRequest
    conversation: str


def add_routes(blueprint: Blueprint) -> None:
    """Put `/playground` on the blueprint."""
    blueprint.add_route(show, "/playground", methods=["GET"], name="playground")
    blueprint.add_route(ask, "/playground", methods=["POST"], name="ask")
    blueprint.add_route(feedback, "/playground/feedback", methods=["POST"], name="feedback")
    blueprint.add_route(forget, "/playground/forget", methods=["POST"], name="forget_conversation")
    blueprint.add_route(history_part, "/playground/history", methods=["GET"], name="history")
    blueprint.add_route(
        exchange_part, "/playground/exchange/<completion_id:str>", methods=["GET"], name="exchange"
    )


async def show(request: Request) -> HTTPResponse:
    """The page, with the conversation that ends in the answer `?chat=` names."""
    options = read_options(lambda name: argument(request, name))
    adapter, message = argument(request, "adapter"), argument(request, "message")
    return await _page(request, argument(request, "chat"), adapter, options, message)


async def exchange_part(request: Request, completion_id: str) -> HTTPResponse:
    """One question and answer, with its thumbs."""
    found = await asyncio.to_thread(exchange, request.app.ctx, completion_id)
    if found is None:
        raise NotFound("That answer is not kept any more.")
    return html(render("parts/exchange.html", exchange=found))


async def history_part(request: Request) -> HTTPResponse:
    """The list of conversations."""

    def gather() -> tuple[list[Conversation], str | None]:
        completions = request.app.ctx.store.completions
        open_one = completions.get(argument(request, "chat"))
        return completions.conversations(RECENT), open_one.conversation if open_one else None

    history, shown = await asyncio.to_thread(gather)
    return html(render("parts/history.html", history=history, shown=shown))


async def ask(request: Request) -> HTTPResponse | None:
    """Answer a message, or the last question once more."""
    ctx = request.app.ctx
    options = read_options(lambda name: form_field(request, name))
    message, adapter, previous, again = (
        form_field(request, name) for name in ("message", "adapter", "previous", "again")
    )

    async def events() -> AsyncGenerator[Event, None]:
        turn = await asyncio.to_thread(prepare, ctx, options, message, previous, again)
        async with aclosing(stream(ctx, turn, adapter)) as pieces:
            async for event in pieces:
                yield event

    async with aclosing(events()) as answering:
        if wants_events(request):
            await send_events(request, answering)
            return None
        try:
            if again and message:
                raise InvalidRequest("Send or clear what you have written first; then answer that one again.")
            completion_id = ""
            async for name, data in answering:
                completion_id = data["id"] if name == "done" else ""
        except ShammahError as error:
            return await _page(
                request, previous or again, adapter, options, message, error.message, error.status
            )
    done = Playground((), completion_id, (), adapter or CURRENT, options, "", "", (), None)
    return back(request, to=f"{done.address}#{completion_id}")


async def feedback(request: Request) -> HTTPResponse:
    """Thumbs, a correction or a note on an answer."""
    completion_id = form_field(request, "completion_id")
    correction, note, rating = (form_field(request, name) for name in ("correction", "note", "rating"))
    # The page before is the conversation as it was chosen; some browsers do not tell which that was.
    to = None if "referer" in request.headers else f"/playground?{urlencode({'chat': completion_id})}"
    try:
        if rating != "up" and not correction and not note:
            raise InvalidRequest("Say what the answer should have been, or what is wrong with it.")
        example = await rate(request, completion_id, rating, correction, note)
    except ShammahError as error:
        if wants_fragment(request):
            return html(render("parts/rated.html", problem=error.message, kind=None))
        return back(request, error.message, "bad", to)
    if wants_fragment(request):
        return html(render("parts/rated.html", problem=None, kind=example.kind))
    return back(request, _THANKS[example.kind], to=to)


async def forget(request: Request) -> HTTPResponse:
    """Delete a conversation. What was taught with it stays in the queue."""
    name = form_field(request, "conversation")
    store = request.app.ctx.store
    if not name or not await asyncio.to_thread(store.completions.forget_conversation, name):
        return back(request, "That conversation is not kept any more.", "info", "/playground")
    await audit(request, "conversation.forget", conversation=name)
    try:
        await asyncio.to_thread(store.database.scrub)
    except ShammahError as error:
        message = f"The conversation is deleted, but the file of the store still has traces: {error.message}"
        return back(request, message, "bad", "/playground")
    return back(request, "The conversation is forgotten.", to="/playground")


async def rate(
    request: Request, completion_id: str, rating: str, correction: str = "", note: str = ""
) -> Example:
    """Store what the owner says of an answer: praise for "up", otherwise that it was wrong.

    Raises:
        NotFound: the answer is not kept any more.
        InvalidRequest: it cannot be said of this answer.
    """
    ctx = request.app.ctx
    completion = await asyncio.to_thread(ctx.store.completions.get, completion_id)
    if completion is None:
        raise NotFound("That answer is not kept any more, so it cannot be rated.")
    up = rating == "up"
    given = Feedback(
        query=completion.query,
        response=completion.response,
        weight="normal" if up else "high",
        feedback=note or None,
        correction=correction or None,
        rating="up" if up else "down",
        completion_id=completion_id,
        device=None,
        source="console",
    )
    example = await asyncio.to_thread(give_feedback, ctx.store, ctx.config, given, events=ctx.events)
    await audit(request, "feedback", example=example.id, kind=example.kind)
    return example


def exchange(ctx: Any, completion_id: str) -> Exchange | None:
    """An earlier answer; None when it is not kept any more. Blocking."""
    found: StoredCompletion | None = ctx.store.completions.get(completion_id)
    return None if found is None else _rated(ctx, found)


def exchanges(ctx: Any, end: StoredCompletion) -> list[Exchange]:
    """The conversation that ends in an answer, each turn with what is kept of it. Blocking."""
    kept = ctx.store.completions.conversation(end.conversation) if end.conversation else []
    answered = {(_talk(completion.messages), completion.response): completion for completion in kept}
    talk = _talk(end.messages)
    found: list[Exchange] = []
    for at, (role, text) in enumerate(talk[:-1]):
        if role == "user":
            found.append(Exchange(text, ""))
        elif role == "assistant":
            turn = answered.get((talk[:at], text))
            question = found.pop() if found and not found[-1].response else Exchange("", "")
            found.append(replace(question, response=text) if turn is None else _rated(ctx, turn))
    return [*found, _rated(ctx, end)]


def prepare(ctx: Any, options: Options, message: str, previous: str, again: str) -> Turn:
    """Put a message after the conversation so far, or take a question of it once more. Blocking.

    Args:
        ctx: the app's.
        options: how to answer.
        message: what is asked.
        previous: id of the answer it goes on from; empty for a new conversation.
        again: id of the answer to give anew, instead.

    Raises:
        InvalidRequest: nothing was said, or too much, or an option makes no sense.
        NotFound: the conversation is not kept any more.
        ContextOverflow: it is too long for the model.
    """
    if not again:
        check_message(message)
    earlier = again or previous
    before: StoredCompletion | None = ctx.store.completions.get(earlier) if earlier else None
    if earlier and before is None:
        raise NotFound("This conversation is not kept any more. Start a new one.")
    messages = list(before.messages) if before else []
    if not again:
        if before is not None:
            messages.append({"role": "assistant", "content": before.response})
        messages.append({"role": "user", "content": message})
    messages = with_system(messages, options)
    if not messages or messages[-1].get("role") != "user":
        raise NotFound("The text of this answer was not kept. Start a new conversation.")
    # Going on from an earlier place begins another conversation, so that neither is lost from the list.
    conversation = before.conversation if before else None
    if before is None or conversation is None or ctx.store.completions.end_of(conversation) != before.id:
        conversation = secrets.token_hex(8)
    return Turn(messages, make_request(ctx, messages, options), conversation)


async def stream(ctx: Any, turn: Turn, adapter: str) -> AsyncGenerator[Event, None]:
    """The answer piece by piece, as `text` events and a last `done` with the id to rate it by."""
    weights = await find_weights(ctx, adapter)
    pieces: list[str] = []
    last: Delta | None = None
    started = time.monotonic()
    async with aclosing(ctx.engine.generate(turn.request, weights)) as generation:
        async for delta in generation:
            last = delta
            if delta.text:
                pieces.append(delta.text)
                yield "text", {"text": delta.text}
    assert last is not None
    seconds = time.monotonic() - started
    completion_id = await asyncio.to_thread(
        keep, ctx, turn.messages, "".join(pieces), last, seconds, turn.conversation
    )
    yield "done", {"id": completion_id}


def _rated(ctx: Any, completion: StoredCompletion) -> Exchange:
    rated = ctx.store.examples.feedback_on(completion.id, completion.query, completion.response)
    return Exchange(completion.query, completion.response, completion, rated)


def _talk(messages: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What was said, without the system prompt, in a form to compare and to look up by."""
    return tuple(
        (str(message.get("role")), message_text(message))
        for message in messages
        if message.get("role") != "system"
    )


def gather(
    ctx: Any, chat: str, adapter: str, options: Options, message: str = "", problem: str = ""
) -> Playground:
    """What the page shows. Blocking."""
    end: StoredCompletion | None = ctx.store.completions.get(chat) if chat else None
    if end is not None and not problem and not options.system:  # a form that failed says what is wanted now
        options = replace(options, system=_system(end))
    if chat and end is None:
        problem = problem or "That conversation is not kept any more. Here is a new one."
    adapters = offered(ctx, adapter)
    if adapter not in ("", CURRENT, BASE, *(row.name for row in adapters)):
        problem = problem or f"There is no accepted adapter {adapter!r} any more: what is in service answers."
        adapter = ""
    return Playground(
        exchanges=exchanges(ctx, end) if end else (),
        chat=end.id if end else "",
        adapters=adapters,
        adapter=adapter or CURRENT,
        options=options,
        message=message,
        problem=problem,
        history=ctx.store.completions.conversations(RECENT),
        shown=end.conversation if end else None,
    )


def _system(end: StoredCompletion) -> str:
    return next((message_text(message) for message in end.messages if message.get("role") == "system"), "")


async def _page(
    request: Request,
    chat: str,
    adapter: str,
    options: Options,
    message: str = "",
    problem: str = "",
    status: int = 200,
) -> HTTPResponse:
    ctx = request.app.ctx
    found = await asyncio.to_thread(gather, ctx, chat, adapter, options, message, problem)
    defaults = ctx.config.model
    return page(
        request,
        "playground.html",
        status=status,
        section="playground",
        play=found,
        defaults=defaults,
        in_service=ctx.engine.adapter,
    )
