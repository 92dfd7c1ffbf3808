from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.sampling import Sampler, SamplingParams
from appliance.engine.stops import StopMatcher

LOGITS = np.array([1.0, 3.0, 2.0, -5.0, 0.5], np.float32)


def draws(params: SamplingParams, count: int = 4000) -> np.ndarray:
    sampler = Sampler(params)
    return np.bincount([sampler.sample(LOGITS.copy()) for _ in range(count)], minlength=5) / count


def test_temperature_zero_is_greedy() -> None:
    assert Sampler(SamplingParams(temperature=0)).sample(LOGITS.copy()) == 1


def test_sampling_follows_the_softmax() -> None:
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert np.abs(draws(SamplingParams(seed=1)) - expected).max() < 0.03


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(np.flatnonzero(draws(SamplingParams(top_k=2, seed=1)))) == {1, 2}
    assert set(np.flatnonzero(draws(SamplingParams(top_p=0.8, seed=1)))) == {1, 2}
    assert set(np.flatnonzero(draws(SamplingParams(top_p=1e-9, seed=1)))) == {1}


def test_a_wide_nucleus_in_a_large_vocabulary_is_kept_whole() -> None:
    flat = np.zeros(50_000, np.float32)
    sampler = Sampler(SamplingParams(top_p=0.99, seed=3))
    seen = {sampler.sample(flat.copy()) for _ in range(300)}
    assert len(seen) > 280


def test_tiny_temperature_does_not_overflow() -> None:
    assert Sampler(SamplingParams(temperature=1e-9, seed=0)).sample(LOGITS.copy()) == 1


def test_same_seed_same_tokens() -> None:
    one, two = (Sampler(SamplingParams(seed=9)) for _ in range(2))
    assert [one.sample(LOGITS.copy()) for _ in range(50)] == [two.sample(LOGITS.copy()) for _ in range(50)]


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
def test_penalties_push_repeats_down(penalty: dict[str, float]) -> None:
    sampler = Sampler(SamplingParams(temperature=0, **penalty))
    assert [sampler.sample(LOGITS.copy()) for _ in range(2)] == [1, 2]


def test_frequency_penalty_grows_with_the_count() -> None:
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=0.6))
    # 3.0 -> 2.4 -> 1.8 < 2.0: the third choice is the runner-up.
    assert [sampler.sample(LOGITS.copy()) for _ in range(3)] == [1, 1, 2]


@given(st.lists(st.sampled_from(["a", "b", "ab", "STOP", "ST", "OP", "S", " "]), max_size=30))
def test_stop_matcher_equals_a_search_in_the_whole(pieces: list[str]) -> None:
    matcher, shown, stopped = StopMatcher(("STOP", "ba")), "", False
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            break
    if not stopped:
        shown += matcher.flush()
    whole = "".join(pieces)
    places = [place for stop in ("STOP", "ba") if (place := whole.find(stop)) >= 0]
    assert stopped == bool(places)
    # A stop that starts later but ends in an earlier piece may win: text up to a stop is shown, never one.
    assert "STOP" not in shown and "ba" not in shown
    assert whole.startswith(shown)
    if not places:
        assert shown == whole
