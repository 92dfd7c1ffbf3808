from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from appliance.adapters.file import Adapter
from appliance.engine.engine import Engine
from appliance.engine.offline import OfflineModel
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import Busy, ContextOverflow, InvalidRequest, Unavailable
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

Ask = Callable[..., Any]
GREEDY = SamplingParams(temperature=0)


async def test_answers_do_not_depend_on_company(ask: Ask, prompts: list[tuple[int, ...]]) -> None:
    alone = [(await ask(index, 12))[0] for index in range(len(prompts))]
    chosen = random.Random(0)
    order = [chosen.randrange(len(prompts)) for _ in range(16)]

    async def later(index: int) -> str:
        await asyncio.sleep(chosen.random())
        return str((await ask(index, 12))[0])

    together = await asyncio.gather(*(later(index) for index in order))
    assert together == [alone[index] for index in order]


async def test_sampling_with_a_seed_does_not_depend_on_company(ask: Ask) -> None:
    warm = SamplingParams(temperature=0.9, top_p=0.95, seed=11)
    alone = (await ask(1, 24, warm))[0]
    together = await asyncio.gather(*(ask(index, 24, warm if index == 1 else GREEDY) for index in range(4)))
    assert together[1][0] == alone


async def test_a_short_answer_overtakes_a_long_one(ask: Ask) -> None:
    ended: list[int] = []

    async def run(index: int, tokens: int) -> None:
        await ask(index, tokens)
        ended.append(index)

    long = asyncio.create_task(run(2, 120))
    await asyncio.sleep(0.1)
    await run(0, 3)
    await long
    assert ended == [0, 2]


async def test_requests_beyond_the_slots_wait_and_beyond_the_queue_are_refused(
    bundle: Bundle, tokenizer: Tokenizer, prompts: list[tuple[int, ...]]
) -> None:
    engine = Engine(bundle, tokenizer, ModelConfig(slots=2, queue=1))
    engine.start()
    try:
        request = GenerationRequest(prompts[5], 30, GREEDY)
        running = [engine.generate(request) for _ in range(3)]
        with pytest.raises(Busy):
            engine.generate(request)
        texts = ["".join([delta.text async for delta in answer]) for answer in running]
        assert len(set(texts)) == 1
        assert [delta async for delta in engine.generate(request)]
    finally:
        engine.stop()


async def test_cancelling_frees_the_slot_within_a_step(
    engine: Engine, prompts: list[tuple[int, ...]]
) -> None:
    answers = [engine.generate(GenerationRequest(prompts[2], 4000, GREEDY)) for _ in range(4)]
    async for _ in answers[0]:
        break
    for answer in answers:  # three of them were never looked at
        await answer.aclose()
    for _ in range(100):
        if engine.stats().active == 0:
            break
        await asyncio.sleep(0.1)
    assert engine.stats().active == 0
    assert engine.stats().generated_tokens < 400


async def test_swapping_under_way_mixes_no_weights(
    engine: Engine, ask: Ask, make_adapter: Callable[..., Adapter]
) -> None:
    adapters = {None: None, **{f"random-{seed}": make_adapter(seed, only="down_proj") for seed in (1, 2)}}
    expected: dict[tuple[int, str | None], str] = {}
    for name, adapter in adapters.items():
        await engine.swap(adapter)
        for index in range(4):
            expected[index, name] = (await ask(index, 12))[0]
    assert (
        len({tuple(expected[index, name] for index in range(4)) for name in adapters}) == 3
    )  # they do differ
    wrong, count, stop = [], 0, False

    async def client(index: int) -> None:
        nonlocal count
        while not stop:
            text, last = await ask(index, 12)
            count += 1
            if text != expected[index, last.adapter]:
                wrong.append((index, last.adapter, text))

    clients = [asyncio.create_task(client(index)) for index in range(4)]
    turn = 0
    while turn < 6 or count < 8:
        await engine.swap(list(adapters.values())[turn % 3])
        await asyncio.sleep(0.3)
        turn += 1
    stop = True
    await asyncio.gather(*clients)
    assert not wrong


async def test_swaps_do_not_leak(engine: Engine, ask: Ask, make_adapter: Callable[..., Adapter]) -> None:
    adapters = [make_adapter(seed, only="down_proj") for seed in (1, 2)]
    for adapter in adapters:
        await engine.swap(adapter)
        await ask(0, 2)
    before = psutil.Process().memory_info().rss
    for turn in range(8):
        await engine.swap(adapters[turn % 2])
        await ask(0, 2)
    assert psutil.Process().memory_info().rss < before * 1.10


async def test_a_broken_adapter_is_refused_and_the_old_one_goes_on(
    engine: Engine, ask: Ask, make_adapter: Callable[..., Adapter]
) -> None:
    good, broken = make_adapter(1), make_adapter(3)
    await engine.swap(good)
    expected = (await ask(0))[0]
    broken.tensors["lora.3.o_proj.A"][:] = float("nan")
    with pytest.raises(Unavailable, match="finite"):
        await engine.swap(broken)
    with pytest.raises(Unavailable, match="gate"):
        await engine.swap(make_adapter(2), expected=(1, 2, 3))
    assert engine.adapter == good.name
    assert (await ask(0))[0] == expected


async def test_stop_strings_end_the_answer_unseen(ask: Ask) -> None:
    text, _ = await ask(1, 40)
    word = text[5:12]
    cut, last = await ask(1, 40, stop=(word,))
    assert cut == text[: text.index(word)]
    assert last.finish_reason == "stop"


async def test_limits(engine: Engine, ask: Ask, prompts: list[tuple[int, ...]]) -> None:
    _, last = await ask(0, 5)
    assert (last.finish_reason, last.completion_tokens) == ("length", 5)
    assert last.prompt_tokens == len(prompts[0])
    with pytest.raises(InvalidRequest):
        engine.generate(GenerationRequest((), 5))
    with pytest.raises(ContextOverflow, match="8192"):
        engine.generate(GenerationRequest((5,) * 8192, 5))


async def test_an_answer_ends_where_the_context_does(bundle: Bundle, tokenizer: Tokenizer) -> None:
    engine = Engine(bundle, tokenizer, ModelConfig(slots=1, context_length=48))
    engine.start()
    try:
        prompt = tuple(tokenizer.encode("once upon a time there was " * 20))[:40]
        deltas = [delta async for delta in engine.generate(GenerationRequest(prompt, 500, GREEDY))]
        assert deltas[-1].completion_tokens <= 8
    finally:
        engine.stop()


async def test_stopping_ends_running_requests_with_an_error(
    bundle: Bundle, tokenizer: Tokenizer, prompts: list[tuple[int, ...]]
) -> None:
    engine = Engine(bundle, tokenizer, ModelConfig(slots=1))
    engine.start()
    answer = engine.generate(GenerationRequest(prompts[2], 4000, GREEDY))
    await anext(answer)
    await asyncio.to_thread(engine.stop)
    with pytest.raises(Unavailable):
        async for _ in answer:
            pass
    with pytest.raises(Unavailable):
        engine.generate(GenerationRequest(prompts[2], 5, GREEDY))


async def test_offline_scores_agree_with_serving(
    bundle: Bundle, tokenizer: Tokenizer, ask: Ask, prompts: list[tuple[int, ...]]
) -> None:
    model = OfflineModel(bundle, threads=2, capacity=256)
    together = list(model.greedy(prompts, 24, tokenizer.eos_ids))
    for number, tokens in enumerate(together):
        assert tokenizer.decode(tokens) == (await ask(number, 24))[0]
        # Alone as together.
        assert list(model.greedy([prompts[number]], 24, tokenizer.eos_ids)) == [tokens]
    tokens = together[1]
    likely = model.logprobs(prompts[1], tokens)
    unlikely = model.logprobs(prompts[1], [100 + i for i in range(len(tokens))])
    assert likely.shape == (len(tokens),)
    assert (likely <= 0).all() and likely.mean() > unlikely.mean() + 2
    split = model.perplexity(prompts[3])
    assert 1 < split < 1e4
