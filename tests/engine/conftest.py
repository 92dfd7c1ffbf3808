"""A running engine on the real bundle, and adapters that change what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from appliance.adapters.file import Adapter, AdapterMeta
from appliance.engine.engine import Engine
from appliance.engine.request import Delta, GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig

GREEDY = SamplingParams(temperature=0)
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write a short poem about the sea.",
    "How many legs does a spider have? " * 12,  # longer than one prefill chunk
    "Explain gravity to a child in two sentences.",
    "Hi",
)


@pytest.fixture(scope="session")
def make_adapter(bundle: Bundle) -> Callable[[int], Adapter]:
    """Adapters of random weights, strong enough to change answers.

    One with `only` a kind of layer is built in a fraction of the time.
    """

    def make(seed: int, scale: float = 0.03, only: str = "") -> Adapter:
        random = np.random.default_rng(seed)
        tensors = {}
        for port in bundle.manifest.ports:
            if not port.parts[0].module.endswith(only):
                continue
            for side, shape in (("A", (port.inputs, 16)), ("B", (16, port.outputs))):
                tensors[f"{port.name}.{side}"] = (random.standard_normal(shape) * scale).astype(np.float32)
        meta = AdapterMeta(bundle.manifest.base_hash, 16, 16.0)
        return Adapter(f"random-{seed}", f"sha-{seed}", 0, meta, tensors)

    return make


@pytest.fixture
async def engine(bundle: Bundle, tokenizer: Tokenizer) -> AsyncIterator[Engine]:
    running = Engine(bundle, tokenizer, ModelConfig(slots=4, queue=64, prefill_chunk=64))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return [tuple(tokenizer.encode_chat([{"role": "user", "content": text}])) for text in QUESTIONS]


@pytest.fixture
def ask(engine: Engine, prompts: list[tuple[int, ...]]) -> Callable[..., object]:
    """`await ask(i, max_tokens)` -> (text, last delta)."""

    async def run(
        index: int, max_tokens: int = 24, sampling: SamplingParams = GREEDY, stop: tuple[str, ...] = ()
    ) -> tuple[str, Delta]:
        pieces: list[Delta] = []
        request = GenerationRequest(prompts[index], max_tokens, sampling, stop)
        async for delta in engine.generate(request):
            pieces.append(delta)
        return "".join(piece.text for piece in pieces), pieces[-1]

    return run
