"""What a run is given: never a held-out correction, always the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from appliance.learning.batch import Frozen, choose_heldout, freeze_batch, read_frozen, trainable

from .box import example

KINDS = st.sampled_from(["automatic", "praise", "correction", "critique"])


@given(st.lists(KINDS, max_size=60), st.floats(0, 0.5), st.integers(0, 5))
def test_what_people_taught_is_never_held_out(kinds: list[str], share: float, seed: int) -> None:
    examples = [example(number, kind) for number, kind in enumerate(kinds)]
    chosen = choose_heldout(examples, share, seed)
    assert chosen == choose_heldout(list(reversed(examples)), share, seed)
    assert all(one.kind in ("automatic", "praise") for one in examples if one.id in chosen)
    assert len(chosen) <= max(0, len(examples) - 1)
    if kinds and set(kinds) == {"automatic"}:
        assert len(chosen) == min(round(share * len(kinds)), len(kinds) - 1)


def test_another_seed_holds_out_others() -> None:
    examples = [example(number) for number in range(100)]
    assert choose_heldout(examples, 0.1, 0) != choose_heldout(examples, 0.1, 1)


def test_the_file_has_one_object_a_line(tmp_path: Path) -> None:
    held = [example(number) for number in range(10)] + [
        example(10, "correction", weight=10.0),
        example(11, "critique", finish_reason="length"),
    ]
    batch = freeze_batch(tmp_path / "examples.jsonl", held, [example(99, "correction")], 0.25, 0)
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert (batch.train, batch.heldout, batch.replay) == (9, 3, 1)
    assert [line["split"] for line in lines].count("heldout") == 3
    assert lines[10] == {
        "id": "ex_010",
        "messages": [{"role": "user", "content": "q10"}],
        "target": "learn 10",
        "rejected": "said 10",
        "weight": 10.0,
        "split": "train",
        "finish_reason": "stop",
        "kind": "correction",
    }
    assert lines[11]["finish_reason"] == "length"
    assert lines[12]["split"] == "replay"
    assert lines[0]["rejected"] is None


def test_the_file_is_read_in_pages(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    assert read_frozen(file) == []
    freeze_batch(file, [example(number) for number in range(3)], [example(9)], 0.4, seed=0)
    found = read_frozen(file)
    assert [item.id for item in found] == ["ex_000", "ex_001", "ex_002", "ex_009"]
    assert [item.split for item in found].count("heldout") == 1
    assert found[-1] == Frozen("ex_009", "replay")
    assert read_frozen(file, 2, 1) == found[1:3]
    assert read_frozen(file, 2, 4) == []
    file.write_text(f'nonsense\n[]\n{{"id": "ex_1"}}\n{file.read_text()}')
    assert read_frozen(file) == found


def test_an_example_without_a_target_is_not_trainable() -> None:
    assert trainable(example(0))
    assert not trainable(example(0, target=None))
    assert not trainable(example(0, target=""))
    assert not trainable(example(0, messages=[]))
