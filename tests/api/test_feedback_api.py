from __future__ import annotations

import json
import time
from typing import Any

from daemons import Daemon


def queue(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.home.queue.read_text().splitlines()]


def eventually(check: Any, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_exchanges_are_collected_streamed_or_not(daemon: Daemon) -> None:
    daemon.ask("How do I boil an egg?", max_tokens=8)
    list(
        daemon.client().chat.completions.create(
            model="shammah",
            messages=[{"role": "user", "content": "How do I fry an egg?"}],
            stream=True,
            max_tokens=8,
        )
    )
    lines = eventually(lambda: [line for line in queue(daemon) if "egg" in line["query"]][1:])
    assert lines
    found = {line["query"]: line for line in queue(daemon)}
    assert found["How do I boil an egg?"]["weight"] == 1.0
    assert found["How do I boil an egg?"]["feedback"] is None
    assert list(found["How do I fry an egg?"])[:4] == ["query", "response", "weight", "feedback"]
    assert "Auto-collected query/response for training" in daemon.log


def test_store_false_opts_out(daemon: Daemon) -> None:
    daemon.ask("What is my secret?", store=False)
    daemon.ask("What is not my secret?")
    assert eventually(lambda: any(line["query"] == "What is not my secret?" for line in queue(daemon)))
    assert not any(line["query"] == "What is my secret?" for line in queue(daemon))


def test_a_correction_by_completion_id_replaces_the_collected_answer(daemon: Daemon) -> None:
    question = "Who feeds our goldfish?"
    answer = daemon.client().chat.completions.create(
        model="shammah", messages=[{"role": "user", "content": question}], max_tokens=12
    )
    given = daemon.post(
        "/v1/feedback",
        json={"completion_id": answer.id, "correction": "Nora feeds the goldfish.", "weight": "high"},
    )
    assert given.status_code == 200
    assert (given.json()["kind"], given.json()["weight"]) == ("correction", 10.0)

    def lines() -> list[dict[str, Any]]:
        return [line for line in queue(daemon) if line["query"] == question]

    eventually(lambda: [line["correction"] for line in lines()] == ["Nora feeds the goldfish."])
    (line,) = lines()
    assert line["response"] == answer.choices[0].message.content
    assert line["messages"] == [{"role": "user", "content": question}]


def test_a_critique_is_drafted_by_the_model_and_checked(daemon: Daemon) -> None:
    given = daemon.post(
        "/v1/feedback",
        json={
            "query": "What is 2+2?",
            "response": "It is 5.",
            "weight": "high",
            "feedback": "Wrong answer! Should be 4",
        },
    )
    assert (given.json()["kind"], given.json()["state"]) == ("critique", "review")

    # The mirror shows what is learned from: a draft that holds the stated answer, never the rejected one.
    def drafted() -> bool:
        lines = [line for line in queue(daemon) if line["query"] == "What is 2+2?"]
        return bool(lines)

    assert eventually(drafted, 60)
