"""From a body to the tokens of its prompt, as far as it can be one.

Tokenizing takes a second for a megabyte. A text that has more characters than the longest tokens of a whole
context is refused before that; the others are tokenized without the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator

from sanic import Request

from appliance.api.schemas import ChatBody
from appliance.errors import ContextOverflow
from appliance.network.aside import LARGE, beside


async def encoded(
    request: Request, texts: Callable[[], Iterable[str]], encode: Callable[[], list[int]], *, chat: bool
) -> list[int]:
    """The tokens.

    Args:
        request: whose body was parsed.
        texts: gives all that will stand in the prompt.
        encode: makes the tokens.
        chat: whether the texts are messages.

    Raises:
        ContextOverflow: the texts cannot fit in the model's context.
        InvalidRequest: the model's chat format does not allow them.
    """
    context = request.app.ctx.engine.context_length
    most = request.app.ctx.tokenizer.longest_text(context)
    size = request.ctx.body_size  # no text is longer than the JSON it came in

    def read() -> list[int]:
        if size > most and (length := sum(map(len, texts()))) > most:
            raise ContextOverflow(
                f"This model's context is {context} tokens, which are {most:,} characters at most, but the "
                f"prompt has {length:,} characters. Send a shorter prompt.",
                param="messages" if chat else "prompt",
            )
        return encode()

    return await beside(read) if size > LARGE else await asyncio.to_thread(read)


def texts_of(body: ChatBody) -> Iterator[str]:
    """What a conversation says, and what is said of its tools."""
    for message in body.messages:
        content = message.content or ""
        yield content if isinstance(content, str) else "".join(part.words for part in content)
        for call in message.tool_calls or ():
            yield call.function.arguments
    if body.tool_choice != "none":
        for tool in body.tools or ():
            yield tool.function.description or ""
            yield json.dumps(tool.function.parameters, ensure_ascii=False)
