"""Two hundred requests that join and leave at random, each answered as if it were alone."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import psutil
import pytest

from appliance.adapters.file import Adapter
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import Session
from appliance.errors import Busy
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

GREEDY = SamplingParams(temperature=0)
REQUESTS = int(os.environ.get("SHAMMAH_TEST_REQUESTS", "100"))


async def answer(engine: Engine, request: GenerationRequest, weights: Session | None = None) -> str:
    return "".join([delta.text async for delta in engine.generate(request, weights)])


@pytest.mark.slow
async def test_mixed_requests_equal_each_alone_and_memory_stays(
    bundle: Bundle,
    tokenizer: Tokenizer,
    prompts: list[tuple[int, ...]],
    make_adapter: Callable[[int], Adapter],
) -> None:
    chosen = random.Random(7)
    adapters = [None, make_adapter(1), make_adapter(2)]
    engine = Engine(bundle, tokenizer, ModelConfig(slots=8, queue=300, extra_adapters=2))
    plain = Engine(bundle, tokenizer, ModelConfig(slots=1, prefix_cache_mb=0, drafts=False))
    engine.start()
    plain.start()
    try:
        kinds = [
            (prompt, tokens, sampling)
            for prompt in prompts
            for tokens, sampling in ((14, GREEDY), (5, SamplingParams(temperature=0.9, seed=4)))
        ]
        alone: dict[tuple[int, int], str] = {}
        for place, adapter in enumerate(adapters):
            await plain.swap(adapter)
            for number, (prompt, tokens, sampling) in enumerate(kinds):
                alone[number, place] = await answer(plain, GenerationRequest(prompt, tokens, sampling))
        plain.stop()
        assert len({tuple(alone[n, place] for n in range(len(kinds))) for place in range(3)}) == 3

        ready = [await engine.prepare(adapter) for adapter in adapters]
        wrong: list[tuple[int, int, str]] = []

        async def client(wait: float, number: int, place: int, leave: bool) -> None:
            await asyncio.sleep(wait)
            prompt, tokens, sampling = kinds[number]
            generation = engine.generate(GenerationRequest(prompt, tokens, sampling), ready[place])
            if leave:
                await anext(generation)
                await generation.aclose()
                return
            text = "".join([delta.text async for delta in generation])
            if text != alone[number, place]:
                wrong.append((number, place, text))

        async def wave(count: int) -> int:
            await asyncio.gather(
                *(
                    client(
                        chosen.random() * count / 20,
                        chosen.randrange(len(kinds)),
                        chosen.randrange(3),
                        chosen.random() < 0.1,
                    )
                    for _ in range(count)
                )
            )
            return int(psutil.Process().memory_info().rss)

        async def switching(count: int) -> int:
            """The one in service changes meanwhile; who asked for weights by name keeps them."""
            requests = asyncio.create_task(wave(count))
            for adapter in (adapters[1], None, adapters[2], None):
                await engine.swap(adapter)
                await asyncio.sleep(0.5)
            return await requests

        before = await switching(REQUESTS // 2)
        after = await switching(REQUESTS // 2)
        assert wrong == []
        await asyncio.sleep(1)  # who left is let go at the next step
        assert engine.stats().active == 0
        assert after < before * 1.15
    finally:
        engine.stop()
        plain.stop()


async def test_places_are_shared_out_fairly(
    bundle: Bundle, tokenizer: Tokenizer, prompts: list[tuple[int, ...]]
) -> None:
    """However much one device sends, another is answered as soon as a slot is free."""
    engine = Engine(bundle, tokenizer, ModelConfig(slots=2, queue=8))
    engine.start()
    ended: list[str] = []

    async def ask(client: str) -> None:
        request = GenerationRequest(prompts[5], 8, GREEDY, client=client)
        await answer(engine, request)
        ended.append(client)

    try:
        greedy = [asyncio.create_task(ask("tablet")) for _ in range(8)]
        await asyncio.sleep(0)
        polite = asyncio.create_task(ask("phone"))
        await asyncio.gather(*greedy, polite)
        assert ended.index("phone") <= 3
        request = GenerationRequest(prompts[2], 200, GREEDY, client="tablet")
        running = []
        with pytest.raises(Busy, match="this client"):
            for _ in range(12):
                running.append(engine.generate(request))
        running.append(engine.generate(GenerationRequest(prompts[5], 2, GREEDY, client="phone")))
        for generation in running:
            await generation.aclose()
    finally:
        engine.stop()
