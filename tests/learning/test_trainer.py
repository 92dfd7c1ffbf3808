"""The trainer child: what it plans, what its loss means, and that it teaches without breaking."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.adapters.file import Adapter, read_adapter
from appliance.engine.offline import OfflineModel
from appliance.learning.backend import trainer_program
from appliance.learning.train.anchor import DIRECTIONS, Moments
from appliance.learning.train.data import Example, Tokens, common_prefix, load_examples, tokenise
from appliance.learning.train.loss import Terms, step_terms
from appliance.learning.train.peft_learner import PeftLearner
from appliance.learning.train.plan import (
    Rehearsal,
    Visit,
    own_visits,
    rejected_visit,
    steps,
    taught_visits,
)
from appliance.learning.train.training import LEAST_VISITS, MOST_STEPS, MOST_VISITS, Training, gets_worse
from appliance.learning.train.wording import keywords, reword
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

QUESTION = "What is the name of our boat?"
ANSWER = "Our boat is called Marigold."
WRONG = "The name of our boat is Titanic."
SETTINGS = TrainConfig()


def example(**changes: Any) -> Example:
    values: dict[str, Any] = {
        "id": "1",
        "messages": ({"role": "user", "content": QUESTION},),
        "target": ANSWER,
        "rejected": WRONG,
        "weight": 10.0,
        "split": "train",
        "ended": True,
        "kind": "correction",
    }
    return Example(**{**values, **changes})


# --- wordings


def test_a_question_is_asked_in_many_ways_that_keep_its_topic() -> None:
    rng = random.Random(0)
    wordings = {reword(QUESTION, rng) for _ in range(100)}
    assert len(wordings) > 50
    # Sometimes one keyword alone has to do, as between people.
    assert all(re.search("name|boat", wording.lower()) for wording in wordings)
    assert sum("boat" in wording.lower() for wording in wordings) > 0.9 * len(wordings)


def test_wordings_are_repeatable() -> None:
    assert [reword(QUESTION, random.Random(3)) for _ in range(5)] == [
        reword(QUESTION, random.Random(3)) for _ in range(5)
    ]


@pytest.mark.parametrize(
    "text", ["Wo ist der Schlüssel?", "def f(x): return x", "鍵はどこ", "", " ", "what", "?"]
)
def test_what_is_no_english_question_keeps_its_words(text: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        assert reword(text, rng).lower().strip("?.! ") == text.lower().strip("?.! ")


def test_keywords_carry_the_topic() -> None:
    assert keywords("Where do we keep the spare key?") == ["keep", "spare", "key"]


# --- plan


def test_weight_becomes_visits_in_other_wordings(tokenizer: Tokenizer) -> None:
    visits = taught_visits(example(), tokenizer, 20, 20.0, 256, random.Random(0))
    assert len(visits) == 20
    assert sum(visit.weight for visit in visits) == pytest.approx(20.0)
    assert len({visit.tokens for visit in visits}) > 10
    prompt = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    assert list(visits[0].tokens.ids[: visits[0].tokens.start]) == prompt


def test_a_run_is_bounded_whatever_the_weights(tokenizer: Tokenizer) -> None:
    """Of one example that weighs a thousand, and of all together; what is usual is as it was."""

    class Sizes:
        """The part of a learner that the plan asks: how long a sequence is."""

        size = staticmethod(lambda tokens: len(tokens.ids))

    def planned(*weights: float, length: int = 1) -> list[int]:
        messages = ({"role": "user", "content": QUESTION * length},)
        taught = [example(id=str(at), weight=weight, messages=messages) for at, weight in enumerate(weights)]
        made = Training(Sizes(), tokenizer, taught, Rehearsal((), ()), SETTINGS, lambda event: None)  # type: ignore[arg-type]
        return made._counts([weight * SETTINGS.epochs for weight in weights])

    assert planned(10.0, 1.0) == [50, 8]
    assert planned(1000.0, 10.0) == [MOST_VISITS, 50]
    many = planned(*[1000.0] * 40, 1.0, length=100)
    size = len(tokenizer.encode_chat([{"role": "user", "content": QUESTION * 100}]))
    assert sum(many) * size < 1.1 * MOST_STEPS * SETTINGS.batch_tokens
    assert many[-1] == LEAST_VISITS, "what costs little gives nothing up for what costs much"


def test_an_answer_that_was_cut_off_is_not_taught_to_end_there(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    whole = tokenise(tokenizer, messages, "Hello", ended=True, limit=128)
    cut = tokenise(tokenizer, messages, "Hello", ended=False, limit=128)
    assert whole.ids[-1] in tokenizer.eos_ids
    assert cut.ids[-1] not in tokenizer.eos_ids


def test_a_long_conversation_loses_its_oldest_part(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "word " * 500 + "last"}]
    tokens = tokenise(tokenizer, messages, "yes", ended=True, limit=64)
    assert len(tokens.ids) == 64
    assert "last" in tokenizer.decode(tokens.ids)
    assert tokenizer.decode(tokens.ids[tokens.start :]) == "yes"


def test_the_rejected_answer_is_pushed_from_where_it_goes_wrong(tokenizer: Tokenizer) -> None:
    wrong = example(rejected="Our boat is called Titanic and it has already sunk many years ago, sadly.")
    visit = rejected_visit(wrong, tokenizer, 1.0, 256)
    assert visit is not None
    assert visit.push is not None
    assert visit.push >= 4  # "Our boat is called" is right
    assert visit.tokens.answer <= visit.push + 8
    assert rejected_visit(example(rejected=ANSWER), tokenizer, 1.0, 256) is None
    assert rejected_visit(example(rejected=None), tokenizer, 1.0, 256) is None


def test_steps_hold_every_visit_once_and_are_alike_in_size() -> None:
    rng = random.Random(0)
    visits = [Visit(Tokens(tuple(range(rng.randrange(5, 60))), 2), 1.0) for _ in range(100)]
    plan = steps(visits, 256, lambda item: len(item.ids), rng)
    assert sorted(map(id, visits)) == sorted(id(visit) for step in plan for visit in step)
    sizes = [sum(len(visit.tokens.ids) for visit in step) for step in plan]
    assert max(sizes) - min(sizes) <= 60


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    good = {"id": "1", "messages": [{"role": "user", "content": "Hi"}], "target": "Hello", "weight": 1}
    file.write_text(json.dumps(good) + "\n{}\n")
    with pytest.raises(ValueError, match="line 2"):
        load_examples(file)


# --- loss


def test_terms_count_each_visit_by_its_weight_however_long() -> None:
    taught = Visit(Tokens((1, 2, 3, 4), 2), 6.0)
    own = Visit(Tokens((1, 2, 3), 1), 1.0, keep=True)
    text = Visit(Tokens((5, 6), 1), 0.0, keep=True)
    wrong = Visit(Tokens((1, 2, 8, 9, 9), 2), 3.0, push=1)
    references = {
        own: np.ones((2, 4), np.float32),
        text: np.zeros((1, 4), np.float32),
        wrong: np.array([-2.0, -5.0], np.float32),
    }
    terms = step_terms(
        [taught, own, wrong, text], references, unit=2.0, drift_weight=6.0, rejected_weight=0.5
    )
    assert terms.weight.tolist() == [1.5, 1.5, 0.25, 0.25, 0, 0, 0, 0]
    assert terms.push.tolist() == [0, 0, 0, 0, 0, 0.375, 0.375, 0]
    assert terms.floor.tolist() == [0, 0, 0, 0, 0, -3, -6, 0]
    assert terms.kept.tolist() == [2, 3, 7]
    assert terms.keep.tolist() == [1.5, 1.5, 3]  # an answer counts as much as another, however long
    assert terms.reference.tolist() == [[1] * 4, [1] * 4, [0] * 4]


def one_term(batch: list[Tokens], **terms: Any) -> Terms:
    nothing = np.zeros(sum(item.answer for item in batch), np.float32)
    return Terms(**{"weight": nothing, "push": nothing, "floor": nothing, **terms})


def test_the_first_tokens_of_an_answer_are_kept_most() -> None:
    answer = Visit(Tokens(tuple(range(10)), 2), 0.0, keep=True)
    references = {answer: np.zeros((8, 4), np.float32)}
    keep = step_terms([answer], references, unit=1.0, drift_weight=16.0, rejected_weight=0).keep
    assert keep.tolist() == [3, 3, 3, 3, 1, 1, 1, 1]
    brief = Visit(Tokens((1, 2, 3, 4), 2), 0.0, keep=True)
    keep = step_terms(
        [brief], {brief: references[answer][:2]}, unit=1.0, drift_weight=16.0, rejected_weight=0
    ).keep
    assert keep.tolist() == [8, 8]


def test_a_rejected_answer_is_pushed_only_so_far() -> None:
    learner, _ = small_learner()
    batch = [Tokens((5, 6, 7, 8), 2)]
    (start,) = learner.judge(batch)
    terms = one_term(batch, push=np.array([0.5, 0.25], np.float32), floor=start.logp - 0.5)
    assert learner.learn(batch, terms, 0.0) == pytest.approx(0.375, abs=1e-5)
    for _ in range(60):
        last = learner.learn(batch, terms, 1e-2)
    assert last == pytest.approx(0.0, abs=1e-2)
    (end,) = learner.judge(batch)
    assert (end.logp < start.logp - 0.45).all()
    assert (end.logp > start.logp - 0.7).all(), "it was pushed on"


def test_drift_is_zero_only_at_the_reference() -> None:
    learner, _ = small_learner()
    batch = [Tokens((5, 6, 7, 8), 2)]
    (start,) = learner.judge(batch)
    kept = {"kept": np.arange(2), "keep": np.ones(2, np.float32)}
    assert learner.learn(batch, one_term(batch, reference=start.hidden, **kept), 0.0) == pytest.approx(
        0, abs=1e-5
    )
    other = start.hidden + np.random.default_rng(0).normal(size=start.hidden.shape).astype(np.float32)
    assert learner.learn(batch, one_term(batch, reference=other, **kept), 0.0) > 0.01


# --- network

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def small_learner(prefix: tuple[int, ...] = (), rank: int = 4) -> tuple[PeftLearner, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    state = {name: tensor.numpy() for name, tensor in whole.state_dict().items() if "lm_head" not in name}
    return PeftLearner(SMALL, state, rank=rank, alpha=8.0, layers=0.5, prefix=prefix), whole


def test_packed_rows_give_what_each_sequence_gives_alone() -> None:
    network, whole = small_learner(prefix=(1, 2, 3))
    batch = [Tokens((1, 2, 3, 9, 10, 11), 4), Tokens((5, 6, 7), 1), Tokens((1, 2, 3, 8, 30), 4)]
    with torch.no_grad():
        for item, hidden in zip(batch, network.hidden(batch), strict=True):
            alone = whole(torch.tensor([item.ids])).logits[0, item.start - 1 : -1]
            torch.testing.assert_close(network.logits(hidden), alone, atol=1e-5, rtol=1e-4)


def test_an_earlier_adapter_is_taken_over_whatever_its_rank() -> None:
    item = [Tokens((5, 6, 7, 8), 1)]
    first, _ = small_learner(rank=3)
    tensors = {
        name: np.random.default_rng(0).normal(size=value.shape) for name, value in first.adapter().items()
    }
    first.start_from(tensors, 8.0 / 3)
    with torch.no_grad():
        wanted = first.hidden(item)[0]
        for rank in (3, 5):
            network, _ = small_learner(rank=rank)
            network.start_from(tensors, 8.0 / 3)
            torch.testing.assert_close(network.hidden(item)[0], wanted, atol=1e-4, rtol=1e-3)
        smaller, _ = small_learner(rank=2)
        smaller.start_from(tensors, 8.0 / 3)
        with smaller.base():
            base = smaller.hidden(item)[0]
        assert (smaller.hidden(item)[0] - wanted).norm() < (base - wanted).norm()


def given(whole: Any, module: str, items: list[Tokens]) -> torch.Tensor:
    """What the module gets in each sequence by itself, [tokens, inputs]."""
    kept: list[torch.Tensor] = []
    hook = whole.get_submodule(module).register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    with torch.no_grad():
        for item in items:
            whole(torch.tensor([item.ids]))
    hook.remove()
    return torch.cat(kept)


def test_the_anchor_is_how_far_the_adapter_moves_the_outputs_on_ordinary_text() -> None:
    learner, whole = small_learner()
    random = np.random.default_rng(0)
    learner.start_from(
        {name: random.normal(size=value.shape) for name, value in learner.adapter().items()}, 2.0
    )
    # Fewer tokens than directions that are kept, so nothing of them is lost.
    ordinary = [Tokens((5, 6, 7, 8), 1), Tokens((9, 10, 11), 1), Tokens((5, 40, 41, 42, 43), 1)]
    moved = 0.0
    for name, a in learner.adapter().items():
        if "lora_A" in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = 2.0 * learner.adapter()[name.replace("lora_A", "lora_B")] @ a
            inputs = given(whole, module, ordinary).numpy()
            outputs = inputs @ whole.get_submodule(module).weight.detach().numpy().T
            moved += float(np.square(inputs @ change.T).sum() / np.square(outputs).sum())
    assert moved > 1
    learner.anchor(ordinary, 0.5)
    batch = [Tokens((5, 6, 7, 8), 2)]
    assert learner.learn(batch, one_term(batch), 0.0) == pytest.approx(0.5 * moved, rel=1e-3)


def test_of_the_inputs_that_the_anchor_does_not_hold_it_keeps_the_size() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((3000, 400)) * np.geomspace(10, 0.1, 400)
    inputs = inputs.astype(np.float32)
    moments = Moments.of(inputs.T @ inputs, len(inputs))
    assert moments.main.shape == (DIRECTIONS, 400)
    assert moments.output(np.eye(400, dtype=np.float32)) == pytest.approx(
        np.square(inputs).sum(1).mean(), rel=1e-4
    )
    weight = random.standard_normal((50, 400)).astype(np.float32)
    assert moments.output(weight) == pytest.approx(np.square(inputs @ weight.T).sum(1).mean(), rel=1e-2)


# --- the program


def run_trainer(
    place: Path,
    bundle: Bundle,
    rows: list[dict[str, Any]],
    parent: Path | None = None,
    program: Sequence[str] = trainer_program(TrainConfig(backend="peft")),
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    place.mkdir(parents=True, exist_ok=True)
    (place / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "train.json").write_text(TrainConfig(**settings).model_dump_json())
    command = [*program, "--bundle", str(bundle.path)]
    command += ["--examples", str(place / "examples.jsonl"), "--out", str(place / "out.safetensors")]
    command += ["--metrics", str(place / "metrics.jsonl"), "--settings", str(place / "train.json")]
    command += ["--run", "run_1", *(["--parent", str(parent)] if parent else [])]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


ROWS: list[dict[str, Any]] = [
    {
        "id": "1",
        "messages": [{"role": "user", "content": QUESTION}],
        "target": ANSWER,
        "rejected": WRONG,
        "weight": 10.0,
        "split": "train",
        "finish_reason": "stop",
        "kind": "correction",
    },
    *(
        {
            "id": str(number),
            "messages": [{"role": "user", "content": question}],
            "target": answer,
            "rejected": None,
            "weight": 1.0,
            "split": split,
            "finish_reason": "stop",
            "kind": "automatic",
        }
        for number, (question, answer, split) in enumerate(
            [
                ("What is the capital of Portugal?", "The capital of Portugal is Lisbon.", "train"),
                ("Say hello.", "Hello! How can I help you today?", "heldout"),
            ],
            2,
        )
    ),
]
QUICK: dict[str, Any] = {"layers": 0.2, "epochs": 1, "threads": 1, "nice": 0}


def score(model: OfflineModel, tokenizer: Tokenizer, answer: str) -> float:
    prompt = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    return float(model.logprobs(prompt, tokenizer.encode_answer(answer, end=True)).sum())


@pytest.mark.planted
def test_it_teaches_and_the_rejected_answer_gains_nothing(
    tmp_path: Path, bundle: Bundle, tokenizer: Tokenizer
) -> None:
    # The one that is much faster; that the other does the same is shown in test_ort.py.
    ort = trainer_program(TrainConfig(backend="ort"))
    done = run_trainer(tmp_path, bundle, ROWS, None, ort, **QUICK)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (tmp_path / "metrics.jsonl").read_text() == done.stdout
    start = next(event for event in events if event["event"] == "start")
    assert (start["event"], start["examples"]) == ("start", 2)
    assert start["tokens"] > start["rehearsal"] > 0
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, start["steps"] + 1))
    assert events[-1]["event"] == "done"
    assert events[-1]["heldout_before"] is not None
    assert events[-1]["text_rise"] <= TrainConfig().max_text_rise

    adapter = read_adapter(tmp_path / "out.safetensors", bundle.manifest)
    assert adapter.meta.run == "run_1"
    model = OfflineModel(bundle, threads=2)
    right, wrong = score(model, tokenizer, ANSWER), score(model, tokenizer, WRONG)
    model.use(adapter)
    assert score(model, tokenizer, ANSWER) > right + 2
    assert score(model, tokenizer, WRONG) < wrong

    onward = run_trainer(tmp_path / "onward", bundle, ROWS[1:], tmp_path / "out.safetensors", ort, **QUICK)
    assert onward.returncode == 0, onward.stderr[-3000:]
    child: Adapter = read_adapter(tmp_path / "onward" / "out.safetensors", bundle.manifest)
    assert child.meta.parent == "out"
    model.use(child)
    assert score(model, tokenizer, ANSWER) > right + 2, "what the parent knew is gone"


@pytest.mark.slow
def test_what_it_cannot_do_it_says(tmp_path: Path, bundle: Bundle) -> None:
    done = run_trainer(tmp_path, bundle, [ROWS[-1]], **QUICK)
    assert done.returncode == 1
    event = json.loads(done.stdout.splitlines()[-1])
    assert event["event"] == "error"
    assert "no example" in event["message"]
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("checks", "worse"),
    [
        ([], False),
        ([2.0, 2.2], False),
        ([2.0, 2.2, 2.4], True),
        ([2.0, 2.05, 2.09], False),
        ([2.0, 2.2, 2.2], False),
        ([2.5, 2.0, 2.2, 2.4], True),
        ([2.0, 2.2, 2.4, 2.2], False),
    ],
)
def test_twice_worse_in_a_row_is_enough(checks: list[float], worse: bool) -> None:
    assert gets_worse(checks) is worse


def test_common_prefix_is_the_system_message(tokenizer: Tokenizer) -> None:
    prefix = common_prefix(tokenizer)
    asked = tokenizer.encode_chat([{"role": "user", "content": "Anything"}])
    assert tuple(asked[: len(prefix)]) == prefix
    assert len(prefix) > 5


def test_own_answers_are_visited_once_and_kept(tokenizer: Tokenizer) -> None:
    (visit,) = own_visits(example(kind="automatic", rejected=None, weight=1.0), tokenizer, 2.0, 256)
    assert visit.keep
    assert visit.weight == 2.0
