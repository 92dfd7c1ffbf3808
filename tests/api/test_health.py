"""What supervisors are told: a hang of the engine or of the event loop shows, and passes when it is over."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from daemons import StartDaemon

PATIENCE = 120.0
CONFIG = """[lora]
enabled = false
[server]
stalled_seconds = 2
"""


def test_hangs_and_failures_are_told(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "failpoints"
    monkeypatch.setenv("SHAMMAH_FAILPOINTS", str(plan))
    daemon = start_daemon(CONFIG)
    assert daemon.get("/health").json()["reasons"] == []
    # An event loop that stands still answers nobody.
    plan.write_text("loop.turn=hang")
    with pytest.raises(httpx.TimeoutException):
        httpx.get(f"{daemon.url}/health", timeout=2)
    plan.write_text("")
    deadline = time.monotonic() + PATIENCE
    while daemon.get("/health").status_code != 200:  # it may be told once how long that was
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # A step of the engine that does not end.
    plan.write_text("engine.step=hang")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(daemon.ask, "Hello")
        while (health := daemon.get("/health")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert (health.status_code, health.json()["status"]) == (503, "failing")
        assert "step of the engine" in health.json()["reasons"][0]
        ready = daemon.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert "shammah_healthy 0.0" in daemon.get("/metrics").text
        plan.write_text("")
        assert answer.result(60)
    assert daemon.get("/health").status_code == 200
    # A step that fails is no hang; the log of the engine's thread names the request that paid for it.
    plan.write_text("engine.step=eio")
    body = {"model": "shammah", "messages": [{"role": "user", "content": "Hello"}]}
    failed = daemon.post("/v1/chat/completions", body, headers={"X-Request-ID": "pays"})
    assert (failed.status_code, failed.headers["x-request-id"]) == (503, "pays")
    plan.write_text("")
    assert "A step failed; its requests end with an error: pays" in daemon.log
    assert "appliance.engine.engine request=pays: No answer" in daemon.log
    assert daemon.ask("Hello")
