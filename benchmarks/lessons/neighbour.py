"""(f) neighbour: what a run takes from those who are served meanwhile.

One daemon with the household's facts in its queue. In each round clients decode all the time, first
with nothing else going on, then while a run trains; the run is cancelled at the end of the round, so
that all rounds begin alike. Once as the box is set up (a run yields to requests), once with
`[resources] busy_share = 1`, so that it does not.

Tokens a second are those of one client after its first token; a gap is the time between two pieces of
text. A part must be longer than the time in which a run saves up for one slice of computing among
requests (`learning/yielding.py`).
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contestants import Contestant, Running, ours, running
from load import Answer, LoadError, Prompts, percentile

from appliance.home import Home
from appliance.sections import ResourcesConfig
from lessons.bench import Bench
from lessons.data import load_facts

NAME = "neighbour"
QUIET, TRAINING = "quiet", "training"
PROMPT, ANSWER = 64, 512
START_SECONDS = 180.0
EXAMPLES = 100_000
"""Pending examples that start a run by themselves: more than there are, for here a person starts it."""


@dataclass(frozen=True)
class Served:
    """What the clients saw in one part of a round."""

    decode: list[float]
    gaps: list[float]

    def __add__(self, other: Served) -> Served:
        return Served(self.decode + other.decode, self.gaps + other.gaps)


def run(bench: Bench, *, rounds: int, seconds: float, clients: Sequence[int] = (1, 4)) -> None:
    """`rounds` rounds of two parts of so many seconds each, a row for all of them."""
    for share in (ResourcesConfig().busy_share, 1.0):
        for count in clients:
            row = asyncio.run(_measure(bench, rounds, seconds, count, share))
            bench.add({"scenario": NAME, "seed": bench.seed, "busy_share": share, "clients": count, **row})


async def _measure(bench: Bench, rounds: int, seconds: float, clients: int, share: float) -> dict[str, Any]:
    nothing = Served([], [])
    found = {QUIET: nothing, TRAINING: nothing}
    ratios: list[float] = []
    steps = 0
    prompts = Prompts(lambda text: len(bench.exam.tokenizer.encode_prompt(text)))
    with tempfile.TemporaryDirectory() as temp:
        async with running(_daemon(bench, share), Path(temp) / "home") as server:
            await _teach(server)
            for _ in range(rounds):
                quiet = await _decode(server, prompts, clients, seconds)
                await _start(server)
                before = await _steps(server)
                training = await _decode(server, prompts, clients, seconds)
                steps += await _steps(server) - before
                await _cancel(server)
                found = {QUIET: found[QUIET] + quiet, TRAINING: found[TRAINING] + training}
                ratios.append(statistics.mean(training.decode) / statistics.mean(quiet.decode))
    quiet_p99, training_p99 = (percentile(found[part].gaps, 0.99) * 1000 for part in (QUIET, TRAINING))
    return {
        "rounds": rounds,
        "seconds": seconds,
        "quiet_decode": statistics.mean(found[QUIET].decode),
        "training_decode": statistics.mean(found[TRAINING].decode),
        "decode_ratio": statistics.median(ratios),
        "decode_ratios": ratios,
        "quiet_p99_ms": quiet_p99,
        "training_p99_ms": training_p99,
        "p99_ratio": training_p99 / quiet_p99,
        "steps": steps,
    }


async def _decode(server: Running, prompts: Prompts, clients: int, seconds: float) -> Served:
    """What so many clients see who always have the next text continued, until the time is over."""
    end = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client() -> None:
        while time.perf_counter() < end:
            answers.append(await server.endpoint.complete(prompts.story(PROMPT), ANSWER))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Served([answer.decode for answer in answers], [gap for answer in answers for gap in answer.gaps()])


async def _teach(server: Running) -> None:
    for fact in load_facts():
        body = {"query": fact.ask, "response": fact.wrong, "correction": fact.answer, "weight": "high"}
        await server.call("POST", "feedback", body)


async def _start(server: Running) -> None:
    """Start a run and wait for its first steps."""
    await server.call("POST", "training/run")
    deadline = time.monotonic() + START_SECONDS
    while await _steps(server) < 1:
        if time.monotonic() > deadline:
            raise LoadError("The run does not come to its first step.")
        await asyncio.sleep(0.2)


async def _cancel(server: Running) -> None:
    await server.call("POST", "training/cancel")
    while (await server.call("GET", "training/status"))["run"] is not None:
        await asyncio.sleep(0.1)


async def _steps(server: Running) -> int:
    """Done by the run going on.

    Raises:
        LoadError: it ended too early to be measured beside.
    """
    status = await server.call("GET", "training/status")
    if status["run"] is None:
        raise LoadError(f"The run has ended: {status['last_run']}")
    return int(status["run"]["step"] or 0)


def _daemon(bench: Bench, share: float) -> Contestant:
    box = ours(bench.bundle, bench.threads)

    def command(port: int, place: Path) -> list[str]:
        line = box.command(port, place)
        config = Home(place).config
        text = config.read_text().replace("enabled = false", f"auto_train_threshold = {EXAMPLES}")
        # Load is what this is about: it must not defer the run.
        text += f"[resources]\nmax_load_per_core = 100\nbusy_share = {share}\n"
        config.write_text("\n".join([text, "[train]", *bench.settings, ""]))
        return line

    return replace(box, name=f"shammah, busy_share {share:g}", command=command)
