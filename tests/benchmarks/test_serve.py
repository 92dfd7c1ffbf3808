"""The arithmetic of the serving benchmark; its servers are run by hand (`benchmarks/serve.py`)."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from load import STORY, Answer, LoadError, Prompts, percentile
from report import LLAMA, summarise, table
from rounds import Sample, plan
from rows import ROWS

from appliance.model.tokenizer import Tokenizer


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([5.0], 0.99) == 5.0
    with pytest.raises(LoadError):
        percentile([], 0.5)


def test_an_answer_counts_pieces_of_text_and_the_servers_tokens() -> None:
    answer = Answer(sent=1.0)
    answer.lines = [
        (1.5, line(choices=[{"delta": {"role": "assistant", "content": ""}}])),
        (2.0, line(choices=[{"delta": {"content": "Hi"}}])),
        (2.25, line(choices=[{"delta": {"content": " you"}}])),
    ]
    assert answer.first == 1.0
    answer.lines += [
        (3.0, line(choices=[{"text": " two"}])),
        (3.0, line(choices=[{"text": "", "finish_reason": "length"}])),
        (3.1, line(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5})),
    ]
    assert answer.arrivals == [2.0, 2.25, 3.0]
    assert answer.decode == 4.0
    assert answer.gaps() == [0.25, 0.75]
    assert answer.gaps(2.5, 2.6) == [0.75]
    assert answer.gaps(3.0, math.inf) == []


def test_an_error_in_the_stream_is_not_a_measurement() -> None:
    answer = Answer(lines=[(1.0, line(error={"message": "no"}))])
    with pytest.raises(LoadError, match="no"):
        _ = answer.arrivals


def test_prompts_have_the_length_asked_for_and_a_new_beginning(tokenizer: Tokenizer) -> None:
    prompts = Prompts(lambda text: len(tokenizer.encode_prompt(text)))
    stories = [prompts.story(tokens) for tokens in (40, 128, 512)]
    assert [len(tokenizer.encode_prompt(story)) for story in stories] == [40, 128, 512]
    assert all(story.endswith(STORY) for story in stories)
    assert len({prompts.text(64)[:40] for _ in range(20)}) == 20


def test_everyone_has_every_row_once_and_the_first_place_goes_round() -> None:
    rows = list(ROWS.values())
    for turn in range(3):
        order = [(row.name, name) for row, name in plan(rows, ["a", "b", "c"], turn)]
        assert sorted(order) == sorted((row.name, name) for row in rows for name in "abc")
        firsts = [name for _, name in order[::3]]
        assert firsts[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]][turn]


def test_the_table_has_medians_and_ratios() -> None:
    samples = [Sample(turn, "shammah", "x, ms", value) for turn, value in enumerate((30.0, 10.0, 20.0))]
    samples += [Sample(1, LLAMA, "x, ms", 40.0), Sample(1, LLAMA, "y, ms", 1.0)]
    medians = summarise(samples)
    assert medians == {"x, ms": {"shammah": 20.0, LLAMA: 40.0}, "y, ms": {LLAMA: 1.0}}
    text = table(medians, ["shammah", LLAMA])
    assert "20.0 (0.50x)" in text
    assert text.splitlines()[2].split()[-2:] == ["-", "1.00"]
