"""The prefix cache: what it gives is what computing would give, to the bit, and never other weights'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from appliance.adapters.file import Adapter
from appliance.engine.cache import KVCache
from appliance.engine.engine import Engine
from appliance.engine.prefixes import BLOCK, PrefixCache
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

GREEDY = SamplingParams(temperature=0)
SYSTEM = "You are the helper of a small house by the sea. " * 14


@asynccontextmanager
async def running(bundle: Bundle, tokenizer: Tokenizer, **model: int | bool) -> AsyncIterator[Engine]:
    engine = Engine(bundle, tokenizer, ModelConfig(**{"slots": 4, "context_length": 1024, **model}))
    engine.start()
    yield engine
    await asyncio.to_thread(engine.stop)


async def ask(
    engine: Engine, prompt: tuple[int, ...], tokens: int = 16, sampling: SamplingParams = GREEDY
) -> tuple[str, Delta]:
    deltas = [delta async for delta in engine.generate(GenerationRequest(prompt, tokens, sampling))]
    return "".join(delta.text for delta in deltas), deltas[-1]


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Questions after one long system prompt."""
    system = {"role": "system", "content": SYSTEM}
    questions = ["Who are you?", "Name three colours.", "What is the sea like in winter?", "Hi", "What now?"]
    return [
        tuple(tokenizer.encode_chat([system, {"role": "user", "content": question}]))
        for question in questions
    ]


async def test_hits_equal_cold_results(
    bundle: Bundle, tokenizer: Tokenizer, prompts: list[tuple[int, ...]]
) -> None:
    warm = SamplingParams(temperature=1.0, seed=3)
    async with running(bundle, tokenizer, prefix_cache_mb=0) as engine:
        cold = [await ask(engine, prompt) for prompt in prompts]
        sampled = await ask(engine, prompts[1], sampling=warm)
        assert engine.stats().cached_tokens == 0
    async with running(bundle, tokenizer) as engine:
        first = await ask(engine, prompts[0])
        assert first[1].cached_tokens == 0
        for prompt, expected in zip(prompts[1:], cold[1:], strict=True):
            text, last = await ask(engine, prompt)
            assert text == expected[0]
            assert last.cached_tokens >= 160 - BLOCK
        assert (await ask(engine, prompts[1], sampling=warm))[0] == sampled[0]
        # A prompt asked again is known but for its last piece.
        text, last = await ask(engine, prompts[0])
        assert text == first[0] == cold[0][0]
        assert last.cached_tokens >= len(prompts[0]) - BLOCK - 1


async def test_a_conversation_goes_on_from_its_last_answer(bundle: Bundle, tokenizer: Tokenizer) -> None:
    async with running(bundle, tokenizer) as engine, running(bundle, tokenizer, prefix_cache_mb=0) as plain:
        messages = [{"role": "user", "content": "Tell me about the moon."}]
        for follow in ("And about the sun?", "Which one is larger?"):
            prompt = tuple(tokenizer.encode_chat(messages))
            text, last = await ask(engine, prompt, 70)
            assert text == (await ask(plain, prompt, 70))[0]
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": follow}]
        assert last.cached_tokens > 80  # the first answer among them, which no prompt had computed


async def test_other_weights_find_nothing_and_come_back_to_their_own(
    bundle: Bundle,
    tokenizer: Tokenizer,
    prompts: list[tuple[int, ...]],
    make_adapter: Callable[[int], Adapter],
) -> None:
    async with running(bundle, tokenizer, extra_adapters=2) as engine:
        one, two = [await engine.prepare(make_adapter(seed)) for seed in (1, 2)]
        texts = {}
        for weights in (None, one, two, None, one, two):
            request = GenerationRequest(prompts[1], 12, GREEDY)
            deltas = [delta async for delta in engine.generate(request, weights)]
            text = "".join(delta.text for delta in deltas)
            name = deltas[0].adapter
            assert (deltas[0].cached_tokens > 0) == (name in texts)
            assert texts.setdefault(name, text) == text
        assert len(set(texts.values())) == 3


async def test_who_begins_alike_at_once_computes_it_once(
    bundle: Bundle, tokenizer: Tokenizer, prompts: list[tuple[int, ...]]
) -> None:
    async with running(bundle, tokenizer) as engine:
        answers = await asyncio.gather(*(ask(engine, prompts[0], 8) for _ in range(4)))
        assert len({text for text, _ in answers}) == 1
        assert engine.stats().prompt_tokens < len(prompts[0]) + 3 * (2 * BLOCK)


def test_it_stays_within_its_memory_and_forgets_the_oldest(bundle: Bundle) -> None:
    cache = KVCache(bundle.manifest, 1, 256)
    for layer, buffer in enumerate(cache.buffers):
        buffer[:] = np.arange(256, dtype=np.float32)[None, None, :, None] + 1000 * layer
    block = 4 * len(cache.buffers) * bundle.manifest.kv_heads * BLOCK * bundle.manifest.head_dim
    prefixes = PrefixCache(cache, 3 * block + 1)
    keys = [("base", 0, tuple(range(start, start + BLOCK))) for start in range(0, 5 * BLOCK, BLOCK)]
    for at, key in enumerate(keys[:3]):
        prefixes.keep(0, at * BLOCK, key)
    for buffer in cache.buffers:
        buffer[:] = -1
    assert prefixes.restore(0, 64, keys[0]) is not None  # used: now the newest
    assert all(
        (buffer[0, :, 64 : 64 + BLOCK] == np.arange(BLOCK)[None, :, None] + 1000 * layer).all()
        for layer, buffer in enumerate(cache.buffers)
    )
    prefixes.keep(0, 96, keys[3])
    assert prefixes.nbytes <= 3 * block
    assert prefixes.restore(0, 0, keys[1]) is None
    assert prefixes.restore(0, 0, keys[0]) is not None
    assert prefixes.key("base", 0, list(range(10)), 0) is None
