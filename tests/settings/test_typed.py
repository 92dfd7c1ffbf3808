from __future__ import annotations

from typing import Any, Self

import pytest
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from appliance.config import Config
from appliance.errors import InvalidSettings
from appliance.sections import LoraConfig
from appliance.settings import typed
from appliance.settings.form import Key, keys
from appliance.settings.typed import apply


def problems(changes: dict[str, Any], raw: dict[str, Any] | None = None) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        apply(raw or {}, changes)
    assert caught.value.param == next(iter(caught.value.problems))
    assert caught.value.status == 400
    return caught.value.problems


def test_texts_become_values() -> None:
    changes = {
        "lora.enabled": "false",
        "lora.auto_train_threshold": " 7 ",
        "lora.high_weight": "2.5",
        "server.log_level": "ERROR",
        "train.ort_python": "/opt/my python/bin/python ",
        "resources.quiet_hours": "22:00-07:00",
    }
    config = apply({"lora": {"medium_weight": 2.0}, "train": {"rank": 8}}, changes)
    assert config.lora == LoraConfig(
        enabled=False, auto_train_threshold=7, high_weight=2.5, medium_weight=2.0
    )
    assert config.server.log_level == "ERROR"
    assert config.train.ort_python == "/opt/my python/bin/python"
    assert config.train.rank == 8
    assert config.resources.quiet_hours == "22:00-07:00"


def test_none_is_the_default_and_what_was_read_is_left_alone() -> None:
    raw = {"train": {"rank": 8, "seed": 1}, "lora": {"oops": 1}, "servr": {"x": 1}}
    config = apply(raw, {"train.rank": None, "lora.oops": None, "servr": None, "gate.max_same": None})
    assert config == Config.model_validate({"train": {"seed": 1}})
    assert raw == {"train": {"rank": 8, "seed": 1}, "lora": {"oops": 1}, "servr": {"x": 1}}


def test_every_problem_has_its_key() -> None:
    found = problems(
        {
            "lora.auto_train_threshold": "0",
            "lora.enabled": "maybe",
            "train.rank": "many",
            "train.epochs": "",
            "train.layers": "0",
            "train.learning_rate": "1e999",
            "gate.max_forgotten": "1",
            "model.slots": "65",
            "model.top_p": "0,5",
            "server.log_level": "LOUD",
            "server.bind": "127.0.0.1:65536",
            "resources.quiet_hours": "at night",
            "train.ort_python": "\ud800",
            "lora.auto_train_treshold": "7",
            "servr.bind": "x",
        },
        {"train": {"seed": "x"}},
    )
    assert found == {
        "lora.auto_train_threshold": "This must be at least 1.",
        "lora.enabled": "This must be true or false.",
        "train.rank": "This must be a whole number.",
        "train.epochs": "This must be a whole number.",
        "train.layers": "This must be more than 0.",
        "train.learning_rate": "This must be a number.",
        "gate.max_forgotten": "This must be less than 1.",
        "model.slots": "This must be at most 64.",
        "model.top_p": "This must be a number.",
        "server.log_level": "This must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'.",
        "server.bind": "The port should be at most 65535.",
        "resources.quiet_hours": "This must look like 22:00-07:00.",
        "train.ort_python": "This must be one line of printable characters.",
        "lora.auto_train_treshold": "Unknown key; did you mean `auto_train_threshold`?",
        "servr": "Unknown key; did you mean `server`?",
        "train.seed": "This must be a whole number.",
    }


@pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)
def test_nonsense_is_refused_in_plain_words(key: Key) -> None:
    if key.kind == "text" and not key.pattern:
        return
    (problem,) = problems({key.name: "some nonsense " * 4}).values()
    assert problem.startswith("This must ")


def test_a_section_that_is_no_table() -> None:
    assert problems({"lora.enabled": "false"}, {"lora": 3}) == {"lora": "This must be a table."}
    assert apply({"lora": 3}, {"lora": None}) == Config()


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\u202eb", "\ud800"], ids=ascii)
def test_a_text_is_one_line_that_can_be_seen(text: str) -> None:
    assert list(problems({"train.ort_python": text})) == ["train.ort_python"]


def test_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key("server.bind", "list", [], "", keys()["server.bind"].taken)
    monkeypatch.setitem(keys(), "server.bind", key)
    assert typed._plain("server.bind", " a \n\nb c\r\n") == ["a", "b c"]


class Ordered(LoraConfig):
    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.medium_weight > self.high_weight:
            raise PydanticCustomError("order", "More than high", {"key": "lora.medium_weight"})
        if self.normal_weight > self.high_weight:
            raise ValueError("the weights are out of order")
        return self


class WithRules(Config):
    lora: Ordered = Ordered()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.default_max_tokens > self.model.slots * 1000:
            raise PydanticCustomError("fit", "Too much for the slots")
        return self


def test_rules_over_several_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed, "Config", WithRules)
    assert problems({"lora.medium_weight": "11"}) == {"lora.medium_weight": "More than high."}
    assert problems({"lora.normal_weight": "11"}) == {"lora": "The weights are out of order."}
    assert problems({"model.default_max_tokens": "9000"}) == {"": "Too much for the slots."}
    # Both fine by themselves, and fine together: rules see all the changes at once.
    assert apply({}, {"lora.medium_weight": "11", "lora.high_weight": "12"}).lora.high_weight == 12
