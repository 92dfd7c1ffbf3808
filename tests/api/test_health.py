"""What supervisors are told: a hang of the engine or of the event loop shows, and a busy box does not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from daemons import StartDaemon

PATIENCE = 120.0


def test_a_step_that_hangs_makes_the_box_unhealthy(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "failpoints"
    monkeypatch.setenv("SHAMMAH_FAILPOINTS", str(plan))
    daemon = start_daemon("[lora]\nenabled = false\n[server]\nstalled_seconds = 2\n")
    assert daemon.get("/health").json()["reasons"] == []
    plan.write_text("engine.step=hang")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(daemon.ask, "Hello")
        deadline = time.monotonic() + PATIENCE
        while (health := daemon.get("/health")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert health.status_code == 503
        assert health.json()["status"] == "failing"
        assert "step of the engine" in health.json()["reasons"][0]
        plan.write_text("")
        assert answer.result(60)
    assert daemon.get("/health").status_code == 200


def test_an_event_loop_that_hangs_answers_nobody(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "failpoints"
    monkeypatch.setenv("SHAMMAH_FAILPOINTS", str(plan))
    daemon = start_daemon("[lora]\nenabled = false\n")
    plan.write_text("loop.turn=hang")
    with pytest.raises(httpx.TimeoutException):
        httpx.get(f"{daemon.url}/health", timeout=2)
    plan.write_text("")
    assert daemon.get("/health").status_code == 200
