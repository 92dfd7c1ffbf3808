"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api import intent, tools
from appliance.api.answer import Answer, Choice, Piece
from appliance.api.auth import device_of
from appliance.api.errors import parse
from appliance.api.generation import begin, collect, finish, stream
from appliance.api.logprobs import TextLogprobs, chat_logprobs
from appliance.api.prompts import encoded, texts_of
from appliance.api.schemas import ChatBody, CompletionBody
from appliance.api.tool_calls import CallReader
from appliance.engine.constraint import Constraint, Grammars, json_grammar

blueprint = Blueprint("completions", url_prefix="/v1")


@blueprint.post("/chat/completions")
async def chat(request: Request) -> HTTPResponse | None:
    """Answer a conversation."""
    body = await intent.decided(request, await parse(request, ChatBody))
    tokenizer = request.app.ctx.tokenizer
    prompt = await encoded(request, lambda: texts_of(body), lambda: tools.encode(tokenizer, body), chat=True)
    choices, answer = await begin(
        request,
        body,
        prompt,
        "chatcmpl",
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=await _constraint(request, body),
        reader=_reader(body),
    )

    def done() -> None:
        messages = [message.plain() for message in body.messages]
        with_tools = any(message.with_tools for message in body.messages)
        collect(request, body, answer, messages, with_tools, body.forced)

    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        begun: set[int] = set()

        def chunks(choice: Choice, piece: Piece) -> list[dict[str, Any]]:
            first = choice.index not in begun
            begun.add(choice.index)
            return _chat_chunks(request, body, answer, choice, piece, first)

        def head() -> dict[str, Any]:
            return answer.head("chat.completion.chunk")

        await stream(request, choices, answer, chunks, head if usage else None, done)
        return None
    await finish(request, choices, answer)
    done()
    shown = [_chat_choice(request, body, choice) for choice in answer.choices]
    return json_response({**answer.head("chat.completion"), "choices": shown, "usage": answer.usage})


@blueprint.post("/completions")
async def complete(request: Request) -> HTTPResponse | None:
    """Continue a text. Not learned from: there is no question and no answer in it."""
    body = await parse(request, CompletionBody)
    tokenizer = request.app.ctx.tokenizer
    prompt = await encoded(
        request, lambda: [body.opening], lambda: tokenizer.encode_prompt(body.opening), chat=False
    )
    choices, answer = await begin(
        request,
        body,
        prompt,
        "cmpl",
        max_tokens=body.max_completion_tokens or body.max_tokens or 16,
        logprobs=body.logprobs,
    )
    logprobs = [TextLogprobs(tokenizer) for _ in answer.choices]

    def done() -> None:
        collect(request, body, answer, None)

    def head() -> dict[str, Any]:
        return answer.head("text_completion")

    def shown(choice: Choice, part: Choice | Piece) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": part.text,
            "logprobs": None if body.logprobs is None else logprobs[choice.index].of(part.tokens),
            "finish_reason": part.finish_reason,
        }

    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)

        def chunks(choice: Choice, piece: Piece) -> list[dict[str, Any]]:
            return [{**head(), "choices": [shown(choice, piece)]}]

        await stream(request, choices, answer, chunks, head if usage else None, done)
        return None
    await finish(request, choices, answer)
    done()
    whole = [shown(choice, choice) for choice in answer.choices]
    return json_response({**head(), "choices": whole, "usage": answer.usage})


async def _constraint(request: Request, body: ChatBody) -> Constraint | None:
    """The grammar that the answer must follow; compiling it takes a moment."""
    ctx, device = request.app.ctx, device_of(request)
    schema, client = _schema(body), device.id if device else request.ip
    grammars: Grammars = ctx.grammars

    def make() -> Constraint:
        if tools.offered(body):
            return tools.compiled(grammars, ctx.tokenizer, body, client)
        return grammars.compile(json_grammar(schema), "response_format", client)

    if schema is None and not tools.offered(body):
        return None
    return await grammars.prepare(client, make)


def _reader(body: ChatBody) -> Callable[[], CallReader] | None:
    """What finds calls in the answer; where the model was told of no tools the answer is left as it is."""
    calls, in_format = bool(tools.offered(body)), _schema(body) is not None
    if not calls and (in_format or not any(message.with_tools for message in body.messages)):
        return None
    return partial(CallReader, calls, in_format)


def _schema(body: ChatBody) -> dict[str, Any] | None:
    return body.response_format.schema_of_answer if body.response_format else None


def _chat_choice(request: Request, body: ChatBody, choice: Choice) -> dict[str, Any]:
    """A whole choice in OpenAI's shape."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [call.shown() for call in choice.calls]
    logprobs = chat_logprobs(request.app.ctx.tokenizer, choice.tokens) if body.logprobs else None
    return {
        "index": choice.index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _chat_chunks(
    request: Request, body: ChatBody, answer: Answer, choice: Choice, piece: Piece, first: bool
) -> list[dict[str, Any]]:
    """A piece as OpenAI's chunks: the role first, then text and calls, then an empty one with the reason."""
    deltas: list[dict[str, Any]] = []
    if piece.text or piece.tokens:
        deltas.append({"content": piece.text})
    for index, call in enumerate(piece.calls, len(choice.calls) - len(piece.calls)):
        shown = call.shown()
        named = {**shown, "function": {"name": call.name, "arguments": ""}}
        deltas.append({"tool_calls": [{"index": index, **named}]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
    head = answer.head("chat.completion.chunk")
    if body.stream_options and body.stream_options.include_usage:
        head["usage"] = None

    def chunk(delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        shown = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [shown]}

    chunks = [chunk({"role": "assistant", "content": ""})] if first else []
    for number, delta in enumerate(deltas):
        tokens = piece.tokens if number == 0 else ()
        chunks.append(chunk(delta, chat_logprobs(request.app.ctx.tokenizer, tokens) if tokens else None))
    if piece.finish_reason:
        chunks.append(chunk({}, reason=piece.finish_reason))
    return chunks
