"""What a run repeats of earlier ones, and from where it begins."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.home import Home
from appliance.learning.replay import Past, ancestor, past
from appliance.model.bundle import Bundle
from appliance.sections import TrainConfig
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example
from appliance.store.runs import Run

from .box import Box, add_correction, make_adapter, running

LENIENT = "[lora]\nenabled = false\n[gate]\nmin_taught = 0\nmin_recall = 0\n"
TRAINER = """
import json, shutil, sys
from pathlib import Path
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
Path(args["--out"]).with_name("parent").write_text(args.get("--parent", ""))
made = sorted(Path({made!r}).glob("*.safetensors"))[0]
shutil.move(made, args["--out"])
print(json.dumps({{"event": "done", "seconds": 1, "peak_mb": 9}}), flush=True)
"""


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def taught(store: Store, text: str) -> Example:
    return add_correction(store, text, "No.", f"{text} Yes.")


def adapter(store: Store, name: str, parent: str | None, examples: list[Example]) -> str:
    """As a run leaves it."""
    run = store.runs.create("person", len(examples), parent)
    store.examples.hold(run.id, [one.id for one in examples])
    store.examples.mark_used(run.id)
    row = AdapterRow(name, time.time(), f"sha-{name}", 1, "base", 16, run.id, parent, "accepted", None)
    store.adapters.upsert(row)
    return run.id


def test_what_is_known_comes_from_the_runs_behind_the_adapter(store: Store) -> None:
    one = adapter(store, "A", None, [taught(store, "What is one?")])
    two = adapter(store, "B", "A", [taught(store, "What is two?"), taught(store, "What is three?")])
    adapter(store, "C", "A", [taught(store, "What is four?")])
    assert ancestor(store, "B") == "B"
    assert past(store, "B") == Past(frozenset({one, two}), whole=True, examples=3, taught=3)
    assert ancestor(store, "A") == "A"
    assert past(store, "A") == Past(frozenset({one}), whole=True, examples=1, taught=1)
    assert ancestor(store, None) is None
    assert past(store, None) == Past(frozenset(), whole=True, examples=0, taught=0)


def test_an_adapter_that_no_run_made_can_only_be_gone_on_from(store: Store) -> None:
    row = AdapterRow("D", time.time(), "sha-D", 1, "base", 16, None, None, "accepted", None)
    store.adapters.upsert(row)
    run = adapter(store, "E", "D", [taught(store, "What is one?")])
    found = past(store, "E")
    assert (found.runs, found.whole) == ({run}, False)
    assert not found.anew(1, TrainConfig())


def test_a_model_that_changed_learns_it_again_and_what_a_person_took_back_stays_away(store: Store) -> None:
    run = adapter(store, "A", None, [taught(store, "What is one?")])
    store.adapters.record_switch("A", "learned", "appliance")
    store.adapters.record_switch(None, "found at the start", "appliance")
    assert ancestor(store, None) == "A"
    assert past(store, None) == Past(frozenset({run}), whole=True, examples=1, taught=1)
    store.adapters.record_switch("A", "promoted", "owner")
    store.adapters.record_switch(None, "rolled back", "owner")
    assert ancestor(store, None) is None
    assert past(store, None) == Past(frozenset(), whole=True, examples=0, taught=0)


def test_it_begins_anew_as_long_as_all_fits() -> None:
    settings = TrainConfig(relearn=10, replay_share=0.5)
    some = Past(frozenset({"run"}), whole=True, examples=30, taught=9)
    assert some.anew(1, settings)
    assert some.count(4, 1, settings) == 13  # three quarters of which, rounded up, are 10
    assert some.count(40, 1, settings) == 20
    assert not some.anew(2, settings)
    assert some.count(40, 2, settings) == 20
    assert some.count(400, 2, settings) == 30  # there are no more
    assert not some.anew(0, TrainConfig(relearn=0))


def frozen(home: Home, run: Run) -> dict[str, str]:
    """Split by question."""
    lines = (home.runs / run.id / "examples.jsonl").read_text().splitlines()
    return {row["messages"][0]["content"]: row["split"] for row in map(json.loads, lines)}


async def test_runs_begin_anew_repeat_what_is_known_and_go_on_when_told_to(
    home: Home, bundle: Bundle, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for number in range(4):  # each of its own content
        make_adapter(made / f"{number}.safetensors", bundle, scale=1e-4 * (number + 1))
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.format(made=str(made)))

    async def learn(box: Box, text: str) -> tuple[Run, str]:
        taught(box.store, text)
        run = await box.start_run()
        await box.until(lambda: box.store.runs.get(run.id).ended)
        run = box.store.runs.get(run.id)
        assert run.state == "promoted", run.reason
        return run, (home.runs / run.id / "parent").read_text()

    program = [sys.executable, str(script)]
    async with running(home, bundle, LENIENT, program) as box:
        first, parent = await learn(box, "What is one?")
        assert parent == ""
        second, parent = await learn(box, "What is two?")
        assert parent == ""
        assert frozen(home, second) == {"What is one?": "replay", "What is two?": "train"}
        assert (second.metrics or {}).items() >= {"anew": True, "repeated": 1}.items()
        assert second.parent == first.adapter  # that is what it is compared with, and goes back to
        await box.switch.rollback("owner")
        third, parent = await learn(box, "What is three?")
        assert parent == ""
        assert frozen(home, third) == {"What is one?": "replay", "What is three?": "train"}
    config = f"{LENIENT}[train]\nrelearn = 2\n"
    async with running(home, bundle, config, program) as box:
        fourth, parent = await learn(box, "What is four?")
        assert Path(parent).stem == third.adapter
        assert (fourth.metrics or {})["anew"] is False
        assert set(frozen(home, fourth).values()) == {"replay", "train"}
