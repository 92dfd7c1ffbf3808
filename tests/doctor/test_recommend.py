"""Which models fit: sizes against what is published, memory against what there is, speed and its bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.config import Config
from appliance.doctor.recommend import Yardstick, advise, expect, yardstick
from appliance.doctor.shapes import KNOWN, shape_of
from appliance.doctor.sizing import need
from appliance.hardware import Hardware
from appliance.learning.figures import Figures
from appliance.model.bundle import Bundle
from appliance.model.source import FAMILIES

GB = 10**9
SHAPES = {known.id: known.shape for known in KNOWN}
# In millions, as their publishers count them.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134.5,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361.8,
    "Qwen/Qwen2.5-0.5B-Instruct": 494.0,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1100.0,
    "meta-llama/Llama-3.2-1B-Instruct": 1235.8,
    "Qwen/Qwen2.5-1.5B-Instruct": 1543.7,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711.4,
    "Qwen/Qwen2.5-3B-Instruct": 3085.9,
    "meta-llama/Llama-3.2-3B-Instruct": 3212.7,
    "mistralai/Mistral-7B-Instruct-v0.3": 7248.0,
    "Qwen/Qwen2.5-7B-Instruct": 7615.6,
}


def machine(memory: float, bandwidth: float = 0.0) -> Hardware:
    return Hardware(int(memory), int(memory), False, 4, 4.0, 4, bandwidth)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_sizes_are_those_published(known: object) -> None:
    assert SHAPES[known.id].parameters / 1e6 == pytest.approx(PUBLISHED[known.id], rel=0.002)  # type: ignore[attr-defined]
    assert known.family in FAMILIES  # type: ignore[attr-defined]


def test_the_default_model_is_what_the_list_says(bundle: Bundle) -> None:
    here = shape_of(bundle)
    assert here == SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert here.stored == pytest.approx(bundle.manifest.files["model.onnx.data"].size, rel=0.002)
    # As measured: see docs/operate.md.
    config = Config()
    assert need(here, config.model, config.train).start == pytest.approx(363e6, rel=0.02)
    assert need(here, config.model, config.train, "ort").learn == pytest.approx(1161e6, rel=0.1)
    assert need(here, config.model, config.train, "peft").learn == pytest.approx(1562e6, rel=0.1)


def test_settings_count(bundle: Bundle) -> None:
    config, shape = Config(), shape_of(bundle)
    usual = need(shape, config.model, config.train)
    fewer = need(shape, config.model.model_copy(update={"slots": 1, "prefix_cache_mb": 0}), config.train)
    assert fewer.serve < usual.serve < usual.full
    short = need(shape, config.model.model_copy(update={"context_length": 512}), config.train)
    assert short.full == short.serve < usual.serve


def test_what_fits(bundle: Bundle) -> None:
    def fits(memory: float) -> dict[str, str]:
        return {
            advice.here or advice.id: advice.fit for advice in advise(machine(memory), Config(), [], None)
        }

    assert set(fits(0.5 * GB).values()) == {"no"}
    assert fits(2 * GB)["HuggingFaceTB/SmolLM2-135M-Instruct"] == "serves"
    assert fits(4 * GB)["HuggingFaceTB/SmolLM2-135M-Instruct"] == "learns"
    assert fits(16 * GB)["Qwen/Qwen2.5-7B-Instruct"] == "serves"
    assert set(fits(100 * GB).values()) == {"learns"}
    # The one on this box stands in the list once, under its name.
    here = advise(machine(8 * GB), Config(), [bundle], None)
    assert [advice.here for advice in here].count(bundle.name) == 1
    assert len(here) == len(KNOWN)


def test_the_largest_that_is_fast_enough_is_recommended() -> None:
    small = SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]

    def best(decode: float, memory: float = 128 * GB) -> str:
        known = Yardstick("small", small, decode, True)
        (one,) = [a for a in advise(machine(memory), Config(), [], known) if a.best]
        assert not one.remark
        return one.id

    assert best(100) == "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    assert best(1000) == "Qwen/Qwen2.5-7B-Instruct"
    assert best(5) == "HuggingFaceTB/SmolLM2-135M-Instruct"  # rather a slow one than none
    assert best(1000, 5 * GB) == "HuggingFaceTB/SmolLM2-360M-Instruct"


def test_speed_is_told_from_what_was_measured() -> None:
    small, large = SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"], SHAPES["Qwen/Qwen2.5-7B-Instruct"]
    known = Yardstick("small", small, 100.0, True)
    for shape in SHAPES.values():
        speed = expect(shape, known, 60e9)
        assert speed is not None
        assert speed.least <= speed.expected <= speed.most
    told = expect(large, known, 0)
    assert told is not None
    # All of it by the bytes would be the slowest.
    assert told.least <= 100 * small.read / large.read * 1.01
    assert expect(large, None, 0) is None
    rough = expect(large, None, 60e9)
    assert rough is not None
    assert rough.most == pytest.approx(60e9 / large.read)


def test_the_yardstick(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert yardstick([], 2, lambda one: 1.0) is None
    assert yardstick([bundle], 2) is None
    now = yardstick([bundle], 2, lambda one: 7.0)
    assert now is not None
    assert (now.decode, now.fresh) == (7.0, True)
    figures = Figures(bundle.manifest.base_hash, 0.0, 2, 2, 100.0, 50.0, 0.1, 20.0, 1.0, 5, 9)
    monkeypatch.setattr("appliance.doctor.recommend.read_figures", lambda one: figures)
    kept = yardstick([bundle], 2, lambda one: 7.0)
    assert kept is not None
    assert (kept.decode, kept.fresh) == (50.0, False)
    monkeypatch.setattr("appliance.doctor.recommend.read_figures", lambda one: replace(figures, threads=8))
    other = yardstick([bundle], 2, lambda one: 7.0)
    assert other is not None
    assert other.fresh
