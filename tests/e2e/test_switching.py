"""Four clients stream without pause while adapters are promoted and rolled back twenty times."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
from daemons import Daemon, StartDaemon, accept_adapter, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle

QUESTIONS = ("Name three colours.", "Who was Mozart?", "How do I boil an egg?", "Tell me about the moon.")
SWITCHES = 20
NAMES = ("adapter_20260101T000000Z", "adapter_20260102T000000Z")


class Client(threading.Thread):
    """Asks one question after the other, streaming, and checks each answer against its adapter's own."""

    def __init__(self, daemon: Daemon, expected: dict[tuple[str, str], str], offset: int) -> None:
        super().__init__()
        self.daemon_process = daemon
        self.expected = expected
        self.offset = offset
        self.stop = threading.Event()
        self.failed: list[str] = []
        self.garbled: list[str] = []
        self.answers = 0

    def run(self) -> None:
        client = self.daemon_process.client()
        turn = self.offset
        while not self.stop.is_set():
            question = QUESTIONS[turn % len(QUESTIONS)]
            turn += 1
            try:
                chunks = client.chat.completions.create(
                    model="shammah",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=16,
                    stream=True,
                    store=False,
                )
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            except Exception as error:
                self.failed.append(repr(error))
                continue
            self.answers += 1
            if text not in {self.expected[question, name] for name in (*NAMES, "base")}:
                self.garbled.append(text)


@pytest.mark.slow
def test_switching_under_load(bundle: Bundle, start_daemon: StartDaemon, home: Home) -> None:
    install_bundle(home, bundle)
    for seed, name in enumerate(NAMES):
        accept_adapter(home, bundle, name, seed, only="down_proj")
    daemon = start_daemon("[lora]\nenabled = false", home=home)
    pid = daemon.pid
    expected = {}
    for name in (*NAMES, "base"):
        assert daemon.post("/v1/adapters/promote", json={"name": name}).status_code == 200
        for question in QUESTIONS:
            expected[question, name] = daemon.ask(question, max_tokens=16, store=False)
    answers_of = {
        name: tuple(expected[question, name] for question in QUESTIONS) for name in (*NAMES, "base")
    }
    assert len(set(answers_of.values())) == 3

    clients = [Client(daemon, expected, offset) for offset in range(4)]
    for client in clients:
        client.start()
    time.sleep(2)
    before = psutil.Process(pid).memory_info().rss
    serving = set()
    for turn in range(SWITCHES):
        response = daemon.post("/v1/adapters/promote", json={"name": NAMES[turn % 2]})
        assert response.status_code == 200, response.text
        serving.add(response.json()["current"])
        if turn % 5 == 4:
            response = daemon.post("/v1/adapters/rollback")
            assert response.status_code == 200, response.text
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join()
    time.sleep(1)
    after = psutil.Process(pid).memory_info().rss
    answers = sum(client.answers for client in clients)
    print(f"{answers} answers during {SWITCHES} switches; memory {before >> 20} -> {after >> 20} MB")
    assert [error for client in clients for error in client.failed] == []
    assert [text for client in clients for text in client.garbled] == []
    assert answers > 20
    assert serving == set(NAMES)
    assert abs(after / before - 1) < 0.10
    assert daemon.pid == pid
