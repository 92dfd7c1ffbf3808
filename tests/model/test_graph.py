"""The served graph computes what the checkpoint computes, adapter included, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from appliance.adapters.file import Adapter, AdapterMeta
from appliance.engine.cache import KVCache
from appliance.engine.session import Session
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.model.checkpoint import load_checkpoint
from appliance.model.importer import import_model
from appliance.model.tokenizer import Tokenizer

TOKENS = [5, 77, 130, 9, 260, 33, 80, 41, 199, 12, 61, 3]


def torch_model(bundle: Bundle) -> PreTrainedModel:
    """The family's own model class with the weights that are served."""
    config, weights = load_checkpoint(bundle)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    model.tie_weights()
    return model


def torch_logits(model: PreTrainedModel, tokens: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


def served(bundle: Bundle, tokens: list[int], adapter: Adapter | None = None) -> NDArray[np.float32]:
    session = Session(bundle, adapter, KVCache(bundle.manifest, 1, 64), threads=1)
    return step(session, tokens, 0, list(range(len(tokens))))


def step(session: Session, tokens: list[int], at: int, wanted: list[int]) -> NDArray[np.float32]:
    lengths, counts = np.array([at], np.int32), np.array([len(tokens)], np.int32)
    return session.step(np.array(tokens, np.int64), 0, lengths, counts, np.array(wanted, np.int64))


def kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, other))
    return float((a.exp() * (a - b)).sum(-1).mean())


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral"])
def any_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp(request.param)
    return import_model(str(make_checkpoint(path / "checkpoint", request.param)), Home(path / "home"))


def test_weights_read_back_give_what_is_served(any_bundle: Bundle) -> None:
    reference = torch_logits(torch_model(any_bundle), TOKENS)
    logits = served(any_bundle, TOKENS)
    assert reference.std() > 0.1
    # What is left is the 8-bit rounding of activations inside the runtime's products.
    assert kl(reference, logits) < 1e-3
    assert np.corrcoef(reference.ravel(), logits.ravel())[0, 1] > 0.999


def test_rounding_is_small(any_bundle: Bundle) -> None:
    original = AutoModelForCausalLM.from_pretrained(any_bundle.manifest.source, dtype=torch.float32)
    state = original.state_dict()
    _, weights = load_checkpoint(any_bundle)
    for name, value in weights.items():
        exact = state[name].numpy()
        assert value.shape == exact.shape
        assert np.abs(value - exact).max() <= np.abs(exact).max() / 127 / 2 * 1.01, name


def test_an_adapter_does_in_the_graph_what_it_does_in_the_weights(any_bundle: Bundle) -> None:
    random = np.random.default_rng(3)
    model = torch_model(any_bundle)
    modules = dict(model.named_modules())
    tensors = {}
    for port in any_bundle.manifest.ports:
        a = random.standard_normal((port.inputs, 3)).astype(np.float32) * 0.2
        b = random.standard_normal((3, port.outputs)).astype(np.float32) * 0.2
        tensors |= {f"{port.name}.A": a, f"{port.name}.B": b}
        change, start = (a @ b).T, 0
        for part in port.parts:
            modules[part.module].weight.data += torch.from_numpy(change[start : start + part.out].copy())
            start += part.out
    adapter = Adapter("x", "x", 0, AdapterMeta(any_bundle.manifest.base_hash, 3, 3.0), tensors)
    reference = torch_logits(model, TOKENS)
    base, changed = served(any_bundle, TOKENS), served(any_bundle, TOKENS, adapter)
    assert kl(reference, changed) < 2e-3
    assert kl(reference, base) > 20 * kl(reference, changed)


def test_one_token_at_a_time_equals_all_at_once(any_bundle: Bundle) -> None:
    session = Session(any_bundle, None, KVCache(any_bundle.manifest, 1, 64), threads=1)
    steps = [step(session, [token], at, [0]) for at, token in enumerate(TOKENS)]
    assert same(any_bundle, served(any_bundle, TOKENS), np.concatenate(steps))


def same(bundle: Bundle, one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Equal to the bit; where rows do not begin on a vector's border, the norm's sums round by the place."""
    if bundle.manifest.hidden % 16 == 0:
        return np.array_equal(one, other)
    return kl(one, other) < 1e-6


def test_rows_of_any_lengths_together_equal_each_alone(any_bundle: Bundle) -> None:
    """To the bit: on this rest the prefix cache, drafting, and answers that do not depend on company."""
    random = np.random.default_rng(1)
    session = Session(any_bundle, None, KVCache(any_bundle.manifest, 5, 64), threads=2)
    lengths, queues = np.zeros(5, np.int32), [TOKENS, TOKENS[:7], [], TOKENS[::-1], TOKENS[3:]]
    got: list[list[NDArray[np.float32]]] = [[] for _ in queues]
    while any(queues):
        counts = np.array([min(random.integers(0, 4), len(queue)) for queue in queues], np.int32)
        if not counts.any():
            continue
        pieces = [queue[:count] for queue, count in zip(queues, counts, strict=True)]
        tokens = np.array([token for piece in pieces for token in piece], np.int64)
        logits = session.step(tokens, 0, lengths, counts, np.arange(len(tokens)))
        for row, part in enumerate(np.split(logits, np.cumsum(counts)[:-1])):
            got[row].append(part)
        lengths = lengths + counts
        queues = [queue[count:] for queue, count in zip(queues, counts, strict=True)]
    for tokens_of, parts in zip([TOKENS, TOKENS[:7], [], TOKENS[::-1], TOKENS[3:]], got, strict=True):
        if tokens_of:
            assert same(any_bundle, np.concatenate(parts), served(any_bundle, tokens_of))


def test_no_logits_wanted(any_bundle: Bundle) -> None:
    session = Session(any_bundle, None, KVCache(any_bundle.manifest, 1, 64), threads=1)
    none = step(session, TOKENS, 0, [])
    assert none.shape == (0, any_bundle.manifest.vocab_size)


@pytest.mark.slow
def test_the_default_models_weights_read_back(bundle: Bundle, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The sea was calm, and nobody on board had slept for two days.")
    reference = torch_logits(torch_model(bundle), tokens)
    logits = served(bundle, tokens)
    assert kl(reference, logits) < 0.01
    assert (reference.argmax(-1) == logits.argmax(-1)).mean() > 0.9
