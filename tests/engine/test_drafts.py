"""Drafting changes how fast an answer comes, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from appliance.engine.drafts import LONGEST, Drafter
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

LIST = "apples, pears, plums, cherries, quinces, figs, medlars, grapes, currants, walnuts"
QUOTES = (
    f"Repeat this list word by word: {LIST}. {LIST}. {LIST}.",
    "Repeat after me: the cat sat on the mat. the cat sat on the mat. the cat sat on the mat.",
    "Name three colours.",
)


async def answers(
    bundle: Bundle, tokenizer: Tokenizer, sampling: SamplingParams, *, drafts: bool, together: bool
) -> tuple[list[str], Engine]:
    engine = Engine(
        bundle, tokenizer, ModelConfig(slots=4, context_length=512, prefix_cache_mb=0, drafts=drafts)
    )
    engine.start()

    async def ask(question: str) -> str:
        prompt = tuple(tokenizer.encode_chat([{"role": "user", "content": question}]))
        request = GenerationRequest(prompt, 60, sampling)
        return "".join([delta.text async for delta in engine.generate(request)])

    try:
        if together:
            return list(await asyncio.gather(*(ask(question) for question in QUOTES))), engine
        return [await ask(question) for question in QUOTES], engine
    finally:
        await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(temperature=0), SamplingParams(temperature=0.8, seed=5, frequency_penalty=0.1)],
    ids=["greedy", "sampled"],
)
async def test_answers_are_the_same_with_drafts_and_without(
    bundle: Bundle, tokenizer: Tokenizer, sampling: SamplingParams
) -> None:
    plain, engine = await answers(bundle, tokenizer, sampling, drafts=False, together=False)
    assert engine.stats().drafted_tokens == 0
    for together in (False, True):
        drafted, engine = await answers(bundle, tokenizer, sampling, drafts=True, together=together)
        assert drafted == plain
        stats = engine.stats()
        assert stats.drafted_tokens > 0
        if sampling.temperature == 0:
            assert stats.accepted_tokens > 4


def test_it_goes_on_as_it_went_on_before() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3]
    drafter = Drafter(tokens)
    assert drafter.draft(100) == [4, 5, 6, 7, 8, 9, 10][:LONGEST]
    assert drafter.draft(2) == [4, 5]
    assert drafter.draft(0) == []
    tokens += [4, 99]
    assert drafter.draft(5) == []
    tokens += [1, 2, 3]
    assert drafter.draft(2) == [4, 99], "the last time counts"


def test_it_rests_when_it_does_not_pay() -> None:
    tokens = [1, 2, 3, 4] * 8
    drafter = Drafter(tokens)
    tries = 0
    for number in range(200):
        drafted = drafter.draft(4)
        tries += bool(drafted)
        drafter.learn(len(drafted), 0)
        tokens.append(1 + number % 4)
    assert 5 < tries < 30


def test_short_texts_have_no_drafts() -> None:
    assert Drafter([]).draft(4) == []
    assert Drafter([1, 2, 3]).draft(4) == []
