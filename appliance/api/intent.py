"""Whether a message asks for one of the tools.

A small model that was never taught tools hardly ever begins a call, but it knows well what people say. So
it is asked the other way round (Min et al. 2022, noisy channel): is the message likelier from somebody who
wants what a tool does, or from somebody who only talks? Where a tool explains the message better than all
talk does, that tool is called. Models whose chat template speaks of tools decide for themselves.
"""

from __future__ import annotations

import re
from contextlib import aclosing

from sanic import Request

from appliance.api.auth import device_of
from appliance.api.messages import Function, FunctionName, NamedTool
from appliance.api.schemas import ChatBody
from appliance.api.tools import offered
from appliance.api.weights import find_weights
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.session import Session
from appliance.model.tokenizer import Tokenizer

MAX_TOOLS = 16  # each costs a step of some tens of tokens before the answer begins
MAX_TOKENS = 64  # of the message: longer ones are seldom simple commands
MAX_CHARS = 1000  # so that a long one is not made into tokens first
MAX_PURPOSE = 160
LOOKED_AT = 1000
"""Characters of a description, which may have megabytes."""
_TALK = (
    "A user asks an assistant a question.",
    "A user asks an assistant a question about general knowledge.",
    "A user says hello or thanks to an assistant.",
    "A user asks an assistant to write or explain something.",
)
_SAID = "\nUser: "


async def decided(request: Request, body: ChatBody) -> ChatBody:
    """The request with the tool named that it asks for, where the choice is left to a model that has no say.

    Raises:
        Busy: too many requests wait already.
        Unavailable: the model failed.
        NotFound, Forbidden, AdapterInvalid, RateLimited: of the weights that the body names.
    """
    ctx = request.app.ctx
    functions = [tool.function for tool in offered(body)]
    message = body.messages[-1]
    free = body.tool_choice in (None, "auto") and not ctx.tokenizer.writes_calls
    if not (free and message.role == "user" and 0 < len(functions) <= MAX_TOOLS):
        return body
    said = str(message.plain()["content"]).strip()
    tokens = ctx.tokenizer.encode(f"{said}\n") if 0 < len(said) <= MAX_CHARS else []
    if not 0 < len(tokens) <= MAX_TOKENS:
        return body
    device = device_of(request)
    client = device.id if device else request.ip
    # By whom it will be answered, in the words of `begin`; and nothing is computed for a name that is none.
    weights = await find_weights(request, body.model, f"{client}\0{body.opening}") or ctx.engine.weights
    scorer = _Scorer(ctx.engine, ctx.tokenizer, tokens, client, weights)
    talk = max([await scorer.likelihood(text) for text in _TALK])
    wanted = {function.name: await scorer.likelihood(_wish(function)) for function in functions}
    name = max(wanted, key=lambda name: wanted[name])
    if wanted[name] <= talk:
        return body
    return body.model_copy(
        update={"tool_choice": NamedTool(type="function", function=FunctionName(name=name))}
    )


class _Scorer:
    """How likely one message is, in one session, whatever is switched meanwhile."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, message: list[int], client: str, weights: Session
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._message = message
        self._client = client
        self._weights = weights

    async def likelihood(self, situation: str) -> float:
        """Natural log of the message's probability in a situation."""
        before = self._tokenizer.encode(situation + _SAID)
        asked = GenerationRequest((*before, *self._message), 1, client=self._client, score_from=len(before))
        async with aclosing(self._engine.generate(asked, self._weights)) as generation:
            return sum([token.logprob async for delta in generation for token in delta.tokens])


def _wish(function: Function) -> str:
    """The situation in which somebody wants what a function does."""
    purpose = re.split(r"[.\n](?:\s|$)", (function.description or "")[:LOOKED_AT].strip(), maxsplit=1)[0]
    purpose = purpose[:MAX_PURPOSE]
    purpose = purpose or re.sub(r"[_-]+|(?<=[a-z])(?=[A-Z])", " ", function.name)
    return f"A user asks an assistant to {purpose[:1].lower()}{purpose[1:]}."
