from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.mirror import QueueMirror

ROUNDS = 10
WRITERS = 2


class Victim:
    """A process that works on the store, and all it said before it was killed."""

    def __init__(self, home: Home, name: str, seed: int) -> None:
        program = Path(__file__).with_name("killed_writer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(home.root), name, str(seed)],
            stdout=subprocess.PIPE,
        )
        self.said: list[tuple[str, dict[str, str]]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, changes = json.loads(line)
            self.said.append((word, changes))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert self.process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    expected: dict[str, str] = {}
    rng = random.Random(2)
    for round_ in range(ROUNDS):
        victims = [Victim(home, f"w{number}", round_) for number in range(WRITERS)]
        while not all(victim.said for victim in victims):
            assert all(victim.process.poll() is None for victim in victims)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        for victim in victims:
            victim.kill()

        with home.queue.open("a") as file:
            file.write('{"query": "torn by the cra')
        store = Store.open(home)
        assert store.database.value("PRAGMA integrity_check") == "ok"
        assert store.database.all("PRAGMA foreign_key_check") == []
        for victim in victims:
            for word, changes in victim.said:
                if word == "ok":
                    expected |= changes
        found = {id: store.examples.get(id).state for id in expected}
        for victim in victims:
            word, changes = victim.said[-1]
            if word == "try" and changes and found.items() >= changes.items():
                expected |= changes  # the act was done, only its acknowledgement was cut off
        assert found == expected

        mirror = QueueMirror(store, home)
        mirror.start()
        lines = [json.loads(line) for line in home.queue.read_text().splitlines()]
        queue = store.database.all(
            "SELECT id FROM examples WHERE state IN ('pending', 'training') ORDER BY seq"
        )
        assert [line["id"] for line in lines] == [row["id"] for row in queue]
        mirror.stop()
        # What the daemon does at its start: runs that died give their examples back.
        for run in store.runs.unfinished():
            held = [example.id for example in store.examples.held(run.id)]
            assert store.examples.release(run.id) == len(held)
            expected |= dict.fromkeys(held, "pending")
            store.runs.update(run.id, state="failed")
        assert store.examples.count("training") == 0
        store.close()
    assert len(expected) > ROUNDS * WRITERS
