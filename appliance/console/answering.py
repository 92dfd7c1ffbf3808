"""Answers for the owner: which weights, how sampled, streamed as they come, and kept to be rated.

What is asked here is not collected as it goes by: the owner tries things out. It becomes an example
when the owner rates or corrects it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from sanic import Request

from appliance.api.weights import adapter_weights, base_weights
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import Session
from appliance.errors import ContextOverflow, InvalidRequest, NotFound, ShammahError
from appliance.sections import ModelConfig
from appliance.store.adapters import AdapterRow

log = logging.getLogger(__name__)

MAX_MESSAGE = 20_000
MAX_SYSTEM = 4_000
MAX_SEED = 2**63 - 1
OFFERED = 50
"""Adapters to choose from: the newest, and the one in service."""
BASE = "base"
CURRENT = "current"
"""What is in service, whatever that is. No adapter can be called so, nor base."""
_ANSWER_ROOM = 64

Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """How the owner wants the answers, each as it was typed; empty is the box's own setting.

    They travel in the addresses and forms of the page, so that two tabs may differ. The system prompt is too
    long for an address: it is read from the conversation.
    """

    temperature: str = ""
    top_p: str = ""
    max_tokens: str = ""
    seed: str = ""
    system: str = ""

    @property
    def chosen(self) -> dict[str, str]:
        """What an address has to carry."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "system"}
        return {name: value for name, value in given.items() if value}

    @property
    def changed(self) -> bool:
        """Whether anything differs from the box's own settings."""
        return bool(self.chosen or self.system)


def read_options(field: Callable[[str], str]) -> Options:
    """The options in a form or an address, whose fields `field` gives by name."""
    return Options(**{name: field(name) for name in Options.__dataclass_fields__})


def argument(request: Request, name: str) -> str:
    """A field of the address, without white space around it; empty when it is not there."""
    return (request.args.get(name) or "").strip()


def offered(ctx: Any, *also: str) -> list[AdapterRow]:
    """The adapters that can be asked, newest first: accepted, and of the base that serves. Blocking.

    Args:
        ctx: the app's.
        also: names to have in the list however old they are.
    """
    wanted = [name for name in (ctx.engine.adapter, *also) if name]
    found: list[AdapterRow] = ctx.store.adapters.accepted(ctx.bundle.manifest.base_hash, OFFERED, wanted)
    return found


async def find_weights(ctx: Any, name: str) -> Session | None:
    """The weights the owner chose; None for what is in service.

    Raises:
        NotFound: there is no such adapter, or none that can be asked.
        AdapterInvalid: its file is damaged or fits another base.
        Unavailable: no session can be built with it.
    """
    if name in ("", CURRENT):
        return None
    if name == BASE:
        return await base_weights(ctx)
    if name not in {row.name for row in await asyncio.to_thread(offered, ctx, name)}:
        raise NotFound(
            f"There is no accepted adapter {name!r} any more. Choose another one.", param="adapter"
        )
    return await adapter_weights(ctx, name)


def make_request(ctx: Any, messages: list[dict[str, Any]], options: Options) -> GenerationRequest:
    """A conversation made ready for the model. Blocking.

    Raises:
        InvalidRequest: an option is no number, or out of its range.
        ContextOverflow: the conversation is too long for the model.
    """
    config: ModelConfig = ctx.config.model
    # Without a choice the same as for devices: the owner sees what they see.
    sampling = SamplingParams(
        temperature=_number(options.temperature, "Temperature", 0, 2, config.temperature),
        top_p=_number(options.top_p, "Top-p", 0.01, 1, config.top_p),
        seed=_whole(options.seed, "The seed", 0, MAX_SEED) if options.seed else None,
    )
    longest = ctx.engine.context_length
    limit = config.default_max_tokens
    if options.max_tokens:
        limit = _whole(options.max_tokens, "The longest answer", 1, longest)
    prompt = ctx.tokenizer.encode_chat(messages)
    room = longest - len(prompt)
    if room < _ANSWER_ROOM:
        raise ContextOverflow(
            f"This has become too long for the model: {len(prompt):,} tokens of {longest:,}, which leaves no "
            "room for an answer. Shorten it, or start a new conversation."
        )
    return GenerationRequest(
        prompt=tuple(prompt), max_tokens=min(room, limit), sampling=sampling, client="console"
    )


def with_system(messages: list[dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    """The conversation under the system prompt that is wanted now.

    Raises:
        InvalidRequest: it is too long.
    """
    if len(options.system) > MAX_SYSTEM:
        raise InvalidRequest(f"The system prompt is longer than {MAX_SYSTEM:,} characters.", param="system")
    talk = [message for message in messages if message.get("role") != "system"]
    return [{"role": "system", "content": options.system}, *talk] if options.system else talk


def check_message(message: str) -> None:
    """See that there is something to answer.

    Raises:
        InvalidRequest: nothing was said, or too much.
    """
    if not message:
        raise InvalidRequest("Write a message first.", param="message")
    if len(message) > MAX_MESSAGE:
        raise InvalidRequest(f"That message is longer than {MAX_MESSAGE:,} characters.", param="message")


def keep(
    ctx: Any,
    messages: list[dict[str, Any]],
    text: str,
    last: Delta,
    seconds: float,
    conversation: str | None = None,
) -> str:
    """Remember a finished answer, to be rated and gone on from; returns its id. Blocking."""
    completion_id = f"chatcmpl-{secrets.token_hex(12)}"
    reason: Literal["stop", "length"] = "length" if last.finish_reason == "length" else "stop"
    ctx.store.completions.record(
        id=completion_id,
        created=time.time(),
        device=None,
        model=ctx.bundle.manifest.name,
        adapter=last.adapter,
        query=messages[-1]["content"],
        response=text,
        messages=messages,
        finish_reason=reason,
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        conversation=conversation,
        seconds=seconds,
    )
    return completion_id


async def send_events(request: Request, events: AsyncIterator[Event]) -> None:
    """Send events as they come; what goes wrong is sent as a last one, `problem`, with a message."""
    response = await request.respond(content_type="text/event-stream; charset=utf-8")
    assert response is not None
    try:
        async for name, data in events:
            await response.send(_event(name, data))
    except Exception as error:  # the status line is out: whatever happens must be said in the stream
        if not isinstance(error, ShammahError):
            log.exception("The playground failed")
        message = (
            error.message
            if isinstance(error, ShammahError)
            else "The box failed on this one. The log says more."
        )
        await response.send(_event("problem", {"message": message}))
    await response.eof()


def wants_events(request: Request) -> bool:
    """Whether a script asks for an answer piece by piece."""
    return "text/event-stream" in request.headers.get("accept", "")


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _number(text: str, title: str, low: float, high: float, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text.replace(",", "."))  # as much of the world writes it
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise InvalidRequest(f"{title} is a number from {low:g} to {high:g}, not {text[:40]!r}.")
    return value


def _whole(text: str, title: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise InvalidRequest(f"{title} is a whole number from {low} to {high}, not {text[:40]!r}.")
    return int(text)
