"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api.errors import parse
from appliance.api.generation import Answer, begin, check_model, collect, finish, stream
from appliance.api.schemas import ChatBody, CompletionBody
from appliance.engine.request import Delta

blueprint = Blueprint("completions", url_prefix="/v1")


@blueprint.post("/chat/completions")
async def chat(request: Request) -> HTTPResponse | None:
    """Answer a conversation."""
    body = parse(request, ChatBody)
    check_model(request, body.model)
    messages = [message.plain() for message in body.messages]
    prompt = await asyncio.to_thread(request.app.ctx.tokenizer.encode_chat, messages)
    generation, answer = begin(
        request, body, prompt, body.max_completion_tokens or body.max_tokens, "chatcmpl"
    )

    def done() -> None:
        collect(request, body, answer, messages)

    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        first = True

        def chunks(delta: Delta) -> list[dict[str, Any]]:
            nonlocal first
            role: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
            first = False
            return _chat_chunks(answer, delta, role, usage)

        def head() -> dict[str, Any]:
            return answer.head("chat.completion.chunk")

        await stream(request, generation, answer, chunks, head if usage else None, done)
        return None
    await finish(generation, answer)
    done()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": None,
        "finish_reason": answer.finish_reason,
    }
    return json_response({**answer.head("chat.completion"), "choices": [choice], "usage": answer.usage})


@blueprint.post("/completions")
async def complete(request: Request) -> HTTPResponse | None:
    """Continue a text. Not learnt from: there is no question and no answer in it."""
    body = parse(request, CompletionBody)
    check_model(request, body.model)
    prompt = await asyncio.to_thread(request.app.ctx.tokenizer.encode_prompt, body.prompt)
    generation, answer = begin(request, body, prompt, body.max_tokens or 16, "cmpl")

    def done() -> None:
        collect(request, body, answer, None)

    def head() -> dict[str, Any]:
        return answer.head("text_completion")

    def chunks(delta: Delta) -> list[dict[str, Any]]:
        return [{**head(), "choices": [_text_choice(delta.text, delta.finish_reason)]}]

    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        await stream(request, generation, answer, chunks, head if usage else None, done)
        return None
    await finish(generation, answer)
    done()
    choice = _text_choice(answer.text, answer.finish_reason)
    return json_response({**head(), "choices": [choice], "usage": answer.usage})


def _chat_chunks(answer: Answer, delta: Delta, role: dict[str, Any], usage: bool) -> list[dict[str, Any]]:
    """A delta as OpenAI's chunks: the role first, then text, then an empty chunk with the reason."""
    head = answer.head("chat.completion.chunk")
    if usage:
        head["usage"] = None

    def chunk(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice]}

    chunks = [chunk(role, None)] if role else []
    if delta.text:
        chunks.append(chunk({"content": delta.text}, None))
    if delta.finish_reason:
        chunks.append(chunk({}, delta.finish_reason))
    return chunks


def _text_choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
