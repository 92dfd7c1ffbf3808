"""Twenty minutes of a home's use in one: all goes well, and the process does not grow.

Six devices that ask something every thirty seconds make 240 requests in that time. Here they ask without
a pause, all that the API can do, while the owner looks at the console and changes adapters.
`SHAMMAH_TEST_REQUESTS=720` makes it an hour.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from statistics import median

import psutil
import pytest
from daemons import Daemon, StartDaemon, accept_adapter, install_bundle
from jsonschema import validate

from appliance.home import Home
from appliance.model.bundle import Bundle

DEVICES = 6
REQUESTS = int(os.environ.get("SHAMMAH_TEST_REQUESTS", "240"))
ROUNDS = 8
SWITCHES = 2  # in a round
CONFIG = """
[lora]
enabled = false
[model]
prefix_cache_mb = 16  # full after a round or two: from then on only a leak can grow
"""
NAMES = ("adapter_20260101T000000Z", "adapter_20260102T000000Z")
QUESTIONS = (
    "Name three colours.",
    "Who was Mozart?",
    "How do I boil an egg?",
    "Tell me about the moon.",
    "What is 2 plus 2?",
    "Good morning!",
)
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


class Device(threading.Thread):
    """A device that asks its share of a round."""

    def __init__(self, daemon: Daemon, seed: int, count: int) -> None:
        super().__init__()
        self.box = daemon
        self.client = daemon.client()
        self.random = random.Random(seed)
        self.count = count
        self.failed: list[str] = []

    def run(self) -> None:
        kinds: list[Callable[[str], None]] = [
            *[self.ask] * 5, *[self.stream] * 4,
            self.leave, self.converse, self.fill_in, self.correct, self.err,
        ]  # fmt: skip
        for _ in range(self.count):
            kind = self.random.choice(kinds)
            try:
                kind(f"{self.random.choice(QUESTIONS)} ({self.random.randrange(1000)})")
            except Exception as error:
                self.failed.append(f"{kind.__name__}: {error!r}")
        self.client.close()

    def ask(self, question: str) -> None:
        model = self.random.choice(("shammah", "shammah", "shammah:base", f"shammah:{NAMES[0]}"))
        done = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=8
        )
        assert done.usage is not None and done.usage.completion_tokens >= 1

    def stream(self, question: str) -> None:
        chunks = self.client.chat.completions.create(
            model="shammah",
            messages=[{"role": "user", "content": question}],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert [chunk.usage for chunk in chunks][-1] is not None

    def leave(self, question: str) -> None:
        """Go away in the middle of an answer."""
        with self.client.chat.completions.create(
            model="shammah", messages=[{"role": "user", "content": question}], max_tokens=300, stream=True
        ) as chunks:
            next(iter(chunks))

    def converse(self, question: str) -> None:
        """A conversation whose beginning is known from the turn before."""
        messages = [
            {"role": "system", "content": "You are the assistant of a household. " * 8},
            {"role": "user", "content": question},
        ]
        for _ in range(2):
            done = self.client.chat.completions.create(model="shammah", messages=messages, max_tokens=8)  # type: ignore[call-overload]
            messages += [
                {"role": "assistant", "content": done.choices[0].message.content},
                {"role": "user", "content": "And then?"},
            ]

    def fill_in(self, question: str) -> None:
        done = self.client.chat.completions.create(
            model="shammah",
            messages=[{"role": "user", "content": question}],
            max_tokens=60,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
            },
        )
        if done.choices[0].finish_reason == "stop":
            validate(json.loads(done.choices[0].message.content or ""), SCHEMA)

    def correct(self, question: str) -> None:
        given = self.box.post(
            "/v1/feedback",
            json={"query": question, "response": "No idea.", "correction": "Yes.", "weight": "high"},
        )
        assert given.status_code == 200, given.text

    def err(self, question: str) -> None:
        assert self.box.post("/v1/chat/completions", json={"model": "shammah", "messages": question}).is_error
        assert self.box.get("/v1/models/nothing").status_code == 404


@pytest.mark.slow
def test_the_process_does_not_grow(bundle: Bundle, start_daemon: StartDaemon, home: Home) -> None:
    install_bundle(home, bundle)
    for seed, name in enumerate(NAMES):
        accept_adapter(home, bundle, name, seed, only="down_proj")
    daemon = start_daemon(CONFIG, home=home)
    process = psutil.Process(daemon.pid)
    sizes, files, threads = [], [], []
    for turn in range(ROUNDS):
        devices = [
            Device(daemon, turn * DEVICES + number, REQUESTS // ROUNDS // DEVICES)
            for number in range(DEVICES)
        ]
        for device in devices:
            device.start()
        for name in NAMES[:SWITCHES]:
            assert daemon.post("/v1/adapters/promote", json={"name": name}).status_code == 200
            assert daemon.get("/").status_code == 200
        assert daemon.post("/v1/adapters/rollback").status_code == 200
        for device in devices:
            device.join()
        assert [error for device in devices for error in device.failed] == []
        wait_until_idle(daemon)
        sizes.append(process.memory_info().rss >> 20)
        files.append(process.num_fds())
        threads.append(process.num_threads())
    print(f"resident {sizes} MB, {files} open files, {threads} threads")
    assert daemon.get("/health").json()["status"] == "ok"
    # One round is a few percent above or below the next, by what the allocator happens to keep.
    half = ROUNDS // 2
    assert median(sizes[half:]) < median(sizes[:half]) * 1.10
    assert max(files[half:]) <= max(files[:half]) + 5
    assert max(threads[half:]) <= max(threads[:half]) + 2


def wait_until_idle(daemon: Daemon) -> None:
    """Until those that went away are noticed: what they left unfinished keeps replaced weights in memory."""
    deadline = time.monotonic() + 60
    while "shammah_active_requests 0.0" not in daemon.get("/metrics").text:
        assert time.monotonic() < deadline, "a request goes on that nobody waits for"
        time.sleep(0.1)
