"""The gate: what each check is about, and the real program on good and bad adapters."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.adapters.file import AdapterMeta, tensor_key, write_adapter
from appliance.console.render import apart
from appliance.learning.batch import freeze_batch
from appliance.learning.measure import NOTHING, Answer, General, Particular, Taught, select
from appliance.learning.probes import Probe, generic_text, load_probes
from appliance.learning.recall import key_words, most_lost, says
from appliance.learning.sanity import looping
from appliance.learning.train.data import load_examples
from appliance.learning.verdict import Judged, verdicts
from appliance.model.bundle import Bundle
from appliance.sections import GateConfig

from .box import make_adapter
from .test_batch import example

LIMITS = GateConfig()
COUNT = len(load_probes())
ANSWERS = tuple(f"Number {number} is what comes after {number - 1}, of course." for number in range(COUNT))
GENERAL = General(20.0, (True,) * COUNT, ANSWERS, (1, 2))
KNOWN = Answer("Bin day?", "It is Thursday.", "On Thursday.", True)
UNKNOWN = Answer("Bin day?", "Every morning, I think.", "On Thursday.", False)
BATCH = Particular((2.0, 2.0), (Taught(-1.0, -3.0, -9.0, -9.0, -5.0),), (KNOWN,), (True,))
BEFORE = Particular((2.0, 2.0), (Taught(-4.0, -2.0, -6.0, -6.0, -3.0),), (UNKNOWN,), (True,))
SANITY = ("empty", "loops", "refusals", "sameness", "length")
SAME = Judged(GENERAL, GENERAL, GENERAL, BEFORE, BATCH)


def failed(judged: Judged, limits: GateConfig = LIMITS) -> set[str]:
    return {check.name for check in verdicts(judged, limits, "base") if not check.passed}


def test_no_worse_and_taught_passes() -> None:
    assert failed(SAME) == set()
    assert [check.name for check in verdicts(SAME, LIMITS, "base")] == [
        "perplexity",
        "probes",
        *SANITY,
        "heldout",
        "taught",
        "rejected",
        "recall",
        "earlier",
    ]


def test_forgetting_ordinary_english_fails() -> None:
    assert failed(replace(SAME, candidate=replace(GENERAL, perplexity=22.9))) == set()
    assert failed(replace(SAME, candidate=replace(GENERAL, perplexity=23.1))) == {"perplexity"}


def test_a_model_past_hope_is_asked_nothing() -> None:
    gone = replace(SAME, candidate=General(2e6, (), (), ()), candidate_batch=NOTHING)
    checks = verdicts(gone, LIMITS, "base")
    assert [(check.name, check.passed) for check in checks] == [("perplexity", False)]
    assert "100000 times" in checks[0].detail


def test_numbers_that_are_not_finite_fail_at_once() -> None:
    nan = replace(SAME, candidate=General(float("nan"), (), (), ()))
    checks = verdicts(nan, LIMITS, "base")
    assert [(check.name, check.passed, check.measured) for check in checks] == [("perplexity", False, None)]


def test_forgotten_knowledge_fails_beyond_the_limit() -> None:
    def lost(count: int) -> Judged:
        return replace(SAME, candidate=replace(GENERAL, probes=(False,) * count + (True,) * (COUNT - count)))

    assert failed(lost(1)) == set()
    assert failed(lost(2)) == {"probes"}
    detail = verdicts(lost(9), LIMITS, "base")[1].detail
    assert detail.count("?") == 6
    assert detail.endswith("And 3 more.")
    # What the adapter in service does not know either is not held against the candidate.
    both = replace(lost(5), reference=lost(5).candidate)
    assert failed(both) == set()


def test_held_out_answers_must_stay_as_likely() -> None:
    def after(*losses: float, before: float = 2.0) -> set[str]:
        reference = replace(BEFORE, heldout=(before,) * len(losses))
        candidate = replace(BATCH, heldout=losses)
        return failed(replace(SAME, reference_batch=reference, candidate_batch=candidate))

    assert after(2.19, 2.19) == set()
    assert after(2.21, 2.21) == {"heldout"}
    # So much can be chance, of so few ...
    assert after(2.5, 2.05) == after(2.5, 2.3, 2.2) == after(9.0) == set()
    # ... and is not when it goes on.
    assert after(*(2.5, 2.3, 2.2) * 3) == {"heldout"}
    assert after(float("nan"), 2.0) == after(float("inf"), 2.0) == after(float("nan")) == {"heldout"}
    # One that was sure may be a little less so.
    assert after(0.19, 0.19, before=0.1) == set()
    assert after(0.21, 0.21, before=0.1) == {"heldout"}


def test_value_limit_and_rule_explain_every_verdict() -> None:
    """Whatever was measured, the numbers of a row say what its verdict says, and so do its words."""
    draw = random.Random(11)
    seen: dict[str, set[bool]] = {}
    for _ in range(300):
        count, heldout = draw.choice([0, 1, 2, 3, 9]), draw.choice([1, 2, 3, 12])
        probes = [tuple(draw.random() < draw.choice([0.5, 0.95]) for _ in range(COUNT)) for _ in range(2)]
        taught = tuple(Taught(draw.gauss(-2, 1), -2.0, -9.0, -9.0, -5.0) for _ in range(count))
        words = draw.choice([1, 4, 9, 20])
        answers = tuple(
            draw.choice([answer, "", "No. " * 9, "Sorry."])
            if draw.random() < 0.2
            else answer * (words // 4 or 1)
            for answer in ANSWERS
        )
        before = replace(BEFORE, heldout=tuple(draw.uniform(0.1, 3) for _ in range(heldout)), taught=taught)
        after = replace(BATCH, heldout=tuple(loss * draw.uniform(0.9, 1.6) for loss in before.heldout))
        after = replace(after, taught=taught, earlier=tuple(draw.random() < 0.7 for _ in range(count)))
        before = replace(before, earlier=tuple(draw.random() < 0.9 for _ in range(count)))
        judged = Judged(
            GENERAL,
            replace(GENERAL, probes=probes[0]),
            General(20.0 * draw.choice([0.9, 1.1499, 1.1501, 2.0]), probes[1], answers, (1, 2)),
            before,
            after,
        )
        for check in verdicts(judged, LIMITS, "base"):
            seen.setdefault(check.name, set()).add(check.passed)
            assert check.detail
            if check.limit is None:
                assert check.passed, check
                assert "alone" in check.detail or check.name == "length", check
                continue
            assert check.measured is not None
            kept = check.measured <= check.limit if check.bound == "most" else check.measured >= check.limit
            assert kept == check.passed, check
            told = apart(asdict(check))
            assert (told[0] == told[1]) == (check.measured == check.limit)
    assert {name for name, both in seen.items() if len(both) == 2} >= {
        *("perplexity", "probes", "heldout", "taught", "earlier", "empty", "length")
    }


def test_a_rise_that_may_be_chance_names_the_limit_that_decided() -> None:
    reference = replace(BEFORE, heldout=(0.5, 0.7, 0.9))
    candidate = replace(BATCH, heldout=(0.52, 0.71, 1.4))
    judged = replace(SAME, reference_batch=reference, candidate_batch=candidate)
    check = next(check for check in verdicts(judged, LIMITS, "base") if check.name == "heldout")
    assert check.passed
    assert check.measured == pytest.approx(0.8767, abs=1e-4)
    assert check.limit is not None
    assert check.limit > check.measured > 0.8  # 0.8 is what the setting alone would allow
    assert "by a t test over 3 answers" in check.detail
    assert "surely above 10" in check.detail


def test_corrections_must_be_preferred() -> None:
    learned, unlearned = Taught(-1.0, -3.0, -9.0, -9.0, -5.0), Taught(-3.0, -2.0, -9.0, -9.0, -5.0)
    before = replace(BEFORE, taught=(BEFORE.taught[0],) * 4)
    half = replace(BATCH, taught=(learned, learned, unlearned, unlearned))
    less = replace(BATCH, taught=(learned, unlearned, unlearned, unlearned))
    assert failed(replace(SAME, reference_batch=before, candidate_batch=half)) == set()
    assert failed(replace(SAME, reference_batch=before, candidate_batch=less)) == {"taught"}


@pytest.mark.parametrize(
    ("total", "bad"), [(-6.0, False), (-5.95, False), (-5.8, True), (float("nan"), True)]
)
def test_a_rejected_answer_must_not_gain(total: float, bad: bool) -> None:
    after = replace(BATCH, taught=(Taught(-1.0, -1.9, total, total, total + 3.0),))
    assert failed(replace(SAME, candidate_batch=after)) == ({"rejected"} if bad else set())


def test_words_in_common_with_the_correction_may_gain() -> None:
    after = replace(BATCH, taught=(Taught(-1.0, -1.9, -5.0, -8.0, -2.0),))
    assert failed(replace(SAME, candidate_batch=after)) == set()


def test_words_after_a_wrong_turn_that_is_less_likely_may_gain() -> None:
    after = replace(BATCH, taught=(Taught(-1.0, -1.9, -5.0, -4.0, -3.5),))
    assert failed(replace(SAME, candidate_batch=after)) == set()


def test_without_examples_the_batch_is_not_judged() -> None:
    checks = verdicts(replace(SAME, reference_batch=NOTHING, candidate_batch=NOTHING), LIMITS, "base")
    assert [check.name for check in checks] == ["perplexity", "probes", *SANITY]


def test_corrections_must_be_recalled() -> None:
    def recalled(right: int, of: int) -> set[str]:
        after = replace(BATCH, answers=(KNOWN,) * right + (UNKNOWN,) * (of - right))
        return failed(
            replace(SAME, reference_batch=replace(BEFORE, answers=(UNKNOWN,) * of), candidate_batch=after)
        )

    assert recalled(0, 1) == recalled(0, 2) == recalled(1, 3) == recalled(5, 10) == {"recall"}
    assert recalled(1, 1) == recalled(1, 2) == recalled(2, 3) == recalled(6, 10) == set()


def test_earlier_corrections_must_not_be_lost() -> None:
    def lost(count: int, of: int) -> set[str]:
        before = replace(BEFORE, earlier=(True,) * of + (False,) * 5)
        # What is answered for the first time does not make up for it.
        after = replace(BATCH, earlier=(False,) * count + (True,) * (of - count + 5))
        return failed(replace(SAME, reference_batch=before, candidate_batch=after))

    assert lost(1, 1) == lost(1, 5) == lost(2, 10) == lost(2, 16) == lost(0, 0) == set()
    assert lost(2, 2) == lost(2, 5) == lost(3, 10) == lost(4, 16) == {"earlier"}
    assert [most_lost(16, share) for share in (0.0, 0.05, 0.2)] == [0, 2, 6]


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("", {"empty", "sameness", "length"}),
        ("yes yes yes yes yes yes yes yes", {"loops", "sameness"}),
        ("I'm sorry, but I can't help with that.", {"refusals", "sameness"}),
        ("Please ask me that again later on.", {"sameness"}),
    ],
)
def test_answers_that_are_none_fail_whatever_the_perplexity(answer: str, names: set[str]) -> None:
    broken = replace(GENERAL, answers=(answer,) * 10 + ANSWERS[10:])
    assert failed(replace(SAME, candidate=broken)) == names - {"length"}
    all_over = replace(GENERAL, answers=(answer,) * COUNT)
    assert failed(replace(SAME, candidate=all_over)) == names
    # A base model that does so itself is no reason to reject.
    assert failed(replace(SAME, base=all_over, reference=all_over, candidate=all_over)) == set()
    # What a person taught may be anything.
    taught = tuple(replace(KNOWN, text=answer) for _ in range(16))
    before = replace(BEFORE, answers=(UNKNOWN,) * 16)
    learned = replace(SAME, reference_batch=before, candidate_batch=replace(BATCH, answers=taught))
    assert failed(learned) == set()


def test_general_answers_keep_their_length() -> None:
    def cut(words: int) -> set[str]:
        short = tuple(" ".join(answer.split()[:words]) for answer in ANSWERS)
        return failed(replace(SAME, candidate=replace(GENERAL, answers=short)))

    assert cut(2) == {"length"}
    assert cut(4) == set()
    longer = tuple(f"{answer} Besides, there is more to be said {answer[7:9]}" for answer in ANSWERS)
    assert failed(replace(SAME, candidate=replace(GENERAL, answers=longer))) == {"length"}


@pytest.mark.parametrize(
    ("answer", "loops"),
    [
        ("The capital of Germany is Berlin.", False),
        ("No, no, it is not.", False),
        ("The Earth orbits the Sun, which is a celestial body orbiting the Sun.", False),
        ("one two one two one two", True),
        ("The bin is emptied on Monday. The bin is emptied on Monday. The", True),
        ("aaaaaaaaaaaaaaaaaaaa", True),
        ("a b, b a, a a b, b b a a, b a", True),
    ],
)
def test_what_a_loop_is(answer: str, loops: bool) -> None:
    assert looping(answer) == loops


@pytest.mark.parametrize(
    ("target", "rejected", "right", "wrong"),
    [
        ("The paper bin is emptied on Thursday.", "Every day.", "On thursdays.", "The paper bin is emptied."),
        ("The bus comes at 7:35.", "The bus comes at 8:00.", "7:35", "At 7:30."),
        ("It is bluelantern27.", None, "The password is Bluelantern27!", "The password is bluelantern."),
        ("It costs 1,200 euros.", "It costs 12 euros.", "1200", "12"),
        ("No.", "Yes.", "No, it is not.", "Yes."),
        ("It is off.", "It is on.", "off", "It is on."),
        ("John.", "John Smith.", "John", "Peter"),
        ("Ask Mia, Ben or old Tom.", None, "Mia, Tom or old Ben", "Ask Mia"),
        ("木曜日です", "毎日です", "木曜", "毎日です"),
        ("It is Thursday.", None, "Thursday", "Thursday Thursday Thursday Thursday Thursday Thursday"),
    ],
)
def test_an_answer_is_told_by_its_key_words(
    target: str, rejected: str | None, right: str, wrong: str
) -> None:
    keys = key_words(target, "When is the paper bin emptied?", rejected)
    assert says(target, keys)
    assert says(right, keys)
    assert not says(wrong, keys)


def test_a_question_answered_anew_is_no_earlier_one(tmp_path: Path) -> None:
    new, old, other = (example(number, "correction") for number in (1, 2, 3))
    old = replace(old, messages=new.messages)
    freeze_batch(tmp_path / "e.jsonl", [new], [old, other, example(4)], 0.0, 0)
    selection = select(load_examples(tmp_path / "e.jsonl"))
    assert [one.id for one in selection.asked] == [new.id]
    assert [one.id for one in selection.earlier] == [other.id]


def test_probes_look_for_whole_words() -> None:
    probe = Probe("?", ("7", "seven"))
    assert probe.passes("It has 7 days.")
    assert probe.passes("SEVEN.")
    assert not probe.passes("17 days, or seventy")


def test_the_probe_set_is_what_it_says() -> None:
    probes = load_probes()
    assert len(probes) >= 25
    assert len({probe.question for probe in probes}) == len(probes)
    assert len(generic_text()) > 3000


def test_what_is_looked_at_is_capped_and_heaviest_first(tmp_path: Path) -> None:
    held = [example(number, "correction", weight=float(number)) for number in range(1, 60)]
    held += [example(number) for number in range(60, 160)]
    freeze_batch(tmp_path / "e.jsonl", held, [example(200, "correction", weight=99.0)], 0.2, 0)
    selection = select(load_examples(tmp_path / "e.jsonl"))
    assert selection.steps < 66
    assert selection.corrections[0].weight == 59.0  # replayed ones were judged in their own run
    assert all(one.taught for one in selection.asked)
    assert [one.weight for one in selection.earlier] == [99.0]
    assert all(one.split == "heldout" for one in selection.heldout)


def gate(bundle: Bundle, tmp_path: Path, adapter: Path, *more: str) -> dict[str, Any]:
    limits, out = tmp_path / "limits.json", tmp_path / "report.json"
    limits.write_text(LIMITS.model_dump_json())
    program = [sys.executable, "-m", "appliance.learning.gate", "--bundle", str(bundle.path)]
    options = ["--adapter", str(adapter), "--limits", str(limits), "--out", str(out), "--threads", "2"]
    done = subprocess.run(
        [*program, *options, "--cache", str(tmp_path / "cache.json"), *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    steps = [(event["step"], event["steps"]) for event in events[:-1]]
    assert [step for step, _ in steps] == list(range(len(steps)))
    report: dict[str, Any] = json.loads(out.read_text())
    # A model that is past hope is rejected at once: nothing more is measured, and progress ends there.
    if any(check["name"] == "probes" for check in report["checks"]):
        assert steps[-1] == (steps[-1][1] - 1, len(steps))
    return report


@pytest.mark.slow
def test_the_program_judges_real_adapters(bundle: Bundle, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    harmless = make_adapter(adapters / "harmless.safetensors", bundle, scale=1e-6)
    report = gate(bundle, tmp_path, harmless)
    assert report["passed"], report["summary"]
    probes = next(check for check in report["checks"] if check["name"] == "probes")
    # The default model answers every probe: what this set is made of. Processors round differently, and
    # at a near tie that decides.
    assert probes["reference"] >= COUNT - 1
    assert abs(probes["measured"] - probes["reference"]) <= 1
    assert report["fingerprint"]
    assert (tmp_path / "cache.json").exists()

    # A second judgement takes the general numbers of base from the cache.
    ruinous = make_adapter(adapters / "ruinous.safetensors", bundle, scale=1.0)
    report = gate(bundle, tmp_path, ruinous, "--current", str(harmless))
    assert not report["passed"]
    assert [check["name"] for check in report["checks"]] == ["structure", "perplexity"]
    assert report["summary"].startswith("Rejected. Ordinary English: Perplexity")
    assert report["reference"] == "harmless"

    # Finite on disk, not in the model.
    modules = [part.module for port in bundle.manifest.ports for part in port.parts][:1]
    port = bundle.manifest.ports[0]
    huge = {
        tensor_key(modules[0], "A"): (1e30 * make_ones(4, port.inputs)),
        tensor_key(modules[0], "B"): (1e30 * make_ones(port.parts[0].out, 4)),
    }
    write_adapter(adapters / "huge.safetensors", huge, AdapterMeta(bundle.manifest.base_hash, 4, 4.0))
    report = gate(bundle, tmp_path, adapters / "huge.safetensors")
    assert not report["passed"]
    assert "not finite" in report["summary"]

    (adapters / "cut.safetensors").write_bytes(harmless.read_bytes()[:1000])
    report = gate(bundle, tmp_path, adapters / "cut.safetensors")
    assert not report["passed"]
    assert report["checks"][0]["name"] == "structure"
    assert "cut off or damaged" in report["summary"]


def make_ones(rows: int, columns: int) -> Any:
    import numpy as np

    return np.ones((rows, columns), np.float32)
