"""A key that is revoked ends what it is being answered, within a second, wherever it is revoked."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from daemons import Daemon

from appliance.store import Store

LONG: dict[str, Any] = {
    "model": "shammah",
    "messages": [{"role": "user", "content": "Tell me a long tale of the sea."}],
    "max_tokens": 2000,
    "temperature": 0,
    "logit_bias": {"2": -100},  # it does not end by itself
}


@pytest.fixture
def key(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    store = Store.open(daemon.home)
    _, secret = store.keys.create(request.node.name[:60])
    yield secret
    store.close()


def revoke(daemon: Daemon, name: str) -> None:
    """By the command, in a process of its own."""
    command = [sys.executable, "-m", "appliance.cli", "keys", "revoke", name]
    subprocess.run(command, env={"SHAMMAH_HOME": str(daemon.home.root)}, check=True, capture_output=True)


def client(daemon: Daemon, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=key, max_retries=0)


def test_a_stream_ends_with_an_error(daemon: Daemon, key: str, request: pytest.FixtureRequest) -> None:
    with client(daemon, key) as device, client(daemon, "none") as another:
        mine, other = (one.chat.completions.create(**LONG, stream=True) for one in (device, another))
        chunks, others = iter(mine), iter(other)
        next(chunks), next(others)
        revoke(daemon, request.node.name)
        with pytest.raises(openai.APIError, match="revoked") as caught:
            for _ in chunks:
                pass
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            device.chat.completions.create(**LONG)
        for _, _ in zip(range(3), others, strict=False):  # who has not lost a key goes on
            pass
        other.close()
        mine.close()
    # Nothing of it computes any more.
    deadline = time.monotonic() + 30
    while "shammah_active_requests 0.0" not in (shown := daemon.get("/metrics").text):
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def test_an_answer_in_one_piece_is_refused(daemon: Daemon, key: str, request: pytest.FixtureRequest) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        answers.append(daemon.post("/v1/chat/completions", json={**LONG, "n": 2}, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)
    revoke(daemon, request.node.name)
    asking.join(30)
    assert answers[0].status_code == 401
    assert answers[0].json()["error"]["code"] == "invalid_api_key"


def test_the_console_ends_it_too(daemon: Daemon, key: str, request: pytest.FixtureRequest) -> None:
    store = Store.open(daemon.home)
    (device,) = (found for found in store.keys.list() if found.name == request.node.name)
    store.close()
    with client(daemon, key) as one, one.chat.completions.create(**LONG, stream=True) as stream:
        chunks = iter(stream)
        next(chunks)
        done = daemon.post(f"/devices/{device.id}/revoke", headers={"Origin": daemon.url})
        assert done.status_code == 303
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="revoked"):
            for _ in chunks:
                pass
        print(f"cut off after {time.monotonic() - began:.2f} s")
