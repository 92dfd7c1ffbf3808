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


def test_min_p_cuts_what_is_unlikely_beside_the_likeliest() -> None:
    # Beside the likeliest the others weigh 0.37, 0.14, 0.08 and next to nothing.
    assert set(np.flatnonzero(draws(SamplingParams(min_p=0.1, seed=1)))) == {0, 1, 2}
    assert set(np.flatnonzero(draws(SamplingParams(min_p=0.3, seed=1)))) == {1, 2}
    assert set(np.flatnonzero(draws(SamplingParams(min_p=1.0, seed=1)))) == {1}
    # It is measured after temperature, and goes with the other cuts.
    assert set(np.flatnonzero(draws(SamplingParams(min_p=0.3, temperature=2, seed=1)))) == {0, 1, 2}
    assert set(np.flatnonzero(draws(SamplingParams(min_p=0.1, top_k=4, top_p=0.85, seed=1)))) == {1, 2}


def test_repetition_penalty_counts_the_prompt_and_the_answer() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    sampler = Sampler(params, prompt=[1, 3])
    logits = LOGITS.copy()
    assert sampler.sample(logits) == 2
    assert logits.tolist() == [1.0, 1.5, 2.0, -10.0, 0.5]  # negative ones move away from zero
    logits = LOGITS.copy()
    assert sampler.sample(logits) == 1
    assert logits.tolist() == [1.0, 1.5, 1.0, -10.0, 0.5]  # the answer's token too, once however often


def test_a_repetition_penalty_of_one_changes_nothing() -> None:
    one, two = Sampler(SamplingParams(seed=3)), Sampler(SamplingParams(seed=3, repetition_penalty=1.0), [1])
    assert [one.sample(LOGITS.copy()) for _ in range(50)] == [two.sample(LOGITS.copy()) for _ in range(50)]


def test_logit_bias_forces_and_bans() -> None:
    assert Sampler(SamplingParams(temperature=0, logit_bias=((3, 100.0),))).sample(LOGITS.copy()) == 3
    assert Sampler(SamplingParams(temperature=0, logit_bias=((1, -100.0),))).sample(LOGITS.copy()) == 2
    banned = draws(SamplingParams(seed=1, logit_bias=((1, -100.0), (2, -100.0))))
    assert set(np.flatnonzero(banned)) <= {0, 3, 4}


@given(
    st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([0.1, 0.9, 1.0]),
    st.sampled_from([0.0, 0.7, 2.0]),
)
def test_only_allowed_tokens_are_chosen(
    allowed: list[bool], top_k: int, min_p: float, top_p: float, temperature: float
) -> None:
    mask = np.array(allowed)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        min_p=min_p,
        top_p=top_p,
        frequency_penalty=1,
        repetition_penalty=1.3,
        logit_bias=((0, 100.0), (1, -100.0)),
        seed=5,
    )
    sampler = Sampler(params, [1])
    assert all(allowed[sampler.sample(LOGITS.copy(), mask)] for _ in range(5))


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
