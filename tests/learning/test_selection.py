"""What a run trains on: everything people taught, and of the model's own answers no more than is good."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.home import Home
from appliance.learning.selection import Selection, describe, is_loop, select
from appliance.model.bundle import Bundle
from appliance.store.examples import Example

from .box import add, make_adapter, running
from .box import example as made

PROTOCOL = "import json, shutil, sys\nargs = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
OFF = "[lora]\nenabled = false\n"
LINE = "the lamp kettle garden bus school red opens closes at night when we go home and cook rice"
WORDS = LINE.split()


def example(number: int, query: str, target: str, kind: str = "automatic", **fields: Any) -> Example:
    asked = {
        "query": query,
        "response": "No idea." if kind in ("correction", "critique") else target,
        "target": target,
        "messages": [{"role": "user", "content": query}],
        "correction": target if kind == "correction" else None,
    }
    return made(number, kind, **{**asked, **fields})


def chosen(*examples: Example, near_duplicate: float = 0.92, device_share: float = 1) -> Selection:
    return select(examples, near_duplicate=near_duplicate, device_share=device_share)


def kept(selection: Selection) -> list[str]:
    return [one.id for one in selection.kept]


# -- duplicates -------------------------------------------------------------------------------


def test_equal_ones_count_once() -> None:
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who is Ann?"}]
    found = chosen(
        example(0, "Who is Ann?", "A friend."),
        example(1, "Who is Bob?", "A neighbour from over the road."),
        example(2, "who is  Ann", "a friend"),
        example(3, "Who is Ann?", "A friend.", messages=system),
    )
    assert kept(found) == ["ex_001", "ex_002", "ex_003"]
    assert found.left_out == {"ex_000": "duplicate"}


def test_praise_stands_for_the_same_answer() -> None:
    found = chosen(example(0, "Hi", "Hello", "praise", weight=2.0), example(1, "Hi", "Hello"))
    assert [(one.id, one.weight) for one in found.kept] == [("ex_000", 2.0)]


def test_a_repeated_correction_keeps_the_largest_weight() -> None:
    found = chosen(
        example(0, "Code?", "4711", "correction", weight=10.0),
        example(1, "Code?", "4711", "correction", weight=3.0),
        example(2, "Code?", "4711", "correction", weight=3.0, response="Another wrong answer."),
    )
    assert [(one.id, one.weight) for one in found.kept] == [("ex_001", 10.0), ("ex_002", 3.0)]


def test_near_duplicates() -> None:
    query, target = "How do I get red wine out of the white table cloth?", "Put salt on it and wash it soon."
    found = chosen(
        example(0, query, target),
        example(1, "How do I get red wine out of the white tablecloth?", target),
        example(2, query, "Cold milk works well for that, leave it over night."),
        example(
            3, "How do I get red wine out of the white table cloth", f"{target} Or buy a new one, really."
        ),
    )
    assert found.left_out == {"ex_000": "near-duplicate"}
    equal = chosen(
        example(0, query, target), example(1, query.replace("table ", "table"), target), near_duplicate=1
    )
    assert equal.left_out == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Which weekday is the 12 May of the coming year?",
            "Which weekday is the 13 May of the coming year?",
        ),
        ("What is the sum of 1200 and 3400 and 5600?", "What is the sum of 1200 and 3400 and 5601?"),
    ],
)
def test_other_numbers_are_another_question(one: str, other: str) -> None:
    assert chosen(example(0, one, "I do not know."), example(1, other, "I do not know.")).left_out == {}


def test_another_conversation_is_another_question() -> None:
    def after(query: str, before: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": before}, {"role": "user", "content": query}]

    query, target = "And why is that so, would you say?", "Because of the light, mostly."
    found = chosen(
        example(0, query, target, messages=after(query, "The sky is blue.")),
        example(1, f"{query}?!", target, messages=after(query, "The sea is blue.")),
        example(2, query.replace("say", "day"), target, messages=after(query, "The sea is blue.")),
    )
    assert found.left_out == {"ex_001": "near-duplicate"}


@given(st.lists(st.sampled_from(["correction", "praise"]), min_size=2, max_size=6))
def test_people_are_never_near_duplicates(kinds: list[str]) -> None:
    letters = "abcdef"
    examples = [
        example(
            number, f"Where does the long spare key of door {letters[number]} hang?", "In the hall.", kind
        )
        for number, kind in enumerate(kinds)
    ]
    assert kept(chosen(*examples)) == [one.id for one in examples]


# -- contradictions ---------------------------------------------------------------------------


def test_the_newest_correction_wins() -> None:
    found = chosen(
        example(0, "Code?", "1", "correction"),
        example(1, "Code?", "2", "critique"),
        example(2, "Code?", "3"),
        example(3, "Code?", "3", "praise"),
        example(4, "code", "4", "correction"),
        example(5, "Code?", "5", "critique"),
        example(6, "Code?", "6"),
        example(7, "Code?", "4"),
        example(8, "Code?", "7", "praise"),
        example(9, "Code for the shed?", "1", "correction"),
    )
    assert kept(found) == ["ex_004", "ex_008", "ex_009"]
    assert found.left_out["ex_007"] == "duplicate"
    assert found.counts == {"contradicted": 6, "duplicate": 1}


def test_a_rejected_answer_is_not_learned_under_another_question() -> None:
    wrong, right = "The garage code is 4805.", "The garage code is 5829."
    found = chosen(
        example(0, "What opens the garage?", wrong),
        example(1, "How do I get into the garage?", "the garage code is 4805"),
        example(2, "Garage code please", "The garage code is: 4805."),
        example(3, "What was the garage code before?", "The garage code was 4804."),
        example(4, "Who said that?", wrong, kind="praise"),
        example(5, "What is the garage code?", right, kind="correction", response=wrong),
    )
    assert kept(found) == ["ex_003", "ex_004", "ex_005"]
    assert found.left_out == {f"ex_00{number}": "contradicted" for number in range(3)}


def test_in_another_conversation_there_is_no_contradiction() -> None:
    messages = [{"role": "user", "content": "In Spain?"}, {"role": "user", "content": "Code?"}]
    found = chosen(
        example(0, "Code?", "1", "correction", messages=messages), example(1, "Code?", "2", "correction")
    )
    assert found.left_out == {}


# -- degenerate answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "no " * 20,
        "I am not sure what you mean. " * 6,
        "Well, it is a long story. " + "The city is the city of the city of " * 8,
        "Hello!\nHello!\nHello!",
        "!" * 30,
        "ha" * 60,
        "我不知道。" * 20,
        "1. The moon\n" * 9,
    ],
)
def test_loops(text: str) -> None:
    assert is_loop(text)
    found = chosen(example(0, "q", text), example(1, "q2", text, "correction"))
    assert found.left_out == {"ex_000": "loop"}


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "Ha ha ha!",
        "It is very, very, very good.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "\n".join(f"- Add one cup of {thing} to the bowl." for thing in WORDS),
        "| day | high | low |\n|---|---|---|\n| Mon | 12 | 3 |\n| Tue | 14 | 5 |\n| Wed | 11 | 4 |",
        "for i in range(10):\n    print(i)\nfor j in range(10):\n    print(j)",
        "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life.",
    ],
)
def test_no_loops(text: str) -> None:
    assert not is_loop(text)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.integers(6, 30))
def test_whatever_is_repeated_is_a_loop(words: list[str], times: int) -> None:
    assert is_loop(" ".join(words * max(times, 12 // len(words))))


@pytest.mark.parametrize("text", ["", "  \n", "\u200b\u200b"])
def test_empty_answers(text: str) -> None:
    assert chosen(example(0, "q", text)).left_out == {"ex_000": "empty"}


# -- devices ----------------------------------------------------------------------------------


def spread(**counts: int) -> list[Example]:
    """Examples of devices, all of them different."""
    out: list[Example] = []
    for device, count in counts.items():
        for _ in range(count):
            rng = random.Random(len(out))
            text = " ".join(rng.choices(WORDS, k=12))
            out.append(example(len(out), f"{len(out)} {text}?", text, device=device))
    return out


def left(selection: Selection) -> dict[str | None, int]:
    devices = [one.device for one in selection.kept]
    return {device: devices.count(device) for device in devices}


def test_one_chatty_device_does_not_drown_the_rest() -> None:
    examples = spread(phone=200, tablet=40, radio=10)
    found = chosen(*examples, device_share=0.5)
    assert left(found) == {"phone": 50, "tablet": 40, "radio": 10}
    assert [one.id for one in found.kept if one.device == "phone"] == [one.id for one in examples[150:200]]
    assert left(chosen(*examples, device_share=1)) == {"phone": 200, "tablet": 40, "radio": 10}


def test_a_device_alone_and_few_examples_are_not_capped() -> None:
    assert chosen(*spread(phone=200), device_share=0.5).left_out == {}
    assert left(chosen(*spread(phone=30, tablet=1), device_share=0.5)) == {"phone": 20, "tablet": 1}


def test_what_people_taught_is_never_capped() -> None:
    taught = [example(500 + n, f"{n}?", f"It is {n}.", "correction", device="phone") for n in range(90)]
    found = chosen(*spread(phone=60, tablet=30), *taught, device_share=0.5)
    assert left(found) == {"phone": 30 + 90, "tablet": 30}


@given(st.lists(st.integers(1, 80), min_size=2, max_size=5), st.floats(0.05, 1))
def test_shares(counts: list[int], share: float) -> None:
    found = left(chosen(*spread(**{f"d{n}": count for n, count in enumerate(counts)}), device_share=share))
    assert len(found) == len(counts)
    limit = max(share, 1 / len(counts)) * sum(found.values())
    assert all(count <= max(limit + 1e-6, 20) for count in found.values())


# -- as a whole -------------------------------------------------------------------------------


def test_counts_for_a_person() -> None:
    assert (
        describe({"duplicate": 9, "loop": 3, "near-duplicate": 1})
        == "13: 9 duplicates, 3 loops, 1 near-duplicate"
    )
    assert describe({}) == ""


@pytest.mark.parametrize("alike", [False, True])
def test_two_thousand_take_no_time(alike: bool) -> None:
    rng = random.Random(1)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(900)]
    same = " ".join(rng.choices(vocabulary, k=60))
    examples = [
        example(
            number,
            f"{same} {vocabulary[number % 900]}?" if alike else " ".join(rng.choices(vocabulary, k=60)),
            " ".join(rng.choices(vocabulary, k=200)),
            device=f"d{number % 3}",
        )
        for number in range(2000)
    ]
    started = time.process_time()
    found = chosen(*examples, device_share=0.5)
    assert time.process_time() - started < 5
    assert found.left_out == {}


# -- in a run ---------------------------------------------------------------------------------


def program(tmp_path: Path, rest: str) -> list[str]:
    script = tmp_path / "trainer.py"
    script.write_text(PROTOCOL + rest)
    return [sys.executable, str(script)]


def fill(box: Any) -> tuple[set[str], set[str]]:
    """What is to be trained, and what to be left out."""
    store = box.store
    good = {
        add(store, "Code?", "It is on the door.", kind="praise").id,
        add(store, "Who is Bob?", "A neighbour.").id,
        add(store, "Where is the red lamp?", "In the hall, to the left.").id,
    }
    bad = {add(store, "Say no", "no " * 40).id, add(store, "Count", "one two " * 40).id}
    first = add(store, "Who is Ann?", "A friend.").id
    good |= {add(store, "Who is Ann?", "A friend.").id}
    return good, bad | {first}


def ids(box: Any, state: str) -> set[str]:
    return {one.id for one in box.store.examples.list(state)}


async def test_what_a_run_leaves_out_shares_its_fate(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    made = make_adapter(tmp_path / "made.safetensors", bundle, scale=1e-4)
    failing = "sys.exit(3)\n"
    async with running(home, bundle, OFF, program(tmp_path, failing), retry_minutes=0.001) as box:
        good, bad = fill(box)
        failed = await box.start_run()
        await box.finished()
        failed = box.store.runs.get(failed.id)
        assert failed.state == "failed"
        assert (failed.metrics or {})["left_out"] == {"loop": 2, "duplicate": 1}
        assert ids(box, "pending") == good | bad
        assert all(one.left_out is None for one in box.store.examples.list())

        program(tmp_path, f"shutil.copy({str(made)!r}, args['--out'])\n")
        await box.until(lambda: not box.learning._busy)
        run = await box.start_run()
        await box.finished(2)
        run = box.store.runs.get(run.id)
        assert (run.state, run.examples) == ("promoted", len(good | bad)), run.reason
        frozen = (home.runs / run.id / "examples.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in frozen]
        assert {line["id"] for line in lines} == good
        assert ids(box, "used") == good | bad
        assert box.store.examples.count("pending", "training") == 0
        assert {one.id: one.left_out for one in box.store.examples.list() if one.left_out}.keys() == bad
        assert run.metrics is not None
        assert run.metrics["left_out"] == {"loop": 2, "duplicate": 1}
        assert box.store.adapters.switches(1)[0].reason == f"learned from {len(good)} examples"
        # Nor are they learned later, when earlier examples are repeated.
        assert {one.id for one in box.store.examples.replay(99, 0, [run.id])} == good


async def test_a_batch_with_nothing_to_learn_ends(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    config = "[lora]\nauto_train_threshold = 2\n"
    async with running(home, bundle, config, program(tmp_path, "sys.exit(3)")) as box:
        given_ids = {add(box.store, f"Say it {n}", f"{n} no " * 40).id for n in range(2)}
        await box.finished()
        (run,) = box.store.runs.list()
        assert run.state == "cancelled"
        assert run.reason == "There is nothing to learn from (2: 2 loops)."
        assert ids(box, "used") == given_ids
        assert box.store.examples.replay(9, 0, [run.id]) == []
        assert box.learning.status().retry_at is None
        assert box.registry.current() is None
