"""What may go, and in which order.

Two questions are asked of each thing. Its *time* has come when the settings say that it is no longer kept;
it then goes with the next tidying. When the home is over its budget, or the disk nearly full, things go
before their time, the least missed first, until there is room.

Never among them, whatever the need: what is in service, what it can be rolled back to, what a run or a trial
uses, what waits to be judged or promoted; runs that hold examples which are not learned; backups that a
person made, and the newest two that the box made; a damaged database that was moved aside.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

from appliance.adapters.file import SUFFIX
from appliance.backup import archive
from appliance.backup.program import surplus
from appliance.backup.restore import asides
from appliance.config import Config
from appliance.home import Home
from appliance.learning.probation import load_probation
from appliance.learning.replay import ancestor, runs_behind
from appliance.learning.retry import load_retry
from appliance.learning.switch import HISTORY, lineage
from appliance.learning.train import checkpoint
from appliance.learning.trainer import CANDIDATE, EXAMPLES
from appliance.served import read_served
from appliance.storage.usage import size_of
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.keep import copies

Kind = Literal["scratch", "adapter", "run", "backup", "migration", "restored"]
DAY = 86_400.0
LEFT_SECONDS = 3600.0
"""What a run has left behind may belong to one that is just ending."""
LEAST_RUNS, LEAST_BACKUPS, LEAST_COPIES = 5, 2, 1
"""So many of the newest stay even when there is no room."""


@dataclass(frozen=True)
class Removable:
    """Something that may go.

    Attributes:
        kind: what it is.
        name: what it is called; of an adapter, its name.
        paths: the files and directories.
        size: bytes that are free then.
        at: when it was made, in Unix time.
        why: a few words for a person.
        due: its time has come; else it goes only for want of room.
    """

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    size: int
    at: float
    why: str
    due: bool


Removables: TypeAlias = list[Removable]


def find_removable(home: Home, store: Store, config: Config, serving: str | None) -> Removables:
    """All that may go, in the order in which it does. Reads the directories, and a few rows.

    Args:
        home: the home.
        store: its store.
        config: says what is kept.
        serving: the adapter in service; None for base.
    """
    now = time.time()
    rows = {row.name: row for row in store.adapters.list(reports=False)}
    kept = kept_adapters(home, store, config, serving, rows.values())
    return [
        found
        for found in chain(
            _scratch(home, store, now),
            _rejected(home, config, rows.values(), kept, now),
            _runs(home, store, config, rows, serving),
            _restored(home, config, now),
            _backups(home, config),
            _copies(home),
            _accepted(home, rows.values(), kept),
        )
        if found.size
    ]


def kept_adapters(
    home: Home, store: Store, config: Config, serving: str | None, rows: Collection[AdapterRow]
) -> set[str]:
    """The adapters whose files stay, whatever the need."""
    kept = {serving, *read_served(home).adapters.values()}
    line = lineage(store.adapters.switches(HISTORY))
    kept |= set([name for name in line if name is not None][-config.storage.keep_adapters :])
    if probation := load_probation(store.settings):
        kept |= {probation.adapter, probation.before}
    for run in store.runs.unfinished():
        kept |= {run.adapter, run.parent}
    for base in {row.base_hash for row in rows}:
        kept |= {name for name, _ in store.adapters.waiting(base)}
    good = [row for row in rows if row.state == "accepted" and row.withdrawn is None]
    newest = sorted(good, key=lambda row: row.created, reverse=True)[: config.storage.keep_adapters]
    kept |= {row.name for row in newest}
    kept |= {row.name for row in rows if row.state == "candidate"}
    return {name for name in kept if name is not None}


def _scratch(home: Home, store: Store, now: float) -> Iterator[Removable]:
    """Weights in progress, of runs that have ended; copies that were cut off."""
    for path in sorted(home.backups.glob(".keeping-*")):
        if now - path.stat().st_mtime > LEFT_SECONDS:
            yield _one("scratch", path.name, path, "left behind by a start that was cut off", due=True)
    going_on = {run.id for run in store.runs.unfinished()}
    for name in (f"*{checkpoint.NAME}", CANDIDATE):
        for path in sorted(home.runs.glob(f"run_*/{name}")):
            if path.parent.name not in going_on and now - path.stat().st_mtime > LEFT_SECONDS:
                label = f"{path.parent.name}/{path.name}"
                yield _one("scratch", label, path, "left behind by a run that has ended", due=True)


def _rejected(
    home: Home, config: Config, rows: Collection[AdapterRow], kept: set[str], now: float
) -> Iterator[Removable]:
    for row in sorted(rows, key=lambda row: row.created):
        failed = row.state == "rejected" or row.withdrawn is not None
        if failed and row.name not in kept and _file(home, row.name).is_file():
            age = (now - row.created) / DAY
            due = age > config.storage.rejected_days
            yield _adapter(home, row, "did not pass, or did not stand its probation", due=due)


def _accepted(home: Home, rows: Collection[AdapterRow], kept: set[str]) -> Iterator[Removable]:
    for row in sorted(rows, key=lambda row: row.created):
        good = row.state == "accepted" and row.withdrawn is None
        if good and row.name not in kept and _file(home, row.name).is_file():
            yield _adapter(home, row, "replaced by newer ones long ago", due=True)


def _runs(
    home: Home, store: Store, config: Config, rows: dict[str, AdapterRow], serving: str | None
) -> Iterator[Removable]:
    """Files of old runs: all of them, or all but the input where somebody may ask who learned from it.

    What is known of a run, its report and its figures, is in the store and stays. The input says which
    adapters learned from an example (`learning/learned.py`); without it an example names the run that used
    it up, which is enough once what that run and later ones made is gone.
    """
    needed = {run.id for run in store.runs.unfinished()} | store.examples.runs_that_hold()
    retry = load_retry(store.settings)
    if retry is not None and retry.run is not None:
        needed.add(retry.run)
    behind, _ = runs_behind(ancestor(store, serving), rows.get)
    taught = behind | {
        row.run_id for row in rows.values() if row.run_id is not None and _file(home, row.name).is_file()
    }
    places = sorted((path for path in home.runs.glob("run_*") if path.is_dir()), key=_age)
    for number, place in zip(range(len(places), 0, -1), places, strict=True):
        if place.name in needed or number <= LEAST_RUNS:
            continue
        keeps_input = place.name in taught
        paths = [path for path in sorted(place.iterdir()) if not (keeps_input and path.name == EXAMPLES)]
        if not keeps_input:
            paths = [place]
        if paths:
            what = "its log and curves; its input stays" if keeps_input else "its log, curves and input"
            yield Removable(
                "run",
                place.name,
                tuple(paths),
                sum(size_of(path) for path in paths),
                place.stat().st_mtime,
                what,
                number > config.storage.keep_runs,
            )


def _restored(home: Home, config: Config, now: float) -> Iterator[Removable]:
    for aside in reversed(asides(home)):
        due = now - aside.at > config.storage.restored_days * DAY
        yield _one("restored", aside.name, home.root / aside.name, "was here before a restore", due=due)


def _backups(home: Home, config: Config) -> Iterator[Removable]:
    names = [path.name for path in home.backups.glob(f"{archive.BOX}_*.tar.gz") if archive.stamp(path.name)]
    due = set(surplus(names, config.backup.keep, config.backup.keep_weeks))
    for name in sorted(names, key=archive.stamp)[:-LEAST_BACKUPS]:
        yield _one("backup", name, home.backups / name, "made by the box itself", due=name in due)


def _copies(home: Home) -> Iterator[Removable]:
    for path in copies(home.backups)[LEAST_COPIES:][::-1]:
        yield _one("migration", path.name, path, "a copy from before an upgrade", due=False)


def _age(place: Path) -> tuple[str, int]:
    """By the time in its name, and the number of it within that second."""
    stem, _, number = place.name.partition("-")
    return stem, int(number) if number.isdigit() else 1


def _file(home: Home, name: str) -> Path:
    return home.adapters / f"{name}{SUFFIX}"


def _adapter(home: Home, row: AdapterRow, why: str, *, due: bool) -> Removable:
    path = _file(home, row.name)
    return Removable("adapter", row.name, (path,), size_of(path), row.created, why, due)


def _one(kind: Kind, name: str, path: Path, why: str, *, due: bool) -> Removable:
    return Removable(kind, name, (path,), size_of(path), path.stat().st_mtime, why, due)
