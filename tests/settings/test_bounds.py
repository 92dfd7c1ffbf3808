"""No number of the settings is senselessly small or large, and a box that has such a one comes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemons import StartDaemon

from appliance.config import Config, load_to_serve, parse_config
from appliance.errors import ConfigError, InvalidSettings
from appliance.settings.form import Key, keys
from appliance.settings.typed import apply

NUMBERS = [key for key in keys().values() if key.kind in ("whole", "number")]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
def test_every_number_has_bounds(key: Key) -> None:
    assert key.least is not None
    assert key.most is not None
    assert key.most <= 2**31
    for beyond in (key.least - 1, key.most * 2 + 1, "1e300", "-1e300"):
        with pytest.raises(InvalidSettings) as caught:
            apply(
                {},
                {
                    key.name: str(
                        int(beyond)
                        if key.kind == "whole" and beyond != "1e300" and beyond != "-1e300"
                        else beyond
                    )
                },
            )
        (problem,) = caught.value.problems.values()
        assert problem.startswith("This must be"), problem
        assert "Input" not in problem


@pytest.mark.parametrize(
    "name",
    [
        *("console.session_hours", "lora.batch_timeout_minutes", "train.time_limit_minutes"),
        *("gate.canary_minutes", "gate.probation_minutes", "resources.retry_minutes", "backup.every_hours"),
        *("storage.audit_days", "storage.answers_days", "resources.max_load_per_core", "lora.high_weight"),
        *("resources.max_temperature_c", "train.alpha"),
    ],
)
def test_next_to_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        apply({}, {name: "0.004"})
    assert "at least" in caught.value.problems[name]


def test_zero_keeps_its_meaning() -> None:
    for name in (
        "backup.every_hours",
        "storage.audit_days",
        "storage.answers_days",
        "gate.probation_minutes",
    ):
        apply({}, {name: "0"})


@pytest.mark.parametrize("text", ["session_hours = 'x'", "session_hours = [1]", "name = 3"])
def test_a_broken_file_is_told_in_plain_words(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[console]\n{text}")
    (problem,) = caught.value.problems
    assert problem.startswith("config.toml line 2: console.")
    assert "this must be" in problem
    assert "Input" not in problem


def test_a_number_out_of_bounds_loses_no_other_setting(tmp_path: Path) -> None:
    file, good = tmp_path / "config.toml", tmp_path / "good.toml"
    file.write_text(
        "[server]\nbind = '0.0.0.0:9000'\n[console]\nsession_hours = 0.004\n[backup]\nevery_hours = 0.001\n"
        "[model]\nslots = 500\n[storage]\naudit_days = 1e9\n"
    )
    loaded = load_to_serve(file, good)
    config = loaded.config
    assert config.server.bind == "0.0.0.0:9000"
    assert (config.console.session_hours, config.backup.every_hours) == (0.25, 0.25)
    assert (config.model.slots, config.storage.audit_days) == (64, 36_500)
    assert [problem.partition(": ")[0] for problem in loaded.problems] == [
        f"config.toml line {line}" for line in (4, 6, 8, 10)
    ]
    assert "nearest values" in loaded.instead
    # With anything else wrong, the file is not half believed.
    file.write_text("[server]\nbind = 3\n[console]\nsession_hours = 0.004\n")
    assert load_to_serve(file, good).config == Config()


@pytest.mark.slow
def test_a_box_with_such_a_number_comes_up_and_says_so(start_daemon: StartDaemon) -> None:
    box = start_daemon("[lora]\nenabled = false\n[console]\nname = 'Old box'\nsession_hours = 0.004\n")
    page = box.get("/").text
    assert "Old box" in page
    assert "console.session_hours: this must be at least 0.25 (got 0.004)" in page
    assert "the nearest values that are allowed" in box.log
