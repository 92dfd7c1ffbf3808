"""Who has learned from an example: the runs that had it, and the adapters that came of them.

The frozen input of each run says so for as long as it is kept; an example names only the run that used it up,
not those that repeated it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from appliance.errors import NotFound
from appliance.home import Home
from appliance.store import Store
from appliance.store.adapters import AdapterRow

Split: TypeAlias = Literal["train", "heldout", "replay"]
FEW = 20
"""So many ids are looked for in a file before its lines are read one by one."""


@dataclass(frozen=True)
class Learned:
    """Which runs had some examples.

    Attributes:
        frozen: the runs whose `examples.jsonl` has one of them.
        runs: for each example, the runs that trained on it. Those that were only judged by it are not
            among them.
    """

    frozen: frozenset[str]
    runs: dict[str, set[str]]

    @property
    def all_runs(self) -> set[str]:
        """The runs that trained on any of them."""
        return set[str]().union(*self.runs.values())


def find_learned(home: Home, store: Store, ids: Collection[str]) -> Learned:
    """The runs that had these examples. Reads the input of every run."""
    frozen: set[str] = set()
    learned: dict[str, set[str]] = {}
    words = [json.dumps(example).encode() for example in ids] if len(ids) <= FEW else []
    for snapshot in home.runs.glob("*/examples.jsonl"):
        if words:
            data = snapshot.read_bytes()
            if not any(word in data for word in words):
                continue
        name = snapshot.parent.name
        for _, example, split in snapshot_lines(snapshot):
            if example is not None and example in ids:
                frozen.add(name)
                if split != "heldout":  # by those it was judged, not trained
                    learned.setdefault(example, set()).add(name)
    for example in set(ids) - learned.keys():
        with suppress(NotFound):
            row = store.examples.get(example)
            if row.state == "used" and row.run_id is not None and row.run_id not in frozen:
                learned[example] = {row.run_id}  # somebody removed its run's directory
    return Learned(frozenset(frozen), learned)


def adapters_of(store: Store, runs: Collection[str]) -> list[AdapterRow]:
    """What these runs made and what was trained from that, by name; without what has been given up."""
    rows = store.adapters.list()
    names = {row.name for row in rows if row.run_id in runs}
    while more := {row.name for row in rows if row.parent in names} - names:
        names |= more
    left = [row for row in rows if row.name in names and not store.adapters.barred(row.sha256)]
    return sorted(left, key=lambda row: row.name)


def snapshot_lines(snapshot: Path) -> Iterator[tuple[str, str | None, Split]]:
    """Each line of a run's frozen input, with the example's id and what it was there for.

    Nobody but us writes it, yet a disk may spoil it: what cannot be read is left out.
    """
    for line in snapshot.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            example, split = entry.get("id"), entry.get("split", "train")
        except (ValueError, AttributeError, RecursionError):
            continue
        yield line, example if isinstance(example, str) else None, split
