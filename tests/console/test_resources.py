"""What Home says of the processor is what it does."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.console import resources
from appliance.console.resources import _share, _Times, read_resources
from appliance.hardware import cpu_seconds


def test_a_busy_processor_is_busy_to_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is gathered by some thread of many; none had looked before."""
    monkeypatch.setattr(resources, "_FRESH_SECONDS", 0.0)
    read_resources(tmp_path)
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        shares = []
        for _ in range(3):
            time.sleep(0.4)
            with ThreadPoolExecutor(1) as pool:  # a thread of its own
                shares.append(pool.submit(read_resources, tmp_path).result().cpu)
    finally:
        burner.kill()
        burner.wait()
    assert all(share is not None and 0.2 < share <= 1 for share in shares), shares


def test_a_look_after_a_pause_is_about_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_FRESH_SECONDS", 0.0)
    # Nobody had looked for an hour, in which all was idle.
    old = resources._times()
    monkeypatch.setattr(resources, "_looked", _Times(old.at - 3600, old.busy, old.total - 7200, old.group))
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        share = read_resources(tmp_path).cpu
    finally:
        burner.kill()
        burner.wait()
    assert share is not None
    assert share > 0.1


@pytest.mark.parametrize(
    ("now", "quota", "share"),
    [
        (_Times(10.0, 3.0, 20.0, 3.0), float("inf"), 0.15),
        (_Times(10.0, 3.0, 20.0, 3.0), 0.5, 0.6),  # a container that may use half a processor
        (_Times(10.0, 3.0, 20.0, 9.0), 0.5, 1.0),
        (_Times(10.0, 3.0, 20.0, None), 0.5, 0.15),
        (_Times(10.0, 0.0, 0.0, None), float("inf"), None),  # told nothing, rather than 0 %
        (_Times(10.0, 0.0, -5.0, None), float("inf"), None),
    ],
)
def test_the_share_is_of_what_the_box_may_use(now: _Times, quota: float, share: float | None) -> None:
    assert _share(_Times(0.0, 0.0, 0.0, 0.0), now, quota) == (None if share is None else pytest.approx(share))


def test_what_a_group_used_is_read_in_both_hierarchies(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/box\n")
    (groups / "box").mkdir(parents=True)
    assert cpu_seconds(groups=groups, proc=proc) is None
    (groups / "box/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert cpu_seconds(groups=groups, proc=proc) == 2.5
    (proc / "self/cgroup").write_text("2:cpu,cpuacct:/box\n")
    (groups / "cpu,cpuacct/box").mkdir(parents=True)
    (groups / "cpu,cpuacct/box/cpuacct.usage").write_text("1500000000\n")
    assert cpu_seconds(groups=groups, proc=proc) == 1.5
    (proc / "self/cgroup").write_text("nonsense")
