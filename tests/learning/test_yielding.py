"""A run stands still while requests are served, and is not starved by them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from appliance.home import Home
from appliance.learning.child import Child, ChildStopped, Limits
from appliance.learning.yielding import LINGER, SLICE, Yielding
from appliance.model.bundle import Bundle

from .box import make_adapter, running
from .test_runs import OFF, fill, first, trainer

TICK = 1 / 32  # seconds, to the bit


def simulate(yielding: Yielding, seconds: float, start: float = 0.0) -> list[bool]:
    return [yielding.stands_still(start + index * TICK) for index in range(round(seconds / TICK))]


def test_an_idle_box_trains_all_the_time() -> None:
    assert not any(simulate(Yielding(lambda: False, 0.1), 100))


def test_it_stops_at_once_and_goes_on_when_no_request_follows() -> None:
    active = False
    yielding = Yielding(lambda: active, 0.1)
    assert not yielding.stands_still(0)
    active = True
    assert yielding.stands_still(TICK)
    active = False
    assert yielding.stands_still(TICK + LINGER / 2)
    assert not yielding.stands_still(TICK + LINGER)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_box_that_is_always_busy_trains_its_share(share: float) -> None:
    still = simulate(Yielding(lambda: True, share), 4000)
    assert still.count(False) / len(still) == pytest.approx(share, rel=0.06)
    changes = [at for at in range(1, len(still)) if still[at] != still[at - 1]]
    begins = [at for at in changes if not still[at]]
    ends = [at for at in changes if still[at]]
    assert min(end - begin for begin, end in zip(begins, ends, strict=False)) * TICK >= SLICE


def test_a_share_of_one_is_no_yielding() -> None:
    assert not any(simulate(Yielding(lambda: True, 1.0), 10))


def test_time_between_programs_is_no_credit() -> None:
    yielding = Yielding(lambda: True, 0.1)
    simulate(yielding, 1)
    simulated = simulate(yielding, 100, start=100_000.0)
    assert simulated.count(False) / len(simulated) < 0.1 + 2 * SLICE / 100


def wait(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_a_program_stands_still_and_that_time_does_not_count(tmp_path: Path) -> None:
    go, active, pids, pauses = tmp_path / "go", threading.Event(), list[int](), list[bool]()
    child = Child(Yielding(active.is_set, 0.01), pauses.append)
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    limit = 8.0
    active.set()
    thread = threading.Thread(
        target=child.run,
        args=([sys.executable, "-c", code],),
        kwargs={
            "log": tmp_path / "log",
            "limits": Limits(5, 2000, limit),
            "on_event": print,
            "on_start": pids.append,
        },
    )
    thread.start()
    try:
        assert wait(lambda: bool(pids) and stopped(pids[0]))
        assert psutil.Process(pids[0]).ionice().value == 7
        time.sleep(limit + 0.5)
        assert stopped(pids[0])
        assert thread.is_alive()
    finally:
        go.touch()
        active.clear()
        thread.join(60)
    assert pauses == [True, False]
    assert child.seconds < limit


def test_a_program_that_stands_still_can_be_stopped(tmp_path: Path) -> None:
    child = Child(Yielding(lambda: True, 0.01), lambda paused: child.stop())
    with pytest.raises(ChildStopped):
        child.run(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            log=tmp_path / "log",
            limits=Limits(5, 2000, 30),
            on_event=print,
        )


def test_it_does_not_outlive_the_daemon_standing_still(tmp_path: Path) -> None:
    daemon = f"""
import signal
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # should the tests run under nohup
from appliance.learning.child import Child, ChildStopped, Limits
from appliance.learning.yielding import Yielding
Child(Yielding(lambda: True, 0.01)).run(
    [{sys.executable!r}, "-c", "import time; time.sleep(120)"], log=Path({str(tmp_path / "log")!r}),
    limits=Limits(5, 2000, 100), on_event=print, on_start=lambda pid: print(pid, flush=True),
)
"""
    # In a session of its own, as any service manager or login starts it.
    process = subprocess.Popen(
        [sys.executable, "-c", daemon], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert wait(lambda: stopped(pid))
    finally:
        process.kill()
        process.communicate()
    try:
        assert wait(
            lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        pass
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


async def test_a_run_waits_for_requests(home: Home, bundle: Bundle, tmp_path: Path) -> None:
    go = tmp_path / "go"
    made = make_adapter(tmp_path / "made.safetensors", bundle, scale=1e-4)
    waits = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    program = trainer(tmp_path, f"{waits}shutil.copy({str(made)!r}, args['--out'])\n")
    async with running(home, bundle, OFF, program) as box:
        fill(box.store)
        run = await box.start_run()
        pid = await box.until(lambda: box.store.runs.get(run.id).pid, 60)

        async def chat() -> None:
            while True:
                await box.ask("Tell me a long story.", max_tokens=200)

        chatting = asyncio.create_task(chat())
        await box.until(lambda: stopped(pid), 60)
        await box.until(lambda: box.learning.status().run and box.learning.status().run.paused, 60)
        chatting.cancel()
        await box.until(lambda: not box.engine.busy, 60)
        await box.until(lambda: not stopped(pid), 60)
        go.touch()
        ended = await first(box)
        assert ended.state == "promoted"
        paused = [event.data["paused"] for event in box.named("run.progress")]
        assert paused[0] is False
        assert True in paused
        assert paused[-1] is False
