"""The victim of test_kill.py: works on a store until it is killed.

Before each act it prints what the act is going to change (`try`), after it what it did change
(`ok`): {example id: state}. New examples have no id before the act.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from appliance.config import Config
from appliance.home import Home
from appliance.learning.feedback import Feedback, give_feedback
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.mirror import QueueMirror


def say(word: str, changes: dict[str, str]) -> None:
    os.write(1, (json.dumps([word, changes]) + "\n").encode())


def main(root: str, name: str, seed: int) -> None:
    rng = random.Random(seed)
    home = Home(Path(root))
    store = Store.open(home)
    mirror = QueueMirror(store, home)
    mirror.start()
    pending: dict[str, str] = {}  # id -> query
    for number in range(1_000_000):
        act = rng.choice(["add", "add", "add", "correct", "run"])
        if act == "add":
            query = f"{name} {seed} {number} " + "x" * rng.randrange(4000)
            say("try", {})
            messages = [{"role": "user", "content": query}]
            added = store.examples.add(NewExample("automatic", query, "wrong", "wrong", 1.0, messages))
            say("ok", {added.id: "pending"})
            pending[added.id] = query
        elif act == "correct" and pending:
            id, query = rng.choice([*pending.items()])
            say("try", {id: "superseded"})
            given = give_feedback(
                store, Config(), Feedback(query=query, response="wrong", correction="right")
            )
            del pending[id]
            say("ok", {id: "superseded", given.id: "pending"})
        elif act == "run" and pending:
            batch = rng.sample([*pending], rng.randint(1, len(pending)))
            run = store.runs.create("person", len(batch))
            say("try", dict.fromkeys(batch, "training"))
            store.examples.hold(run.id, batch)
            say("ok", dict.fromkeys(batch, "training"))
            end = rng.choice(["used", "pending", "parked"])
            say("try", dict.fromkeys(batch, end))
            act_of = {"used": "mark_used", "pending": "release", "parked": "park"}
            getattr(store.examples, act_of[end])(run.id)
            say("ok", dict.fromkeys(batch, end))
            if end != "pending":
                for id in batch:
                    del pending[id]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
