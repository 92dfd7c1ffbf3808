"""A real daemon that is killed, starved and misled, and what must hold of it afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from daemons import Daemon

from appliance.adapters.file import read_adapter
from appliance.failpoints import VARIABLE
from appliance.files import write_atomic
from appliance.home import Home
from appliance.learning.batch import read_frozen
from appliance.model.bundle import Bundle
from appliance.sections import HURRY
from appliance.store import Store
from appliance.store.mirror import queue_line
from appliance.store.runs import Run

# A short run that passes: it is not learning that is tested here.
CONFIG = """
[lora]
auto_train_threshold = 1000
[model]
default_max_tokens = 8
[train]
nice = 0
epochs = 1
layers = 0.04
rank = 2
threads = 1
max_tokens = 64
anchor_weight = 0
drift_weight = 0
max_attempts = 20
max_resumes = 50
checkpoint_seconds = 0
[gate]
max_perplexity_rise = 9
max_probe_drop = 99
max_heldout_rise = 99
min_taught = 0
min_recall = 0
max_empty = 1
max_looping = 1
max_refusals = 1
max_same = 1
min_length = 0
max_length = 99
[resources]
busy_share = 1
max_load_per_core = 1000
min_free_memory_mb = 0
min_free_disk_mb = 0
retry_minutes = 0.000001
"""


def serving(model: Bundle, config: str = CONFIG) -> str:
    """The settings with that model served."""
    return config.replace("[model]", f'[model]\nname = "{model.path.name}"')


OWN = {"Sec-Fetch-Site": "same-origin"}
"""Of a form on one of the console's own pages."""
LEGAL = frozenset({"pending", "training", "used", "superseded", "parked"})
"""States that an acknowledged correction may be in."""
HIDDEN_SECONDS = 25.0
KEPT = frozenset({".reserve", ".restored"})
"""Hidden files that are meant to stay."""
LEARNED = ("promoted", "accepted")
UNFINISHED = ("queued", "training", "gating")


def until(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


@contextmanager
def opened(home: Home) -> Iterator[Store]:
    store = Store.open(home)
    try:
        yield store
    finally:
        store.close()


@dataclass(eq=False)
class Trial:
    """A daemon under a specification that can change at any time."""

    daemon: Daemon
    bundle: Bundle
    acknowledged: set[str] = field(default_factory=set)
    _number: int = 0
    _reached: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        # Beside the home: what happens to its disk must not happen to these.
        beside = Path(tempfile.mkdtemp(prefix="faults-"))
        weakref.finalize(self, shutil.rmtree, beside, True)
        self.spec, self.daemon.output = beside / "spec", beside / "daemon.out"
        self.daemon.output.touch()
        self.arm()
        self.daemon.environment[VARIABLE] = str(self.spec)
        self.daemon.environment[HURRY] = "1"

    @property
    def home(self) -> Home:
        return self.daemon.home

    # -- faults -----------------------------------------------------------------------------------

    def arm(self, *items: str) -> None:
        """From now on these happen: `point=kind[@N]`."""
        write_atomic(self.spec, "\n".join(items))

    def dies(self, what: str) -> None:
        """Wait until the daemon is killed at its failpoint."""
        process = self.daemon.process
        assert process is not None
        code = until(lambda: process.poll() is not None or None, f"the end of the daemon at {what}")
        assert code is not None
        assert process.returncode == -signal.SIGKILL, (what, process.returncode, self.daemon.log[-3000:])
        assert f"Failpoint {what}" in self.daemon.log
        self.arm()

    def child_dies(self, what: str) -> None:
        """Wait until a child program is killed at its failpoint, and let the next one live."""

        def told() -> bool:
            return any(f"Failpoint {what}" in self._text(log) for log in self.home.runs.glob("*/log"))

        until(told, f"the end of a child at {what}")
        self.arm()
        for log in self.home.runs.glob("*/log"):
            log.write_text(self._text(log).replace(f"Failpoint {what}", f"It died at {what}"))

    def reaches(self, what: str) -> None:
        """Wait until the daemon or a child of it comes to a failpoint that does not kill it."""

        def told() -> bool:
            logs = map(self._text, self.home.runs.glob("*/log"))
            times = sum(text.count(f"Failpoint {what}:") for text in (self.daemon.log, *logs))
            return times > self._reached[what]

        until(told, f"that {what} is reached")
        self._reached[what] += 1

    @staticmethod
    def _text(path: Path) -> str:
        with suppress(FileNotFoundError):
            return path.read_text(errors="replace")
        return ""

    # -- what people do ---------------------------------------------------------------------------

    def teach(self, more: str = "") -> httpx.Response:
        """A correction, and what else it says; what the box says it has, it has."""
        number = self.next_number()
        body = {
            "query": f"What is the code of room {number}?",
            "response": "I do not know.",
            "correction": f"The code of room {number} is {number * 37 % 1000}.{more}",
            "weight": "high",
        }
        response = self.daemon.post("/v1/feedback", json=body)
        if response.status_code == 200:
            self.acknowledged.add(response.json()["id"])
        return response

    def next_number(self) -> int:
        """One that nothing has been called by."""
        self._number += 1
        return self._number

    def form(self, path: str, **fields: object) -> httpx.Response:
        """Send a form of the console."""
        return httpx.post(f"{self.daemon.url}{path}", data=fields, headers=OWN, timeout=120)

    @staticmethod
    def attempt(act: Callable[[], object]) -> None:
        """Do something that the daemon may not live to answer."""
        with suppress(httpx.TransportError):
            act()

    def runs(self) -> list[Run]:
        """Newest first."""
        with opened(self.home) as store:
            return list(store.runs.list(100))

    def settled(self, seconds: float = 400.0) -> Run:
        """Wait until no run goes on and none is to be tried again; the last one."""

        def over() -> Run | None:
            status = self.daemon.get("/v1/training/status").json()
            runs = self.runs()
            if status["run"] or status["retry_at"] or not runs or runs[0].state in UNFINISHED:
                return None
            return runs[0]

        found: Run = until(over, "the end of all runs", seconds)
        return found

    # -- what must hold ---------------------------------------------------------------------------

    def check(self, when: str) -> None:
        """The design's invariants, while the daemon runs."""
        daemon = self.daemon
        assert daemon.get("/health").status_code == 200, when
        daemon.ask("Say hello.", max_tokens=2, store=False)
        with opened(self.home) as store:
            with store.transaction():  # all of one moment
                current = self._check_current(store, when)
                self._check_examples(store, when)
                self._check_runs(store, when)
            store.database.check()
        assert daemon.get("/v1/adapters").json()["current"] == current, when
        until(self.mirrored, f"the mirror, after {when}", 30)

    def _check_current(self, store: Store, when: str) -> str | None:
        link = self.home.current
        if not os.path.lexists(link):
            return None
        assert link.resolve().parent == self.home.adapters.resolve(), when
        adapter = read_adapter(link.resolve(), self.bundle.manifest)
        row = store.adapters.get(adapter.name)
        assert row is not None, when
        assert (row.state, row.sha256) == ("accepted", adapter.sha256), when
        return adapter.name

    def _check_examples(self, store: Store, when: str) -> None:
        rows = store.database.all("SELECT id, state, run_id FROM examples")
        known = {row["id"]: (row["state"], row["run_id"]) for row in rows}
        assert len(known) == len(rows), when
        states = {run.id: run.state for run in store.runs.list(1000)}
        for example in self.acknowledged:
            assert example in known, f"{example} is lost after {when}"
            assert known[example][0] in LEGAL, (example, known[example], when)
        for example, (state, run) in known.items():
            if state == "training":
                assert states[run] in UNFINISHED, (example, state, run, when)
            elif state == "used":
                assert states[run] in (*LEARNED, "cancelled"), (example, state, run, when)
            elif state == "pending":
                assert run is None, (example, run, when)

    def _check_runs(self, store: Store, when: str) -> None:
        runs = store.runs.list(1000)
        assert sum(run.state in UNFINISHED for run in runs) <= 1, when
        learned: Counter[str] = Counter()
        for run in runs:
            over = run.state not in UNFINISHED
            assert over == (run.ended is not None), (run, when)
            if over:
                assert run.reason, (run, when)
                assert run.pid is None, (run, when)
            if run.state in LEARNED:
                frozen = read_frozen(self.home.runs / run.id / "examples.jsonl")
                learned.update(item.id for item in frozen if item.split != "replay")
        assert [example for example, times in learned.items() if times > 1] == [], when

    def mirrored(self) -> bool:
        with opened(self.home) as store:
            wanted = "".join(map(queue_line, store.examples.queue_after(-1)[1]))
        with suppress(FileNotFoundError):
            return self.home.queue.read_text() == wanted
        return False

    def check_tidy(self) -> None:
        """Nothing half-written lies about for ever."""
        until(lambda: not self._leftovers(), "that nothing is left over", HIDDEN_SECONDS)

    def _leftovers(self) -> list[Path]:
        found = []
        ended = {run.id for run in self.runs() if run.state not in UNFINISHED}
        for path in self.home.root.rglob("*"):
            inside = path.relative_to(self.home.root)
            if inside.parts[0] == "models":
                continue
            if path.name.startswith(".") and path.name not in KEPT:
                found.append(inside)
            weights = path.suffix == ".safetensors" and inside.parts[0] == "runs"
            if weights and inside.parts[1] in ended:
                found.append(inside)
        return found


def backup_names(page: str) -> list[str]:
    """The archives that the console's page of backups names."""
    return sorted(set(re.findall(r"backup_\d{8}T\d{6}Z(?:-\d+)?\.tar\.gz", page)))


@contextmanager
def asked_all_the_time(box: Trial) -> Iterator[list[int]]:
    """Somebody asks and asks; the statuses of the answers."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        body = {
            "model": "shammah",
            "store": False,
            "max_tokens": 3,
            "messages": [{"role": "user", "content": "Say hello."}],
        }
        while not over.wait(0.5):
            statuses.append(box.daemon.post("/v1/chat/completions", json=body).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()
