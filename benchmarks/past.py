"""A home with years behind it: examples, runs, adapters, devices and acts, as many as asked for."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from load import WORDS

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.normalise import text_key

DAY = 86400.0


@dataclass(frozen=True)
class Past:
    """What was made, to look at: ids of an example, a run, an adapter, a device."""

    example: str
    run: str
    adapter: str
    device: str


def make_past(home: Home, bundle: Bundle, *, examples: int, runs: int, adapters: int) -> Past:
    """Fill a fresh home. Rows go in by SQL, in a few transactions; a hundred thousand take half a minute."""
    dice = random.Random(7)
    now = time.time()
    store = Store.open(home)
    try:
        devices = [store.keys.create(f"device {number}")[0].id for number in range(20)]
        names = _adapters(home, store, bundle, adapters, runs, now)
        made = _runs(store, runs, names, now)
        ids = _examples(store, examples, made, devices, dice, now)
        for number, name in enumerate(names):
            store.adapters.record_switch(name, f"learnt in {made[number % len(made)]}", "appliance")
        with store.transaction():
            for number in range(5000):
                store.audit.add("owner", "login", {"address": f"192.0.2.{number % 250}"})
    finally:
        store.close()
    home.current.unlink(missing_ok=True)
    home.current.symlink_to(f"{names[-1]}.safetensors")
    return Past(ids, made[-1], names[-1], devices[0])


def _text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choices(WORDS.split(), k=words))


def _stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%SZ}"


def _run_at(number: int, runs: int, now: float) -> float:
    return now - (runs - number) * DAY / 4


def _adapters(home: Home, store: Store, bundle: Bundle, count: int, runs: int, now: float) -> list[str]:
    names: list[str] = []
    port = bundle.manifest.ports[-1]
    part = port.parts[0]
    zeros = {
        tensor_key(part.module, "A"): np.zeros((2, port.inputs), np.float32),
        tensor_key(part.module, "B"): np.zeros((part.out, 2), np.float32),
    }
    base = bundle.manifest.base_hash
    for number in range(count):
        at = now - (count - number) * DAY
        name = f"adapter_{_stamp(at)}"
        path = home.adapters / f"{name}.safetensors"
        # The metadata makes each file another one.
        write_adapter(path, zeros, AdapterMeta(base_hash=base, rank=2, alpha=2.0, run=f"run {number}"))
        file = read_adapter(path, bundle.manifest)
        parent = names[-1] if names else None
        run = f"run_{_stamp(_run_at(number * runs // count // 4 * 4, runs, now))}"  # one that was promoted
        store.adapters.upsert(
            AdapterRow(name, at, file.sha256, file.size, base, 2, run, parent, "accepted", report())
        )
        names.append(name)
    return names


def _runs(store: Store, count: int, adapters: list[str], now: float) -> list[str]:
    rows = []
    for number in range(count):
        at = _run_at(number, count, now)
        state = ("promoted", "rejected", "cancelled", "failed")[number % 4]
        adapter = adapters[number * len(adapters) // count] if state == "promoted" else None
        rows.append(
            (f"run_{_stamp(at)}", at, "threshold", state, at, at + 400, 100, adapter, "All checks passed.", 1,
             json.dumps(report()), json.dumps({"loss": 0.5, "steps": 50}))
        )  # fmt: skip
    with store.database.transaction("runs") as tx:
        tx.executemany(
            "INSERT INTO runs (id, created, trigger, state, started, ended, examples, adapter, reason,"
            " attempt, report, metrics) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    return [row[0] for row in rows]


def _examples(
    store: Store, count: int, runs: list[str], devices: list[str], dice: random.Random, now: float
) -> str:
    """Three in four were learned, one in a hundred waits, a few are drafts."""
    rows = []
    for number in range(count):
        query, answer = f"{_text(dice, 8)} {number}?", f"{_text(dice, 30)}."
        kind = "correction" if number % 20 == 0 else "automatic"
        state = "excluded"
        if number >= count - count // 100:
            state = "pending"
        elif number % 4:
            state = "used"
        elif number % 1000 == 0:
            kind, state = "critique", "review"
        messages = [{"role": "user", "content": query}]
        rows.append(
            (f"ex_{number:024x}", now - (count - number) * 300.0, kind, state,
             10.0 if kind == "correction" else 1.0, query, answer, answer, json.dumps(messages), "stop",
             devices[number % len(devices)], "api",
             runs[number * len(runs) // count] if state == "used" else None,
             text_key(query), text_key(answer), text_key(answer), text_key(query))
        )  # fmt: skip
    with store.database.transaction("examples") as tx:
        tx.executemany(
            "INSERT INTO examples (id, created, kind, state, weight, query, response, target, messages,"
            " finish_reason, device, source, run_id, query_key, response_key, target_key, context_key)"
            f" VALUES ({', '.join('?' * 17)})",
            rows,
        )
    return str(rows[-1][0])


def report() -> dict[str, Any]:
    """A gate's report of the usual length."""
    checks = [
        {
            "name": f"check{number}",
            "title": f"Check number {number}",
            "measured": 1.5,
            "reference": 1.4,
            "limit": 1.6,
            "passed": True,
            "detail": "30 questions were asked of both, and none was lost.",
        }
        for number in range(12)
    ]
    answers = [
        {
            "question": f"When is bin {number} collected?",
            "before": "It depends on where you live.",
            "after": "On Tuesday.",
            "expected": "On Tuesday.",
        }
        for number in range(20)
    ]
    return {
        "passed": True,
        "summary": "Passed all 12 checks.",
        "seconds": 31.5,
        "checks": checks,
        "answers": answers,
    }
