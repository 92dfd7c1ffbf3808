"""A live box that puts bad adapters to the test: ratings over HTTP, kill -9, restart."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from daemons import Daemon, StartDaemon, accept_adapter, install_bundle

from appliance.adapters.file import read_adapter
from appliance.engine.offline import PROBE_PROMPT, PROBE_TOKENS, OfflineModel
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.store import Store
from appliance.store.examples import NewExample

NAME = "adapter_20260101T000000Z"


def plant(home: Home, bundle: Bundle) -> str:
    """A run whose adapter has just passed the gate when the power went."""
    install_bundle(home, bundle)
    accept_adapter(home, bundle, NAME, seed=3, only="o_proj")
    adapter = read_adapter(home.adapters / f"{NAME}.safetensors", bundle.manifest)
    model = OfflineModel(bundle, adapter, threads=2, capacity=64)
    fingerprint = next(model.greedy([Tokenizer(bundle).encode(PROBE_PROMPT)], PROBE_TOKENS))
    store = Store.open(home)
    asked = [{"role": "user", "content": "Where is the key?"}]
    example = store.examples.add(
        NewExample("praise", "Where is the key?", "Under the mat.", "Under the mat.", 1.0, asked)
    )
    run = store.runs.create("threshold", 1)
    store.examples.hold(run.id, [example.id])
    verdict = {"passed": True, "summary": "Passed.", "checks": [], "answers": [], "seconds": 0.0}
    report = {**verdict, "fingerprint": fingerprint}
    store.runs.update(run.id, state="gating", adapter=NAME, report=report)
    row = store.adapters.get(NAME)
    assert row is not None
    store.adapters.upsert(replace(row, run_id=run.id))
    store.close()
    return run.id


def ask(daemon: Daemon, *turns: str, model: str = "shammah") -> str:
    """Ask the last of these, after answers to the others; the completion's id."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Well."}]
    body = {"model": model, "messages": messages[:-1], "max_tokens": 4}
    response = daemon.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def rate_down(daemon: Daemon, completion: str, **exchange: str) -> None:
    given = daemon.post("/v1/feedback", json={"completion_id": completion, "rating": "down", **exchange})
    assert given.status_code == 200, given.text


def until(daemon: Daemon, condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, daemon.log[-4000:]
        time.sleep(0.1)
    return value


def serving(daemon: Daemon) -> str | None:
    found: str | None = daemon.get("/ready").json()["adapter"]
    return found


def status(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.get("/v1/training/status").json())


def run_of(daemon: Daemon, run: str) -> dict[str, Any]:
    return dict(daemon.get(f"/v1/training/runs/{run}").json())


@pytest.mark.slow
def test_a_bad_adapter_is_rolled_back_by_its_ratings(
    start_daemon: StartDaemon, bundle: Bundle, home: Home
) -> None:
    run = plant(home, bundle)
    daemon = start_daemon("[lora]\nenabled = false\n", home=home)
    until(daemon, lambda: serving(daemon) == NAME)
    probation = until(daemon, lambda: status(daemon)["probation"])
    assert (probation["adapter"], probation["before"]) == (NAME, None)
    shown = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "status"],
        capture_output=True,
        text=True,
        env={**os.environ, "SHAMMAH_HOME": str(home.root)},
        check=True,
    )
    assert f"{NAME}, on probation until" in shown.stdout
    assert "On probation until" in daemon.get("/").text

    # A word on what the one before says is none on this one.
    for number in range(3):
        asked = f"What is {number} plus 1?"
        completion = ask(daemon, asked, model="shammah:base")
        rate_down(daemon, completion, query=asked, response="Whatever it said.")  # of trials no text is kept
    for number in range(2):
        rate_down(daemon, ask(daemon, f"Who painted picture {number}?"))
    assert serving(daemon) == NAME

    daemon.kill()
    daemon.start()
    assert serving(daemon) == NAME
    assert status(daemon)["probation"] == probation
    for number in range(6):
        rate_down(daemon, ask(daemon, f"Tell me about animal {number}."))
    until(daemon, lambda: serving(daemon) is None)
    ended = until(daemon, lambda: run_of(daemon, run)["state"] == "rejected" and run_of(daemon, run))
    assert "answers drew a complaint" in ended["reason"]
    line = next(row for row in daemon.get("/v1/adapters").json()["data"] if row["name"] == NAME)
    assert line["withdrawn"] in ended["reason"]
    assert "Withdrawn" in daemon.get("/adapters").text
    assert "Withdrew" in daemon.get("/").text
    assert "is rolled back" in daemon.log
    assert status(daemon)["probation"] is None
    assert status(daemon)["retry_at"] > time.time()
    assert not home.current.is_symlink()


@pytest.mark.slow
def test_a_bad_challenger_gets_no_further_than_its_share(
    start_daemon: StartDaemon, bundle: Bundle, home: Home
) -> None:
    run = plant(home, bundle)
    config = "[lora]\nenabled = false\n[gate]\ncanary_share = 0.5\ncanary_answers = 1000\n"
    daemon = start_daemon(config, home=home)
    until(daemon, lambda: (status(daemon)["run"] or {}).get("phase") == "canary")
    until(daemon, lambda: f"{NAME} answers 50% of the requests" in daemon.log)

    def answered_by(*completions: str) -> list[str | None]:
        store = Store.open(home)
        try:
            until(daemon, lambda: all(store.completions.get(name) for name in completions), 10)
            return [getattr(store.completions.get(name), "adapter", None) for name in completions]
        finally:
            store.close()

    questions = [f"What is {number} plus 1?" for number in range(16)]
    first = [ask(daemon, question) for question in questions]
    sides = answered_by(*first)
    assert set(sides) == {NAME, None}
    assert serving(daemon) is None
    # The next turn stays on the side of the one before.
    second = [ask(daemon, question, "Are you sure?") for question in questions]
    assert answered_by(*second) == sides
    # Particular weights are what they are called.
    assert answered_by(ask(daemon, questions[0], model=f"shammah:{NAME}")) == [NAME]
    assert answered_by(ask(daemon, questions[0], model="shammah:base")) == [None]

    challenged = [
        name for name, side in zip([*first, *second], [*sides, *sides], strict=True) if side == NAME
    ]
    assert len(challenged) >= 6
    for completion in challenged:
        rate_down(daemon, completion)
    ended = until(daemon, lambda: run_of(daemon, run)["state"] == "rejected" and run_of(daemon, run))
    assert "not on 50% of the requests" in ended["reason"]
    assert serving(daemon) is None
    assert answered_by(*(ask(daemon, question) for question in questions)) == [None] * 16
