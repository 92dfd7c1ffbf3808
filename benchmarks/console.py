"""How fast the owner's pages are beside a busy box with a long past, and what they cost the devices.

    .venv/bin/python benchmarks/console.py [--examples 100000] [--runs 1000] [--json FILE]

A daemon on loopback has a home with that many examples and runs, 200 adapters, 20 devices and 5,000 acts.
Every page is asked for in turn, again and again, while four clients are being answered in streams all the
time. `server` is the time in the daemon from the request to the packed page, as its `Server-Timing` header
says; `client` what the browser waits, network and queueing included; both as medians, and the 95th
percentile. `kB` is what goes over the network. The goals are 50 ms and 100 kB.

Then what the console costs: the same four clients, in windows with and without an owner in turn. The owner
has Home open, follows its live events and asks for the changed parts as the page's script does, and opens
another page every five seconds. The figure is the median of the pairs' ratios of tokens a second; the goal
is less than 5 % lost. Pairs without an owner in either window (`--null`) show what chance alone does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import httpx
from contestants import Contestant, Running, ours, running
from ending import end_by_exception
from load import Prompts, percentile
from past import Past, make_past
from peers import CACHE

from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT
from appliance.model.tokenizer import Tokenizer

GOAL_MS, GOAL_KB, GOAL_COST = 50.0, 100.0, 0.05
CLIENTS = 4
ANSWER_TOKENS = 200
PROMPT_TOKENS = 60
PACKED = {"Accept-Encoding": "gzip"}


def pages(past: Past) -> dict[str, str]:
    """Every page, with something to show on it."""
    return {
        "home": "/",
        "playground": "/playground",
        "compare": "/playground/compare",
        "queue": "/queue",
        "queue, searched": "/queue?search=garden",
        "queue, used": "/queue?state=used",
        "example": f"/queue/{past.example}",
        "review": "/review",
        "runs": "/runs",
        "run": f"/runs/{past.run}",
        "adapters": "/adapters",
        "adapter": f"/adapters/{past.adapter}",
        "devices": "/devices",
        "device": f"/devices/{past.device}",
        "models": "/models",
        "settings": "/settings",
        "history": "/settings/history",
        "backup": "/backup",
        "logs": "/logs",
        "audit": "/audit",
    }


@dataclass
class Timing:
    """What one page took: milliseconds in the daemon and at the client, kilobytes packed."""

    name: str
    server: list[float]
    client: list[float]
    kilobytes: float = 0.0

    def row(self) -> dict[str, float | str]:
        return {
            "page": self.name,
            "server_ms": statistics.median(self.server),
            "server_p95_ms": percentile(self.server, 0.95),
            "client_ms": statistics.median(self.client),
            "client_p95_ms": percentile(self.client, 0.95),
            "kb": self.kilobytes,
        }


class Clients:
    """Devices that are answered in streams all the time, and the tokens they got."""

    def __init__(self, server: Running, prompts: Prompts) -> None:
        self._server, self._prompts = server, prompts
        self.pieces = 0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Clients]:
        """From the first token of each on."""
        tasks = [asyncio.create_task(self._ask()) for _ in range(CLIENTS)]
        try:
            while self.pieces < CLIENTS:
                await asyncio.sleep(0.05)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def _ask(self) -> None:
        url = f"http://127.0.0.1:{self._server.endpoint.port}/v1/completions"
        async with httpx.AsyncClient(timeout=120) as client:
            while True:
                body = {
                    "model": "shammah",
                    "prompt": self._prompts.story(PROMPT_TOKENS),
                    "max_tokens": ANSWER_TOKENS,
                    "temperature": 1.0,
                    "stream": True,
                }
                async with client.stream("POST", url, json=body) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        # A piece is a token but for the few that complete no character.
                        self.pieces += line.startswith("data: {")


async def time_pages(url: str, past: Past, rounds: int) -> list[Timing]:
    """Each page in turn, so many times; the first time of each is not counted."""
    found = {name: Timing(name, [], []) for name in pages(past)}
    async with httpx.AsyncClient(base_url=url, headers=PACKED, timeout=60) as client:
        for number in range(rounds + 1):
            for name, path in pages(past).items():
                began = time.perf_counter()
                async with client.stream("GET", path) as response:
                    body = b"".join([chunk async for chunk in response.aiter_raw()])
                spent = 1000 * (time.perf_counter() - began)
                if response.status_code != 200:
                    raise SystemExit(f"{path}: {response.status_code}")
                found[name].kilobytes = len(body) / 1000
                if number:
                    found[name].client.append(spent)
                    found[name].server.append(float(response.headers["server-timing"].rpartition("dur=")[2]))
    return list(found.values())


async def be_the_owner(url: str, past: Past) -> None:
    """Have Home open, refresh what changes, and look at another page now and then; until cancelled."""
    async with httpx.AsyncClient(base_url=url, headers=PACKED, timeout=60) as client:

        async def follow() -> None:
            last = 0.0
            async with client.stream("GET", "/console/events?seen=0") as events:
                async for line in events.aiter_lines():
                    if line.startswith("event: ") and time.monotonic() - last >= 1.0:
                        last = time.monotonic()
                        (await client.get("/console/part/home")).raise_for_status()
                        (await client.get("/console/part/review_count")).raise_for_status()

        async def look_around() -> None:
            for path in cycle(pages(past).values()):
                (await client.get(path)).raise_for_status()
                await asyncio.sleep(5)

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            group.create_task(look_around())


async def cost(url: str, past: Past, clients: Clients, pairs: int, seconds: float, null: bool) -> list[float]:
    """Ratios of tokens a second with the owner to without, window by window."""
    ratios = []
    for number in range(pairs):
        rates: dict[bool, float] = {}
        for present in (True, False) if number % 2 else (False, True):
            owner = asyncio.create_task(be_the_owner(url, past)) if present and not null else None
            await asyncio.sleep(1)
            before, began = clients.pieces, time.monotonic()
            await asyncio.sleep(seconds)
            rates[present] = (clients.pieces - before) / (time.monotonic() - began)
            if owner is not None:
                if owner.done():
                    owner.result()
                owner.cancel()
                with suppress(asyncio.CancelledError):
                    await owner
        ratios.append(rates[True] / rates[False])
        print(f"  pair {number + 1} of {pairs}: {rates[True]:.1f} with, {rates[False]:.1f} without tokens/s")
    return ratios


def box(bundle: Bundle, threads: int, options: argparse.Namespace, kept: list[Past]) -> Contestant:
    """The daemon, on a home with a past, which is put into `kept`."""
    plain = ours(bundle, threads)

    def command(port: int, place: Path) -> list[str]:
        line = plain.command(port, place)
        print(f"Making a past of {options.examples:,} examples and {options.runs:,} runs ...")
        kept.append(
            make_past(
                Home(place), bundle, examples=options.examples, runs=options.runs, adapters=options.adapters
            )
        )
        return line

    return replace(plain, command=command)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything, as the JSON has it."""
    bundle = load_bundle(options.bundle) if options.bundle else import_model(DEFAULT, Home(CACHE))
    prompts = Prompts(lambda text: len(Tokenizer(bundle).encode(text)))
    kept: list[Past] = []
    with tempfile.TemporaryDirectory() as temp:
        async with running(box(bundle, options.threads, options, kept), Path(temp) / "home") as server:
            url = f"http://127.0.0.1:{server.endpoint.port}"
            async with Clients(server, prompts).at_work() as clients:
                timings = await time_pages(url, kept[0], options.rounds)
                print(table(timings))
                ratios = await cost(url, kept[0], clients, options.pairs, options.seconds, options.null)
    lost = 1 - statistics.median(ratios)
    print(f"The console costs {lost:+.1%} of the tokens a second (median of {len(ratios)} pairs).")
    return {
        "examples": options.examples,
        "runs": options.runs,
        "clients": CLIENTS,
        "pages": [timing.row() for timing in timings],
        "cost": lost,
        "ratios": ratios,
        "past": asdict(kept[0]),
    }


def table(timings: Sequence[Timing]) -> str:
    """The pages as a Markdown table; what misses its goal is marked."""
    lines = ["| page | server ms | p95 | client ms | p95 | kB |", "|---|---:|---:|---:|---:|---:|"]
    for timing in timings:
        row = timing.row()
        slow = " !" if float(row["server_ms"]) > GOAL_MS else ""
        big = " !" if timing.kilobytes > GOAL_KB else ""
        lines.append(
            f"| {timing.name} | {row['server_ms']:.1f}{slow} | {row['server_p95_ms']:.1f} | "
            f"{row['client_ms']:.1f} | {row['client_p95_ms']:.1f} | {timing.kilobytes:.1f}{big} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15, help="times each page is asked for")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of windows for the cost")
    parser.add_argument("--seconds", type=float, default=20, help="length of such a window")
    parser.add_argument("--null", action="store_true", help="no owner in either window")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    end_by_exception()
    found = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
