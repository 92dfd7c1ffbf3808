"""The trainer runs out of memory: its batch is tried again with less, then parked, and serving goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from daemons import Daemon, install_bundle
from faults.trial import CONFIG, Trial, asked_all_the_time, opened

from appliance.home import Home
from appliance.learning.backend import ORT_PYTHON
from appliance.model.bundle import Bundle

Tally = Callable[[str, int, int], None]
GROUPS = Path("/sys/fs/cgroup/memory")
pytestmark = pytest.mark.faults


@contextmanager
def small_group(megabytes: int) -> Iterator[Path]:
    """A group of processes that the kernel kills one of when they take more memory."""
    group = GROUPS / f"shammah-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
    except OSError as error:
        pytest.fail(f"this test needs root and memory groups of the kernel's first kind: {error}")
    try:
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


@contextmanager
def box_with(bundle: Bundle, root: Path, train: str) -> Iterator[Trial]:
    home = Home(root / "home").ensure()
    install_bundle(home, bundle)
    config = CONFIG.replace("layers = 0.04", "layers = 1")
    config = config.replace("max_attempts = 20", "max_attempts = 2").replace("max_tokens = 64", train)
    home.config.write_text(config)
    box = Trial(Daemon(home), bundle)
    box.daemon.start()
    try:
        yield box
    finally:
        box.daemon.kill()


def train_in_vain(box: Trial) -> list[int]:
    """A run on three long corrections until its batch is parked; statuses of what was asked meanwhile."""
    for _ in range(3):
        assert box.teach(" Nobody remembers who chose it." * 150).status_code == 200
    with asked_all_the_time(box) as statuses:
        assert box.daemon.post("/v1/training/run").status_code == 202
        assert box.settled(900).state == "parked"
    return statuses


def check_parked(box: Trial, statuses: list[int]) -> None:
    last, first = box.runs()
    assert (first.state, last.state) == ("failed", "parked")
    assert (first.metrics or {})["failed"] == ["memory"]
    assert "memory" in (first.reason or ""), first.reason
    assert last.attempt == 2
    assert len(statuses) > 2
    assert set(statuses) == {200}
    with opened(box.home) as store:
        assert {store.examples.get(example).state for example in box.acknowledged} == {"parked"}
    settings = [(box.home.runs / run.id / "train.json").read_text() for run in (first, last)]
    assert '"max_tokens": 1024' in settings[0]
    assert '"max_tokens": 512' in settings[1]
    box.check("a trainer without memory")
    box.check_tidy()


def test_beyond_the_limit_of_the_settings(bundle: Bundle, tmp_path: Path, tally: Tally) -> None:
    """Stopped by the daemon, or by itself."""
    tally("memory", 1, 0)
    train = "max_tokens = 1024\nmemory_limit_mb = 1024\nbackend = 'peft'"
    with box_with(bundle, tmp_path, train) as box:
        check_parked(box, train_in_vain(box))
    tally("memory", 0, 1)


def test_killed_by_the_kernel(bundle: Bundle, tmp_path: Path, tally: Tally) -> None:
    """For want of memory, with SIGKILL, again and again."""
    tally("memory", 1, 0)
    with small_group(300) as group:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {ORT_PYTHON} "$@"\n')
        python.chmod(0o755)
        train = f"max_tokens = 1024\nbackend = 'ort'\nort_python = '{python}'"
        with box_with(bundle, tmp_path, train) as box:
            check_parked(box, train_in_vain(box))
            kills = (group / "memory.oom_control").read_text().split()
            assert int(kills[kills.index("oom_kill") + 1]) >= 2, kills
    tally("memory", 0, 1)
