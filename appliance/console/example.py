"""One example: the conversation, what it teaches, where it is from, and what has learned from it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound as PageNotFound

from appliance.console.actions import audit
from appliance.console.chosen import read_weight
from appliance.console.listing import Listing, given_in, read_listing
from appliance.console.queue import device_name, device_names, names
from appliance.console.render import back, form_field, page
from appliance.errors import InvalidRequest, NotFound, ShammahError
from appliance.learning.editing import edit_example
from appliance.learning.learned import adapters_of, find_learned
from appliance.store.adapters import AdapterRow
from appliance.store.example import MAX_WEIGHT, Example
from appliance.store.normalise import message_text
from appliance.store.runs import Run

LONGEST = 20_000
"""Characters shown of a message; the export has all of them."""
LAST = 40
"""Messages shown of a conversation, from its end."""
SPEAKERS = {"user": "Asked", "assistant": "The box", "system": "Instructions", "tool": "Tool"}


@dataclass(frozen=True)
class Message:
    """A message to show; `cut` says how many characters are not."""

    role: str
    text: str
    cut: int


@dataclass(frozen=True)
class Detail:
    """All there is to say about an example.

    Attributes:
        earlier: how many messages of the conversation are not shown.
        device: what the device is called.
        answered_by: the adapter that gave the answer, as far as that is still known.
        answer_known: it is known what gave the answer.
        in_review: it waits for the owner's word on a draft, or for an answer.
        runs: those that trained on it, newest first.
        adapters: those that know of it.
    """

    example: Example
    messages: tuple[Message, ...]
    earlier: int
    device: str | None
    answered_by: str | None
    answer_known: bool
    in_review: bool
    runs: tuple[Run, ...]
    adapters: tuple[AdapterRow, ...]

    @property
    def rejected(self) -> bool:
        """The answer of the box is not what is to be learned."""
        return self.example.kind in ("correction", "critique")


def add_routes(blueprint: Blueprint) -> None:
    """Put `/queue/<id>` on the blueprint."""
    blueprint.add_route(show, "/queue/<example_id:str>", methods=["GET"], name="example")
    blueprint.add_route(save, "/queue/<example_id:str>", methods=["POST"], name="example-save")


async def show(request: Request, example_id: str) -> HTTPResponse:
    """The page. An example that was forgotten has one that says so."""
    ctx = request.app.ctx
    listing, at = _way_back(request)
    try:
        found = await asyncio.to_thread(gather, ctx, example_id)
    except NotFound as error:
        if await asyncio.to_thread(ctx.store.forgotten.known, [example_id]):
            return back(request, to=f"/queue/act?act=forget&id={quote(example_id, safe='')}")
        raise PageNotFound(error.message) from error
    return page(
        request,
        "example.html",
        section="queue",
        detail=found,
        listing=listing,
        at=at,
        speakers=SPEAKERS,
        max_weight=MAX_WEIGHT,
        **names(),
    )


async def save(request: Request, example_id: str) -> HTTPResponse:
    """Another target, or weight."""
    ctx = request.app.ctx
    target, weight = form_field(request, "target"), form_field(request, "weight")
    try:
        before = await asyncio.to_thread(ctx.store.examples.get, example_id)
        after = await asyncio.to_thread(
            edit_example, ctx.store, example_id, target.replace("\r\n", "\n"), read_weight(weight)
        )
    except ShammahError as error:
        return back(request, error.message, "bad")
    await audit(
        request,
        "examples.edit",
        example=example_id,
        target=after.target != before.target,
        weight=[before.weight, after.weight],
    )
    ctx.events.publish("example.changed", count=1)
    if after.kind != before.kind:
        return back(request, "Saved. It is a correction now, and what the box said counts as wrong.")
    return back(request, "Saved.")


def gather(ctx: Any, example_id: str) -> Detail:
    """Read it all. Blocking.

    Raises:
        NotFound: there is no such example.
    """
    store = ctx.store
    example: Example = store.examples.get(example_id)
    learned = find_learned(ctx.home, store, {example.id})
    runs = learned.all_runs
    completion = store.completions.get(example.completion_id) if example.completion_id else None
    messages = example.messages or [{"role": "user", "content": example.query}]
    return Detail(
        example=example,
        messages=tuple(_message(message) for message in messages[-LAST:]),
        earlier=max(0, len(messages) - LAST),
        device=device_name(example, device_names(ctx)),
        answered_by=completion.adapter if completion else None,
        answer_known=completion is not None,
        in_review=example.state == "review" or (example.state == "pending" and example.drafted),
        runs=tuple(_runs(store, sorted(runs, reverse=True))),
        adapters=tuple(adapters_of(store, runs)),
    )


def _runs(store: Any, ids: Sequence[str]) -> list[Run]:
    found = []
    for run in ids:
        try:
            found.append(store.runs.get(run))
        except NotFound:
            continue  # its directory is all that is left of it
    return found


def _message(message: dict[str, Any]) -> Message:
    text = message_text(message)
    return Message(str(message.get("role", "")), text[:LONGEST], max(0, len(text) - LONGEST))


def _way_back(request: Request) -> tuple[Listing, str]:
    """The list the owner came from. An address that says nonsense leads to the whole list."""
    try:
        return read_listing(given_in(request.args)), request.args.get("at") or ""
    except InvalidRequest:
        return Listing(), ""
