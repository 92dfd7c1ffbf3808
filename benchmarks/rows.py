"""What is measured: each row asks one running server and gives back numbers by their label.

A label ends with its unit. Tokens a second are better when they are more, all others when less.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from contestants import Running
from load import Answer, Prompts, percentile

Numbers = dict[str, float]
Measure = Callable[[Running, Prompts], Awaitable[Numbers]]

PROMPT, ANSWER = 128, 128
PREFILLS = (128, 512, 2048)
REPEATS = {128: 4, 512: 2, 2048: 1}  # short ones are over too soon to time once
SYSTEM = 512
QUESTIONS = ("Where do the old trees grow?", "Who plays near the water in spring?")
# Prompt and answer tokens of the mixed load's requests, and how many there are for so many clients.
MIXED = ((24, 64), (160, 32), (64, 96), (384, 24), (96, 48), (40, 80), (256, 40), (128, 64))
REQUESTS = {1: 4, 4: 12, 8: 24, 16: 32}
DECODING = 7  # clients that decode while an eighth brings the long prompt: there are eight slots
QUIET_SECONDS = 5.0
BUSY_ANSWER = 1024


@dataclass(frozen=True)
class Row:
    """A measurement of one server.

    Attributes:
        parallel: makes sense only for servers that answer several requests at once.
        ours: only this project can do it.
    """

    name: str
    measure: Measure
    parallel: bool = False
    ours: bool = False


async def decode(server: Running, prompts: Prompts) -> Numbers:
    """One client, a prompt of 128 tokens, an answer of 128."""
    answer = await server.endpoint.complete(prompts.story(PROMPT), ANSWER)
    return {"decode, 1 client, tok/s": answer.decode}


async def prefill(server: Running, prompts: Prompts) -> Numbers:
    """Prompt tokens a second, from the request to the first token."""
    return {f"prefill {tokens}, tok/s": await _prefill(server, prompts, tokens) for tokens in PREFILLS}


async def _prefill(server: Running, prompts: Prompts, tokens: int) -> float:
    rates = []
    for _ in range(REPEATS[tokens]):
        answer = await server.endpoint.complete(prompts.story(tokens), 1)
        rates.append(answer.prompt_tokens / answer.first)
    return statistics.median(rates)


async def first_token(server: Running, prompts: Prompts) -> Numbers:
    """A question after a system prompt that is new, and another one after the same system prompt."""
    system = {"role": "system", "content": prompts.text(SYSTEM)}
    cold, cached = [
        (await server.endpoint.chat([system, {"role": "user", "content": question}], 4)).first
        for question in QUESTIONS
    ]
    return {
        f"first token, {SYSTEM}-token prefix new, ms": cold * 1000,
        f"first token, {SYSTEM}-token prefix seen, ms": cached * 1000,
    }


def mixed(clients: int) -> Measure:
    """Several clients with prompts and answers of mixed lengths, each sending its next when one is done."""

    async def measure(server: Running, prompts: Prompts) -> Numbers:
        shapes = [MIXED[number % len(MIXED)] for number in range(REQUESTS[clients])]
        jobs = iter([(prompts.story(prompt), tokens) for prompt, tokens in shapes])
        answers: list[Answer] = []

        async def client() -> None:
            for prompt, tokens in jobs:
                answers.append(await server.endpoint.complete(prompt, tokens))

        began = time.perf_counter()
        await _together([asyncio.create_task(client()) for _ in range(clients)])
        seconds = time.perf_counter() - began
        gaps = [gap for answer in answers for gap in answer.gaps()]
        name = f"{clients} client{'s' if clients > 1 else ''}"
        return {
            f"mixed, {name}, tok/s": sum(answer.completion_tokens for answer in answers) / seconds,
            f"mixed, {name}, gap p50, ms": percentile(gaps, 0.5) * 1000,
            f"mixed, {name}, gap p99, ms": percentile(gaps, 0.99) * 1000,
        }

    return measure


async def stall(server: Running, prompts: Prompts) -> Numbers:
    """Seven clients decode; then an eighth brings a prompt of 2,048 tokens."""
    answers: list[Answer] = []

    async def client() -> None:
        while True:
            answer = Answer()
            answers.append(answer)
            await server.endpoint.complete(prompts.story(PROMPT), BUSY_ANSWER, into=answer)

    clients = [asyncio.create_task(client()) for _ in range(DECODING)]
    try:
        while len(answers) < DECODING or any(len(answer.arrivals) < 2 for answer in answers[:DECODING]):
            await asyncio.sleep(0.05)
            _raise_ended(clients)
        quiet = time.perf_counter()
        await asyncio.sleep(QUIET_SECONDS)
        busy = time.perf_counter()
        long = await server.endpoint.complete(prompts.story(max(PREFILLS)), 1)
        done = long.sent + long.first
        await asyncio.sleep(1.0)  # the gaps that the long prompt tore open end now
        _raise_ended(clients)
    finally:
        await _cancel(clients)
    await server.settle()
    label = f"{DECODING} clients decode, gap p99"
    without = [gap for answer in answers for gap in answer.gaps(quiet, busy)]
    during = [gap for answer in answers for gap in answer.gaps(busy, done)]
    return {
        f"{label}, ms": percentile(without, 0.99) * 1000,
        f"{label}, 2048-token prompt comes, ms": percentile(during, 0.99) * 1000,
        "first token of that prompt, ms": long.first * 1000,
    }


async def _together(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all; when one fails the others stop too, or they would disturb what comes next."""
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def adapter(server: Running, prompts: Prompts) -> Numbers:
    """Ours with and without an adapter of rank 16 on every linear layer, in either order."""
    numbers: Numbers = {}
    try:
        for state in random.sample(("on", "off"), 2):
            await server.use_adapter(state == "on")
            numbers |= {
                f"adapter {state}, decode, tok/s": (await decode(server, prompts))["decode, 1 client, tok/s"],
                f"adapter {state}, prefill 512, tok/s": await _prefill(server, prompts, 512),
            }
    finally:
        with suppress(Exception):  # after a failure the server may be gone
            await server.use_adapter(False)
    return numbers


ROWS = {
    row.name: row
    for row in (
        Row("decode", decode),
        Row("prefill", prefill),
        Row("first", first_token),
        Row("mixed1", mixed(1)),
        Row("mixed4", mixed(4), parallel=True),
        Row("mixed8", mixed(8), parallel=True),
        Row("mixed16", mixed(16), parallel=True),
        Row("stall", stall, parallel=True),
        Row("adapter", adapter, ours=True),
    )
}
