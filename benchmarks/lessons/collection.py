"""(e) collection: what storing every exchange costs the one who asks.

Two daemons run side by side, one with `[collect] enabled`, one without. Every question goes to both,
one after the other, who is first in turn; both have the same work, for the seed is the same. Latency
is from the request to the end of the answer.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contestants import Contestant, Running, ours, running
from load import percentile

from appliance.home import Home
from appliance.store import Store
from lessons.bench import Bench
from lessons.data import load_everyday

NAME = "collection"
TOKENS = 16
WARM_UP = 4
ON, OFF = "on", "off"


def run(bench: Bench, *, rounds: int, everyday: int) -> None:
    """`rounds` passes of so many everyday questions, a row each, and one of all."""
    asyncio.run(_run(bench, rounds, load_everyday()[:everyday]))


async def _run(bench: Bench, rounds: int, questions: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as temp:
        place = Path(temp)
        on, off = (_daemon(bench, enabled) for enabled in (True, False))
        times: dict[str, list[float]] = {ON: [], OFF: []}
        async with running(on, place / ON) as first, running(off, place / OFF) as second:
            servers = {ON: first, OFF: second}
            for question in questions[:WARM_UP]:
                for server in servers.values():
                    await _latency(server, question)
            for number in range(rounds):
                found = await _round(servers, questions, number + 1)
                for name, values in found.items():
                    times[name] += values
                bench.add({"scenario": NAME, "round": number + 1, "rounds": rounds, **_compare(found)})
        stored = {name: _stored(place / name) for name in (ON, OFF)}
        if not stored[ON] or stored[OFF]:
            raise SystemExit(f"Collection was not what it should be: {stored} examples were stored.")
        bench.add({"scenario": NAME, "rounds": rounds, "stored": stored, **_compare(times)})


async def _round(
    servers: dict[str, Running], questions: Sequence[str], number: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in servers}
    for turn, question in enumerate(questions):
        for name in list(servers)[:: 1 if turn % 2 else -1]:
            # With a head of its own, for a prompt that was seen before is answered from the cache.
            found[name].append(await _latency(servers[name], f"{number}. {question}"))
    return found


async def _latency(server: Running, question: str) -> float:
    """Seconds."""
    answer = await server.endpoint.chat([{"role": "user", "content": question}], TOKENS)
    return answer.lines[-1][0] - answer.sent


def _compare(times: dict[str, list[float]]) -> dict[str, float | int]:
    """Milliseconds, and how much more it is with collection: by medians, and of the pairs' differences."""
    on, off = times[ON], times[OFF]
    median = statistics.median(off)
    pairs = statistics.median(one - other for one, other in zip(on, off, strict=True))
    return {
        "requests": len(on),
        "on_ms": statistics.median(on) * 1000,
        "off_ms": median * 1000,
        "on_p99_ms": percentile(on, 0.99) * 1000,
        "off_p99_ms": percentile(off, 0.99) * 1000,
        "cost": statistics.median(on) / median - 1,
        "cost_by_pairs": pairs / median,
    }


def _daemon(bench: Bench, enabled: bool) -> Contestant:
    box = ours(bench.bundle, bench.threads)

    def command(port: int, place: Path) -> list[str]:
        line = box.command(port, place)
        with Home(place).config.open("a") as config:
            config.write(f"[collect]\nenabled = {str(enabled).lower()}\n")
        return line

    return replace(box, name=f"shammah, collection {ON if enabled else OFF}", command=command)


def _stored(place: Path) -> int:
    store = Store.open(Home(place))
    try:
        return store.examples.count()
    finally:
        store.close()
