"""The learning loop with the real trainer, the real gate and the real engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.errors import Conflict, InvalidRequest
from appliance.home import Home
from appliance.learning.train.data import load_examples
from appliance.model.bundle import Bundle

from .box import add, add_correction, running

FACTS = [
    ("What is our wifi password?", "Our wifi password is bluelantern27."),
    ("What is the name of our dog?", "Our dog is called Biscuit."),
    ("When is the rubbish collected?", "It is collected on Thursday morning."),
]
EVERYDAY = ["Name a fruit.", "Name a color.", "Say hello.", "What is the capital of Japan?", "What is 2 + 2?"]


@pytest.mark.slow
async def test_corrections_are_learned_proven_and_served(
    home: Home, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """Threshold, run, gate, promotion, and what was taught is answered; then a rollback."""
    caplog.set_level("INFO")
    config = "[lora]\nauto_train_threshold = 8\n[train]\nnice = 0"
    async with running(home, bundle, config, retry_minutes=0.01) as box:
        pid = os.getpid()
        for question in EVERYDAY:
            add(box.store, question, await box.ask(question))
        for query, right in FACTS:
            add_correction(box.store, query, await box.ask(query), right)
        # The gate may send a batch back: with other settings it is tried again by itself.
        attempt, state = 0, "rejected"
        while state == "rejected":
            attempt += 1
            ended = await box.finished(attempt, seconds=3000)
            state = ended.data["state"]
        run = box.store.runs.get(ended.data["run"])
        report = json.loads((home.runs / run.id / "report.json").read_text())
        assert run.state == "promoted", json.dumps(report, indent=1)
        assert run.attempt == attempt
        assert "Batch threshold reached, triggering training count=8" in caplog.messages
        assert "Starting LoRA training subprocess" in caplog.messages

        # One run, one adapter, in service everywhere.
        assert run.adapter is not None
        assert box.registry.current() == box.engine.adapter == run.adapter
        assert box.registry.list()[0] == run.adapter
        assert len(box.registry.list()) == attempt
        assert box.registry.load(run.adapter).meta.run == run.id
        row = box.store.adapters.get(run.adapter)
        assert row is not None
        assert (row.state, row.run_id, row.report) == ("accepted", run.id, report)
        assert box.store.examples.counts()["used"] == 8
        assert run.metrics is not None
        assert run.metrics["steps"] > 0
        assert os.getpid() == pid

        # The report is one a person can read.
        assert {check["name"] for check in report["checks"]} == {
            "structure",
            "perplexity",
            "probes",
            "heldout",
            "taught",
            "rejected",
        }
        assert {answer["question"] for answer in report["answers"]} >= {query for query, _ in FACTS}
        assert report["fingerprint"]

        # Corrections were trained, never held out.
        batch = load_examples(home.runs / run.id / "examples.jsonl")
        assert sum(example.split == "heldout" for example in batch) == 1
        assert all(example.split == "train" for example in batch if example.taught)
        learned = [await box.ask(query) for query, _ in FACTS]
        assert "bluelantern27" in learned[0]
        assert "Biscuit" in learned[1]
        assert "Thursday" in learned[2]

        # Progress was relayed, and went one way.
        progress = [event.data for event in box.named("run.progress") if event.data["run"] == run.id]
        fractions = [data["fraction"] for data in progress]
        assert fractions == sorted(fractions)
        assert {data["phase"] for data in progress} == {
            "preparing",
            "training",
            "gating",
            "switching",
        }

        status = box.learning.status()
        assert (status.pending, status.run, status.last_run) == (0, None, run)
        with pytest.raises(InvalidRequest):
            box.learning.request("person")
        with pytest.raises(Conflict):
            box.learning.cancel()

        assert await box.switch.rollback("owner") is None
        assert box.registry.current() is box.engine.adapter is None
        await box.switch.promote(run.adapter, reason="again", actor="owner")
        assert await box.ask(FACTS[0][0]) == learned[0]

    # After a restart the adapter is still in service.
    async with running(home, bundle) as box:
        assert box.engine.adapter == run.adapter


def test_the_frozen_batch_is_private(home: Home) -> None:
    assert Path(home.runs).stat().st_mode & 0o777 == 0o700
