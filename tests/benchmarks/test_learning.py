"""The learning benchmark: data, rules and arithmetic; the scenarios are run by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from lessons import contradiction, plots, style, table
from lessons.answers import Answer, OwnAnswers
from lessons.bench import OURS, PLAIN, Bench
from lessons.box import Box
from lessons.data import load_everyday, load_facts, load_style
from lessons.results import Results, chosen, load, share

from appliance.adapters.file import read_adapter
from appliance.home import Home
from appliance.learning.probes import load_probes
from appliance.learning.selection import select
from appliance.learning.train.plan import Rehearsal
from appliance.model.bundle import Bundle

# --- the data


def test_facts_are_asked_in_five_other_wordings_that_do_not_give_them_away() -> None:
    facts = load_facts()
    assert len(facts) == 60
    questions = [question.casefold() for fact in facts for question in (fact.ask, *fact.unseen)]
    assert len(set(questions)) == 60 * 6
    for fact in facts:
        assert fact.known(fact.answer)
        assert not fact.known(fact.wrong)
        assert not any(replace(fact, must_contain=(word,)).known(fact.wrong) for word in fact.must_contain)
        for question in (fact.ask, *fact.unseen):
            assert not any(word.casefold() in question.casefold() for word in fact.must_contain), question
        assert not any(fact.known(other.answer) for other in facts if other is not fact)


def test_what_is_asked_is_neither_rehearsed_nor_probed() -> None:
    everyday, styled = load_everyday(), load_style()
    assert len(set(everyday)) == len(everyday) >= 300
    assert len(load_everyday(without=[everyday[0].upper()])) == len(everyday) - 1
    judged = {*styled.measures, *styled.others}
    assert len(judged) >= 30 and 40 <= len(styled.taught) <= 60
    assert not judged & {question for question, _ in styled.taught}
    known = {probe.question.casefold() for probe in load_probes()}
    known |= {question.casefold() for question, _ in Rehearsal.load().chats}
    asked = [*everyday, *judged, *(fact.ask for fact in load_facts()), *(ask for ask, _ in styled.taught)]
    assert not [question for question in asked if question.casefold() in known]


# --- the rules of style


def test_the_taught_answers_keep_the_rules_they_teach() -> None:
    for question, answer in load_style().taught:
        measure = question.startswith("How") and style.metric(answer, True)
        assert style.judge([(answer, bool(measure))])["all_rules"] == 1.0, answer


@pytest.mark.parametrize(
    ("answer", "measure", "kept"),
    [
        ("It is 330 metres tall.", True, True),
        ("About 3.5 kg.", True, True),
        ("Bake it at 200°C.", True, True),
        ("120km/h", True, True),
        ("It is 1,083 feet tall.", True, False),
        ("It is 330 metres (1,083 ft) tall.", True, False),
        ("Bake it at 400 °F.", True, False),
        ("He is 5'9\" tall.", True, False),
        ("It is very tall.", True, False),
        ("A pronoun stands for a noun.", False, True),
        ("Walk a mile every day.", False, False),
    ],
)
def test_units(answer: str, measure: bool, kept: bool) -> None:
    assert style.metric(answer, measure) is kept


def test_style_scores_are_shares_of_the_answers_a_rule_is_for() -> None:
    scores = style.judge(
        [
            ("With pleasure: 3 metres.", True),
            ("Three feet.", True),
            ("With pleasure: " + "very " * 40, False),
            ("", False),
        ]
    )
    assert scores == {"judged": 4, "short": 0.5, "metric": 0.5, "polite": 0.5, "all_rules": 0.25}


# --- rows, table, pictures


def row(**fields: Any) -> dict[str, Any]:
    return {"seed": 0, "perplexity_rise": 0.01, "probes": 25, "probes_lost": 0, "tokens_per_second": 200.0,
            "seconds": 90.0, "peak_mb": 1100, **fields}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    home = {"scenario": "household", "facts": 60, "everyday": 300, "taught": [60, 60]}
    found = [
        row(**home, recipe=OURS, unseen=[270, 300], verdict="passed"),
        row(**home, recipe=PLAIN, unseen=[3, 300], tokens_per_second=21.0, peak_mb=5000, steps=40,
            all_steps=246, whole_seconds=3000.0),
    ]  # fmt: skip
    for run, right in ((1, 30), (2, 54)):
        found.append(
            row(scenario="drift", lineage="current", recipe=OURS, run=run, runs=2, facts=6, everyday=30,
                recall=[right, run * 30], earlier=[right - 30, run * 30 - 30], new=[30, 30],
                state="promoted", attempts=1, verdict="passed", perplexity_rise=0.03)
        )  # fmt: skip
    for busy, ratio in ((0.1, 0.93), (1.0, 0.55)):
        found.append(
            {"scenario": "neighbour", "seed": 0, "busy_share": busy, "clients": 4, "rounds": 2,
             "seconds": 30.0, "quiet_decode": 40.0, "training_decode": 40 * ratio, "decode_ratio": ratio,
             "quiet_p99_ms": 50.0, "training_p99_ms": 120.0, "p99_ratio": 2.4, "steps": 9}
        )  # fmt: skip
    return found


def test_the_table_says_which_goals_are_met() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.goals(rows()).splitlines()]
    said = {line[0]: line[2:] for line in lines[2:]}
    assert said["household recall, unseen wordings, 60 facts"] == ["0.900", "0.010", "met"]
    assert said["household recall, times the plain recipe"] == ["90.0", "", "met"]
    assert said["useful training tokens/s, times the plain recipe"] == ["9.5", "", "missed"]
    assert said["peak memory of the trainer, MB"] == ["1100", "5000", "met"]
    drift = "drift, lineage current, after 2 runs: "
    assert said[f"{drift}recall of all facts"] == ["0.900", "", "met"]
    assert said[f"{drift}generic perplexity"] == ["+3.0%", "", "missed"]
    assert said[f"{drift}probes lost"] == ["0", "", "met"]
    beside = "4 clients, training over not: "
    assert said[f"{beside}decode, tok/s"] == ["0.93", "", "met"]
    assert said[f"{beside}gap p99"] == ["2.40", "", "missed"]
    assert "| 1 | 4 | 22.0 / 40.0 | 0.55 | 120.0 / 50.0 | 2.40 | 9 |" in table.text(rows())
    assert "STOPPED after 40 of 246 steps; all: 3000 s" in table.text(rows())
    assert table.text([]) == ""


def test_rows_are_on_disk_at_once_and_replaced_by_a_new_start(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    results = Results(file, {"threads": 2})
    for found in rows():
        results.add(found)
        assert load([file])[-1].items() >= found.items()
    again = Results(file, {"threads": 1})
    again.begin(scenario="drift", seed=0, lineage="current")
    assert not chosen(again.rows, scenario="drift")
    assert share(chosen(again.rows, recipe=OURS), "unseen") == 0.9
    again.begin(scenario="household", seed=1)
    assert len(chosen(again.rows, scenario="household")) == 2


def test_pictures_are_small_and_the_same_for_the_same_rows(tmp_path: Path) -> None:
    for place in ("one", "two"):
        drawn = plots.draw(rows(), tmp_path / place)
    assert [path.name for path in drawn] == [
        "learning-recall.svg", "learning-drift.svg", "learning-perplexity.svg"
    ]  # fmt: skip
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
        assert path.stat().st_size < 40_000


# --- real parts


def test_an_own_answer_depends_on_seed_and_question_only(bundle: Bundle, tmp_path: Path) -> None:
    questions = load_everyday()[:3]
    first = OwnAnswers(bundle, tmp_path / "a", threads=2)
    together = first.get(questions, seed=1)
    alone = OwnAnswers(bundle, tmp_path / "b", threads=2).get(questions[2:], seed=1)
    assert alone[questions[2]] == together[questions[2]]
    assert first.get(questions[2:], seed=2)[questions[2]] != together[questions[2]]
    (kept,) = (tmp_path / "a").glob("*-1.json")
    kept.write_text(json.dumps({questions[0]: ["kept", "stop"]}))
    assert first.get(questions[:1], seed=1) == {questions[0]: Answer("kept", "stop")}


def test_ten_exchanges_contradict_a_correction_and_three_are_superseded(
    bundle: Bundle, tmp_path: Path
) -> None:
    box = Box(bundle, Home(tmp_path / "home"), [], tmp_path / "gate.json")
    try:
        facts = load_facts()[:2]
        for fact in facts:
            assert len(contradiction.contradicting(fact)) == 10
            for question in contradiction.contradicting(fact):
                box.exchange(question, Answer(fact.wrong, "stop"))
            box.correct(fact.ask, fact.wrong, fact.answer)
        pending = box.store.examples.pending()
        assert box.store.examples.count("superseded") == 6
        assert len(pending) == 16
        kept = select(pending, near_duplicate=0.92, device_share=0.5).kept
        # Selection treats each fact by itself: one more does not change what another keeps.
        one = [example for example in pending if facts[0].wrong in (example.response, example.target)]
        alone = select(one, near_duplicate=0.92, device_share=0.5).kept
        assert [example for example in kept if example in alone] == list(alone)
        corrections = [example for example in kept if example.kind == "correction"]
        assert [(example.target, example.weight) for example in corrections] == [
            (fact.answer, 10.0) for fact in facts
        ]
    finally:
        box.close()


@pytest.mark.slow
def test_the_plain_recipe_makes_an_adapter_that_the_box_can_serve(bundle: Bundle, tmp_path: Path) -> None:
    fact = load_facts()[0]
    lines = [
        {"id": str(number), "messages": [{"role": "user", "content": fact.ask}], "target": fact.answer,
         "rejected": None, "weight": 1.0, "split": split, "kind": "correction"}
        for number, split in enumerate(("train", "heldout", "replay"))
    ]  # fmt: skip
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bench = Bench(
        bundle=bundle, exam=None, answers=None, cache=tmp_path, with_plain=True, seed=0, threads=2,
        settings=[], plain_steps=1, add=lambda row: None,
    )  # fmt: skip
    path, took = bench.plain(examples, tmp_path)
    adapter = read_adapter(path, bundle.manifest)
    assert adapter.meta.rank == 16
    assert any(matrix.any() for name, matrix in adapter.tensors.items() if name.endswith(".B"))
    assert (took["steps"], took["all_steps"]) == (1, 3)  # one example, three epochs
    # Question, answer and the marks between them: neither padding nor the template's opening.
    assert 15 < took["tokens"] < 50
    assert took["whole_seconds"] > took["seconds"]
