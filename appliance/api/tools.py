"""Tools: how they are told to the model, and the grammar of an answer that may call them.

A call is `<tool_call>`, a line of JSON and `</tool_call>`, as many model families learn it. A chat
template that speaks of tools in this form is used as it is. For others the tools are described in the
system message, and the results of calls are told in words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Sequence
from typing import Any

from appliance.api.messages import Function, NamedTool, Tool
from appliance.api.schemas import ChatBody
from appliance.engine.constraint import Constraint, Grammars, json_grammar, json_rule
from appliance.engine.json_schema import measure
from appliance.errors import InvalidRequest
from appliance.model.tokenizer import CALL_BEGIN, CALL_END, Tokenizer

MAX_TEXT = 400_000  # characters of all schemas together
BLAME_SECONDS = 5.0
"""For finding out which tool it is that cannot be served."""
MAX_CALLS = 8  # in one answer: a small model would go on calling
HEAD, MIDDLE, TAIL = '{"name": "', '", "arguments": ', "}"
"""What stands around name and arguments in a call's line. The grammar forces it, the reader relies on it."""
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def offered(body: ChatBody) -> list[Tool]:
    """The tools that the model may call."""
    return [] if body.tool_choice == "none" else body.tools or []


def encode(tokenizer: Tokenizer, body: ChatBody) -> list[int]:
    """Tokens of the conversation, with the tools it may call.

    Raises:
        InvalidRequest: the model's chat format does not allow it.
    """
    messages = [message.plain() for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in offered(body)]
    if tokenizer.writes_calls:
        return tokenizer.encode_chat(messages, tools=tools)
    return tokenizer.encode_chat(_spelt_out(messages, tools))


def compiled(grammars: Grammars, tokenizer: Tokenizer, body: ChatBody, client: str = "") -> Constraint:
    """The grammar of an answer that may, or must, call one of the offered tools.

    Raises:
        InvalidRequest: a schema cannot be served; names the tool, and where in the schema.
    """
    try:
        return grammars.compile(grammar(tokenizer, body), "tools", client)
    except InvalidRequest:
        loose = _blame(grammars, body, client)
    return grammars.compile(grammar(tokenizer, body, loose), "tools", client)


def _blame(grammars: Grammars, body: ChatBody, client: str) -> frozenset[int]:
    """The tools whose schemas the compiler does not take; they may have any arguments.

    Raises:
        InvalidRequest: one of these is `strict`, or too costly, or the answer's format is at fault.
    """
    if (schema := body.response_format and body.response_format.schema_of_answer) is not None:
        grammars.compile(json_grammar(schema), "response_format", client)
    loose = set()
    began = time.monotonic()
    for at, function in _callable(body):
        verdict = grammars.verdict(f"start: {_rule(at, function)}\n", client)
        if verdict.reason and (function.strict or verdict.costly):
            raise InvalidRequest(
                f"Tool {function.name!r} cannot be served: {verdict.reason}",
                param=_param(at),
                code="invalid_value",
            )
        if verdict.reason:
            loose.add(at)
        if time.monotonic() - began > BLAME_SECONDS:
            break
    return frozenset(loose)


def grammar(tokenizer: Tokenizer, body: ChatBody, loose: Container[int] = ()) -> str:
    """The text of that grammar.

    Args:
        tokenizer: of the model.
        body: the request.
        loose: places of tools that may have any arguments.

    Raises:
        InvalidRequest: a schema cannot be served.
    """
    functions = _callable(body)
    if sum(measure(function.parameters) for _, function in functions) > MAX_TEXT:
        raise InvalidRequest("The tools are too large.", param="tools", code="invalid_value")
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    most = 1 if named or body.parallel_tool_calls is False else MAX_CALLS
    must = named is not None or body.tool_choice == "required"
    schema = body.response_format.schema_of_answer if body.response_format else None
    # In some vocabularies the marks are tokens of their own, which llguidance never takes for text.
    marks = tokenizer.marks
    begin, end = (mark if mark in marks else _quoted(mark) for mark in (CALL_BEGIN, CALL_END))
    rules = [f'more: "\\n" {begin} "\\n" call "\\n" {end}']
    if must or schema is not None:
        first = begin
        answer = json_rule(schema, "response_format") if schema is not None else ""
    else:
        # Lazy: as soon as the mark is complete it is a call that follows, not more text.
        rules += [r"TEXT: /(.|\n)*/", f"spelt[lazy]: TEXT {_quoted(CALL_BEGIN)}"]
        first, answer = "spelt", "TEXT"
        if CALL_BEGIN in marks:
            first += f" | TEXT {CALL_BEGIN} | {CALL_BEGIN}"
        if shown := [f"<[{ident}]>" for mark, ident in marks.items() if mark not in (CALL_BEGIN, CALL_END)]:
            # Others belong to the text, e.g. around what a model thinks before it answers.
            rules += [f"shown: {' | '.join(shown)}", "before: (shown | TEXT shown)*"]
            first, answer = f"before ({first})", "before TEXT | before"
    if not must:
        rules.append(f"answer: {answer}")
    calls = f'({first}) "\\n" call "\\n" {end}' + (f" more{{0,{most - 1}}}" if most > 1 else "")
    rules.append("call: " + " | ".join(f"call_{at}" for at, _ in functions))
    for at, function in functions:
        head = _quoted(f"{HEAD}{function.name}{MIDDLE}")
        rules.append(f"call_{at}: {head} arguments_{at} {_quoted(TAIL)}")
        arguments = json_rule({"type": "object"}, _param(at)) if at in loose else _rule(at, function)
        rules.append(f"arguments_{at}: {arguments}")
    return "\n".join([f"start: {calls}" if must else f"start: answer | {calls}", *rules]) + "\n"


def _callable(body: ChatBody) -> list[tuple[int, Function]]:
    """The functions that may be called, with their places among the tools."""
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    functions = enumerate(tool.function for tool in offered(body))
    return [(at, function) for at, function in functions if named in (None, function.name)]


def _param(at: int) -> str:
    return f"tools[{at}].function.parameters"


def _rule(at: int, function: Function) -> str:
    """The rule of a function's arguments. Without `strict` nobody was promised that all of it is followed."""
    strict = bool(function.strict)
    return json_rule(_arguments(function), _param(at), strict=strict, of=f"Tool {function.name!r}")


def _arguments(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments, without any that it does not name.

    JSON schema would allow others by default; a function has no use for arguments it does not know.
    """
    schema = {**(function.parameters or _NO_ARGUMENTS), "type": "object"}
    if "additionalProperties" not in schema and not any(key in schema for key in _COMBINED):
        schema["additionalProperties"] = False
    return schema


def _spelt_out(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template that knows no tools.

    A small model answers best from what stands in the question itself: so the results of calls are said
    there, and the calls are not. Marks in its own turns, or around results, it would only say again.
    """
    plain: list[dict[str, Any]] = []
    made: dict[str, dict[str, Any]] = {}
    for message in messages:
        made |= {call["id"]: call["function"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            said = _told(message, made)
            if plain and plain[-1]["role"] == "user":
                said = f"{plain.pop()['content']}\n\n{said}"
            plain.append({"role": "user", "content": said})
        elif message["content"] or not message.get("tool_calls"):
            plain.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] == "tool":
        plain[-1]["content"] += "\n\nAnswer in words."  # not in code, which results remind it of
    if not tools:
        return plain
    if not plain or plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": ""})
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    form = f"{CALL_BEGIN}\n{HEAD}NAME{MIDDLE}{{…}}{TAIL}\n{CALL_END}"
    instruction = (
        f"You can call these functions:\n{described}\n"
        f"When one of them helps, answer with nothing but a call, in this form:\n{form}\n"
        "Its result comes in the next message. Otherwise answer in words."
    )
    first = plain[0]["content"]
    plain[0] = {"role": "system", "content": f"{first}\n\n{instruction}" if first else instruction}
    return plain


def _told(result: dict[str, Any], made: dict[str, dict[str, Any]]) -> str:
    """A result in words.

    The arguments are said only where a function was called more than once: they confuse a small model.
    """
    function = made.get(result["tool_call_id"])
    if function is None:
        return f"The result is: {result['content']}"
    name, arguments = function["name"], function["arguments"]
    with_arguments = ""
    if sum(other["name"] == name for other in made.values()) > 1:
        said = arguments if isinstance(arguments, str) else ", ".join(map(str, arguments.values()))
        with_arguments = f" ({said})" if said else ""
    return f"The function {name}{with_arguments} returned: {result['content']}"


def _quoted(text: str) -> str:
    return json.dumps(text)
