"""Scoring a prompt: what the engine reports is what the model gives, cached, cut into pieces or not."""

from __future__ import annotations

import numpy as np

from appliance.engine.engine import Engine
from appliance.engine.offline import OfflineModel
from appliance.engine.request import GenerationRequest
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer


async def test_scores_are_the_models(engine: Engine, bundle: Bundle, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The children went down to the sea and looked for shells. " * 12)
    assert len(tokens) > 2 * 64  # more than the pieces that it is computed in
    offline = OfflineModel(bundle, threads=1, capacity=256)
    expected = offline.logprobs(tokens[:1], tokens[1:])
    for start in (1, 40, 65, 1, len(tokens) - 1):
        asked = GenerationRequest(tuple(tokens), 1, score_from=start)
        deltas = [delta async for delta in engine.generate(asked)]
        found = [token for delta in deltas for token in delta.tokens]
        assert [token.token for token in found] == tokens[start:]
        assert np.allclose([token.logprob for token in found], expected[start - 1 :], atol=1e-3)
        assert deltas[-1].finish_reason == "length" and deltas[-1].completion_tokens == 0
    assert engine.stats().generated_tokens == engine.stats().requests == 0
    await engine.ping()
    assert not engine.busy
