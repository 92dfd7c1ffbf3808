"""Forgetting: what was said is in no file any more, and a power cut at any line leaves nothing half done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Conflict, NotFound
from appliance.home import Home
from appliance.learning import forget as forgetting
from appliance.learning.batch import freeze_batch
from appliance.learning.forget import Forgotten, Wish, finish_forgetting, forget
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example
from appliance.store.mirror import QueueMirror
from appliance.store.runs import Run

from .box import Box, add, add_correction, running
from .test_runs import OFF, first, trainer, writes

SECRET = "xylophone-4711"
QUESTION = f"Where do I keep the {SECRET}?"
ANSWER = f"The {SECRET} is in the attic."


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def holding(home: Home, text: str = SECRET) -> set[str]:
    """The files of the home with these bytes in them."""
    found = [path for path in home.root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return {str(path.relative_to(home.root)) for path in found}


def record(store: Store, name: str, messages: list[dict[str, Any]], answer: str, device: str | None) -> str:
    query = str(messages[-1]["content"])
    store.completions.record(name, time.time(), device, "m", None, query, answer, messages, "stop", 1, 1)
    return name


def said(*turns: str) -> list[dict[str, Any]]:
    """A conversation, the user's turn first."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(turns)
    ]


async def ask(home: Home, store: Store, wish: Wish, serving: str | None = None) -> Forgotten:
    async def step_back(adapters: Collection[str]) -> str | None:
        raise AssertionError("nothing is switched")

    return await forget(home, store, wish, serving=serving, step_back=step_back, actor="owner")


def learned(home: Home, store: Store, examples: list[Example], parent: str | None = None) -> tuple[Run, str]:
    """A run that ended with an adapter, with the files and rows that a real one leaves."""
    run = store.runs.create("person", len(examples), parent)
    held = store.examples.hold(run.id, [example.id for example in examples])
    directory = home.runs / run.id
    directory.mkdir()
    before = [other.id for other in store.runs.list()]
    freeze_batch(directory / "examples.jsonl", held, store.examples.replay(9, 0, before), 0.0, 0)
    answers = [
        {"question": example.query, "before": "?", "after": example.target, "expected": example.target}
        for example in examples
    ]
    report = {"passed": True, "summary": "Passed all 1 checks.", "checks": [], "answers": answers}
    (directory / "report.json").write_text(json.dumps(report))
    (directory / "log").write_text(f"ValueError: cannot tokenize {examples[0].query!r}\n")
    (directory / ".examples.jsonl.x7").write_text(examples[0].query)  # a crash left it
    name = f"adapter_of_{run.id}"
    (home.adapters / f"{name}.safetensors").write_bytes(name.encode())
    store.adapters.upsert(
        AdapterRow(name, time.time(), f"sha-{name}", 9, "base", 8, run.id, parent, "accepted", report)
    )
    store.runs.update(run.id, state="promoted", adapter=name, report=report)
    store.examples.mark_used(run.id)
    return run, name


async def test_no_byte_of_it_is_left(home: Home, store: Store) -> None:
    mirror = QueueMirror(store, home)
    mirror.start()
    device, _ = store.keys.create("tablet")
    completion = record(store, "c1", said(QUESTION), ANSWER, device.id)
    automatic = add(store, QUESTION, ANSWER, completion_id=completion, device=device.id)
    correction = add_correction(store, QUESTION, ANSWER, f"The {SECRET} is in the cellar.")
    store.examples.reject_answer(QUESTION, ANSWER, correction.id)
    store.examples.supersede(QUESTION, correction.id)
    other = add(store, "What is 2+2?", "4")
    run, adapter = learned(home, store, [correction, other])
    again = add(store, QUESTION, f"The {SECRET} is gone.")
    died = store.runs.create("person", 1)
    (home.runs / died.id).mkdir()
    freeze_batch(home.runs / died.id / "examples.jsonl", [again], [], 0.0, 0)
    store.runs.update(died.id, state="failed", reason=f"It ended with code 1: KeyError: {QUESTION!r}")
    later = record(store, "c2", said(QUESTION, ANSWER, "Why?"), "So.", None)
    follow = store.examples.update(add(store, "Why?", "So.", completion_id=later).id, note="seen")
    why = add(store, "Why?", "Because.", completion_id="elsewhere")
    left = home.root / f".{home.queue.name}.ab12"
    left.write_text(QUESTION)
    os.utime(left, (1, 1))
    mirror.flush()
    assert len(holding(home)) >= 6

    done = await ask(home, store, Wish((correction.id,)))

    assert holding(home) == set()
    assert set(done.examples) == {automatic.id, correction.id, again.id, follow.id}
    assert done.completions == 2
    assert (done.adapters, done.in_service, done.retrained) == ((adapter,), None, False)
    assert {example.id for example in store.examples.list()} == {other.id, why.id}
    assert [json.loads(line)["id"] for line in home.queue.read_text().splitlines()] == [why.id]
    kept = [
        json.loads(line)["id"]
        for line in (home.runs / run.id / "examples.jsonl").read_text().split("\n")
        if line
    ]
    assert kept == [other.id]
    assert store.runs.get(died.id).reason == "It ended with code 1."
    # The verdict stays, and so does what people rejected.
    report = store.runs.get(run.id).report
    assert report == json.loads((home.runs / run.id / "report.json").read_text())
    assert report is not None
    assert (report["summary"], report["answers"]) == ("Passed all 1 checks.", [])
    assert store.examples.is_rejected(QUESTION, ANSWER)
    assert store.examples.rejected_answers(QUESTION) == set()
    (entry,) = store.audit.list(1)
    assert (entry.action, entry.detail["asked"]) == ("examples.forget", [correction.id])
    mirror.stop()


async def test_a_device_is_forgotten_and_no_other(home: Home, store: Store) -> None:
    tablet, _ = store.keys.create("kitchen tablet")
    phone, _ = store.keys.create("phone")
    store.keys.revoke(tablet.id)
    again, _ = store.keys.create("kitchen tablet")
    gone = [
        add(store, QUESTION, ANSWER, device=tablet.id),
        add(store, "Hello", "Hi", device=again.id),
        # The phone's word on what the tablet was answered.
        add_correction(store, "How?", "So.", "Thus."),
    ]
    record(store, "c1", said("How?"), "So.", tablet.id)
    store.examples.update(gone[2].id, completion_id="c1")
    store.examples.supersede("Hello", gone[1].id)
    theirs = add(store, "Hello", "Hi", device=phone.id)
    store.examples.supersede("Hello", gone[1].id)
    record(store, "c2", said("Hello"), "Hi", phone.id)
    done = await ask(home, store, Wish(device="kitchen tablet"))
    assert set(done.examples) == {example.id for example in gone}
    assert holding(home) == set()
    assert store.completions.get("c1") is None
    assert store.completions.get("c2") is not None
    # What was superseded by something forgotten does not come back.
    (kept,) = store.examples.list()
    assert (kept.id, kept.state, kept.superseded_by) == (theirs.id, "superseded", theirs.id)
    assert (await ask(home, store, Wish(device=phone.id))).examples == (theirs.id,)
    with pytest.raises(NotFound):
        await ask(home, store, Wish(device="toaster"))


async def test_unknown_ids_forget_nothing(home: Home, store: Store) -> None:
    example = add(store, QUESTION, ANSWER)
    with pytest.raises(NotFound):
        await ask(home, store, Wish((example.id, "ex_no")))
    assert store.examples.get(example.id)
    assert store.audit.list() == []


@pytest.mark.parametrize("line", ["_clean_run", "remove_durably", "QueueMirror", "scrub", "delete"])
async def test_the_next_start_finishes(
    home: Home, store: Store, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before and after every step on files."""
    example = add(store, QUESTION, ANSWER)
    _, adapter = learned(home, store, [example])
    waiting = add(store, QUESTION + "!", ANSWER)
    QueueMirror(store, home).flush()
    places: dict[str, Any] = {"scrub": store.database, "delete": store.settings}

    class Cut(BaseException):
        pass

    def cut(*args: Any, **kwargs: Any) -> Any:
        raise Cut

    monkeypatch.setattr(places.get(line, forgetting), line, cut)
    with pytest.raises(Cut):
        await ask(home, store, Wish((example.id,), retrain=True))
    monkeypatch.undo()
    assert store.examples.list() == []
    assert store.settings.get(forgetting.KEY) is not None
    store.close()
    store = Store.open(home)
    finish_forgetting(home, store)
    assert holding(home) == set()
    assert not (home.adapters / f"{adapter}.safetensors").exists()
    assert store.settings.get(forgetting.KEY) is None
    # Asking again is harmless, and known to be about the same.
    done = await ask(home, store, Wish((example.id, waiting.id), retrain=True))
    assert (done.examples, done.adapters, done.requeued) == ((), (), 0)
    store.close()


@pytest.mark.parametrize("line", ["erase", "add"])
async def test_cut_off_before_it_is_decided(
    home: Home, store: Store, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch has been made, nothing else; asking again does the rest."""
    example = add(store, QUESTION, ANSWER)
    _, adapter = learned(home, store, [example])
    wish, switched = Wish((example.id,), retrain=True), []

    async def step_back(adapters: Collection[str]) -> str | None:
        switched.append(adapters)
        return None

    class Cut(BaseException):
        pass

    place = store.forgotten if line == "erase" else store.audit
    original = getattr(place, line)

    def cut(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise Cut

    monkeypatch.setattr(place, line, cut)
    with pytest.raises(Cut):
        await forget(home, store, wish, serving=adapter, step_back=step_back, actor="owner")
    monkeypatch.undo()
    assert store.examples.get(example.id).state == "used"
    assert not store.adapters.barred(f"sha-{adapter}")
    finish_forgetting(home, store)
    done = await ask(home, store, wish)
    assert (done.examples, done.adapters, done.retrained) == ((example.id,), (adapter,), True)
    assert switched == [(adapter,)]
    assert holding(home) == set()


async def test_what_was_cut_off_is_finished_by_the_next_call(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, other = add(store, QUESTION, ANSWER), add(store, "What is 2+2?", "4")
    run, adapter = learned(home, store, [example])
    monkeypatch.setattr(forgetting, "finish_forgetting", lambda home, store: None)
    await ask(home, store, Wish((example.id,), retrain=True))
    monkeypatch.undo()
    assert f"runs/{run.id}/examples.jsonl" in holding(home)
    await ask(home, store, Wish((other.id,)))
    assert holding(home) == set()
    assert not (home.adapters / f"{adapter}.safetensors").exists()


async def test_retraining_can_be_asked_for_later(home: Home, store: Store) -> None:
    base = add(store, "Who is Ann?", "A neighbour.")
    _, clean = learned(home, store, [base])
    example, other = add(store, QUESTION, ANSWER), add(store, "What is 2+2?", "4")
    _, adapter = learned(home, store, [example, other], clean)
    more, wrong = add(store, "Name a bird.", "Wren."), add(store, "Name a fish.", "Owl.")
    _, child = learned(home, store, [more, wrong], adapter)
    newer = add_correction(store, "Name a fish.", "Owl.", "Trout.")
    store.examples.supersede("Name a fish.", newer.id)
    done = await ask(home, store, Wish((example.id,)), child)
    assert (set(done.adapters), done.in_service) == ({adapter, child}, child)
    assert store.examples.get(other.id).state == "used"

    asked: list[set[str]] = []

    async def step_back(adapters: Collection[str]) -> str | None:
        asked.append(set(adapters))
        return clean

    done = await forget(
        home, store, Wish((example.id,), retrain=True), serving=child, step_back=step_back, actor="owner"
    )
    assert asked == [{adapter, child}]
    assert (done.in_service, done.retrained, done.requeued) == (None, True, 2)
    assert {example.id for example in store.examples.pending()} == {other.id, more.id, newer.id}
    assert store.examples.get(base.id).state == "used"
    assert [path.stem for path in home.adapters.glob("*.safetensors")] == [clean]
    assert store.adapters.barred(f"sha-{adapter}")
    assert not store.adapters.barred(f"sha-{clean}")
    assert store.adapters.get(child).state == "rejected"  # type: ignore[union-attr]


async def test_held_out_is_not_learned(home: Home, store: Store) -> None:
    examples = [add(store, f"Question {number}?", "So.") for number in range(4)]
    run, adapter = learned(home, store, examples)
    freeze_batch(home.runs / run.id / "examples.jsonl", examples, [], 0.25, 0)
    lines = [json.loads(line) for line in (home.runs / run.id / "examples.jsonl").read_text().splitlines()]
    (heldout,) = [line["id"] for line in lines if line["split"] == "heldout"]
    trained = next(line["id"] for line in lines if line["split"] == "train")
    assert (await ask(home, store, Wish((heldout,)))).adapters == ()
    assert (await ask(home, store, Wish((trained,)))).adapters == (adapter,)


async def test_not_while_a_run_is_going_on(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    async with running(home, bundle, OFF, trainer(tmp_path, "time.sleep(60)")) as box:
        example = add(box.store, QUESTION, ANSWER)
        add(box.store, "What is 2+2?", "4")
        run = await box.start_run()
        await box.until(lambda: box.learning.status().run and box.learning.status().run.loss, 60)
        with pytest.raises(Conflict, match=rf"{run.id} is going on.*cancel it"):
            await box.learning.forget(Wish((example.id,)), "owner")
        assert box.store.examples.get(example.id).state == "training"
        box.learning.cancel()
        assert (await first(box)).state == "cancelled"
        await box.until(lambda: not box.learning._busy, 30)
        await box.learning.forget(Wish((example.id,)), "owner")
        assert holding(home) == set()
        assert len(box.named("example.forgotten")) == 1
        assert not box.learning._busy


async def test_the_adapter_that_learned_it_leaves_service_for_good(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    async def learn(box: Box, count: int, *examples: str) -> str:
        for text in examples:
            add(box.store, text, ANSWER if SECRET in text else "So.")
        await box.start_run()
        await box.finished(count)
        await box.until(lambda: not box.learning._busy, 30)
        adapter = box.registry.current()
        assert adapter is not None
        return adapter

    async with running(home, bundle, OFF, writes(tmp_path, bundle, 1e-4)) as box:
        await box.until(lambda: not box.learning._busy, 30)
        clean = await learn(box, 1, "Who is Ann?")
        # Another file: the first one learned nothing that is forgotten.
        program = writes(tmp_path, bundle, 2e-4)
        box.learning._runner._trainer = tuple(program)
        tainted = await learn(box, 2, QUESTION, "What is 2+2?")
        copy = tmp_path / "copy.safetensors"
        copy.write_bytes(box.registry.path(tainted).read_bytes())
        (example,) = [found for found in box.store.examples.list("used") if found.query == QUESTION]
        done = await box.learning.forget(Wish((example.id,), retrain=True), "owner")
        assert (done.adapters, done.in_service, done.requeued) == ((tainted,), None, 1)
        assert box.engine.adapter == box.registry.current() == clean
        assert [found.query for found in box.store.examples.pending()] == ["What is 2+2?"]
        assert box.registry.list() == [clean]
        assert holding(home) == set()
        with pytest.raises(NotFound):
            await box.switch.promote(tainted, reason="", actor="owner")
        # Nor under another name.
        (home.adapters / "mine.safetensors").write_bytes(copy.read_bytes())
        await box.until(lambda: box.named("adapter.rejected"), 60)
        assert "has been forgotten" in box.named("adapter.rejected")[0].data["reason"]
        with pytest.raises(Conflict, match="forgotten"):
            await box.switch.promote("mine", reason="", actor="owner")
        assert box.engine.adapter == clean
    async with running(home, bundle, OFF) as box:
        assert box.engine.adapter == clean


async def test_the_next_start_of_the_box_finishes(
    home: Home, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(home)
    example = add(store, QUESTION, ANSWER)
    QueueMirror(store, home).flush()
    monkeypatch.setattr(forgetting, "finish_forgetting", lambda home, store: None)
    await ask(home, store, Wish((example.id,)))
    monkeypatch.undo()
    store.close()
    assert home.queue.name in holding(home)
    async with running(home, bundle, OFF):
        assert holding(home) == set()
