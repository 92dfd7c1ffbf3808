"""Forgetting: the text of an example leaves the box, and on request what was learned from it too.

The order makes a power cut harmless at any line. First, if asked for, the adapters that learned from
it leave service by an ordinary switch. Then one transaction deletes the text from the store and notes
which files still hold it. `finish_forgetting` rewrites or removes these, which it may do again and
again, and takes the note away last; it runs at every start.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.adapters.file import SUFFIX
from appliance.errors import Conflict, NotFound
from appliance.failpoints import failpoint
from appliance.files import remove_durably, write_atomic
from appliance.home import Home
from appliance.learning.learned import adapters_of, find_learned, snapshot_lines
from appliance.store import Store
from appliance.store.forgotten import Traces
from appliance.store.mirror import QueueMirror

KEY = "learning.forgetting"
WITHOUT_TEXT = frozenset({"examples.jsonl", "report.json", "train.json", "gate.json", "metrics.jsonl"})
"""Files of a run that hold no text of users, or none when they have been cleaned."""
LEFTOVER_SECONDS = 10.0
"""A temporary file older than this was left behind by a crash."""

StepBack = Callable[[Collection[str]], Awaitable[str | None]]
"""`step_back(adapters)`: puts in service what served before any of these; says what that is."""


@dataclass(frozen=True)
class Wish:
    """What is to be forgotten: examples by id, or all of the devices of a name."""

    ids: tuple[str, ...] = ()
    device: str | None = None
    retrain: bool = False


@dataclass(frozen=True)
class Forgotten:
    """What was done.

    Attributes:
        examples: ids of the examples that are gone: those named, and others with the same text.
        completions: how many stored answers are gone.
        adapters: those that learned from them.
        in_service: the one of these that serves on, if one does.
        retrained: these adapters were taken out of service for good and their files removed.
        requeued: how many other examples wait to be learned again because of that.
    """

    examples: tuple[str, ...]
    completions: int
    adapters: tuple[str, ...]
    in_service: str | None
    retrained: bool
    requeued: int


@dataclass(frozen=True)
class Foreseen:
    """What forgetting would do; see `Forgotten`, of which it counts the examples and completions."""

    examples: int
    completions: int
    adapters: tuple[str, ...]
    in_service: str | None


@dataclass(frozen=True)
class _Plan:
    """Where the text is.

    Attributes:
        traces: in the store.
        frozen: the runs whose `examples.jsonl` has it.
        learned: for each example, the runs that trained on it.
        adapters: what these runs made, and what was trained from that.
        runs: the runs that made these.
    """

    traces: Traces
    frozen: frozenset[str]
    learned: dict[str, set[str]]
    adapters: tuple[str, ...]
    runs: frozenset[str]


async def forget(
    home: Home, store: Store, wish: Wish, *, serving: str | None, step_back: StepBack, actor: str
) -> Forgotten:
    """Forget examples; when this returns their text is in no file of the home but what adapters keep.

    The caller sees to it that no run begins meanwhile.

    Args:
        home: the home.
        store: its store.
        wish: what is to be forgotten. Naming what has been forgotten already is fine: this finishes
            what a crash interrupted, or retrains later.
        serving: the adapter in service.
        step_back: how to put an earlier one in service.
        actor: who asked, for the audit.

    Raises:
        NotFound: there is no such example or device; nothing was forgotten.
        Conflict: a run is going on.
        StorageFull: the disk is full. If it happens late, the text is out of the queue already, and the
            next start or call goes on.
    """
    await asyncio.to_thread(_refuse_while_running, store)
    plan = await asyncio.to_thread(_plan, home, store, wish)
    retrain = wish.retrain and bool(plan.adapters)
    if retrain and serving in plan.adapters:
        serving = await step_back(plan.adapters)
        failpoint("forget.back")
    requeued = await asyncio.to_thread(_commit, store, wish, plan, retrain, actor)
    failpoint("forget.committed")
    await asyncio.to_thread(finish_forgetting, home, store)
    return Forgotten(
        examples=tuple(sorted(plan.traces.examples)),
        completions=len(plan.traces.completions),
        adapters=plan.adapters,
        in_service=serving if serving in plan.adapters else None,
        retrained=retrain,
        requeued=requeued,
    )


def foresee(home: Home, store: Store, wish: Wish, serving: str | None) -> Foreseen:
    """What `forget` would do. Takes as long as finding all that holds the text.

    Raises:
        NotFound: there is no such example or device.
    """
    plan = _plan(home, store, wish)
    return Foreseen(
        examples=len(plan.traces.examples),
        completions=len(plan.traces.completions),
        adapters=plan.adapters,
        in_service=serving if serving in plan.adapters else None,
    )


def finish_forgetting(home: Home, store: Store) -> None:
    """Take out of files what is out of the store, if something is due. May be repeated."""
    note = store.settings.get(KEY)
    if note is None:
        return
    due = json.loads(note)
    for run in due["runs"]:
        _clean_run(home.runs / run, set(due["examples"]))
        failpoint("forget.cleaned")
    for name in due["adapters"]:
        remove_durably(home.adapters / f"{name}{SUFFIX}")
        failpoint("forget.removed")
    QueueMirror(store, home).flush()
    for leftover in home.root.glob(f".{home.queue.name}.*"):
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                leftover.unlink()
    store.database.scrub()
    failpoint("forget.scrubbed")
    store.settings.delete(KEY)


# -- what there is to do ----------------------------------------------------------------------


def _refuse_while_running(store: Store) -> None:
    for run in store.runs.unfinished():
        raise Conflict(
            f"{run.id} is going on, and may hold what is to be forgotten: try again when it has ended, or "
            "cancel it first."
        )


def _plan(home: Home, store: Store, wish: Wish) -> _Plan:
    traces, earlier = _find(store, wish)
    learned = find_learned(home, store, traces.examples)
    # What was given up in an earlier call is done with.
    left = adapters_of(store, earlier | learned.all_runs)
    made = frozenset(row.run_id for row in left if row.run_id is not None)
    return _Plan(traces, learned.frozen, learned.runs, tuple(row.name for row in left), made)


def _find(store: Store, wish: Wish) -> tuple[Traces, set[str]]:
    """What to delete, and the runs that learned from what was deleted in an earlier call."""
    if wish.device is not None:
        devices = {device.id for device in store.keys.list() if wish.device in (device.id, device.name)}
        if not devices:
            raise NotFound(f"There is no device {wish.device!r}.", param="device")
        return store.forgotten.traces_of_devices(devices), store.forgotten.runs(devices=devices)
    done = store.forgotten.known(wish.ids)
    there = set(wish.ids) - done
    for example in sorted(there):
        store.examples.get(example)
    return store.forgotten.traces(there), store.forgotten.runs(done)


def _commit(store: Store, wish: Wish, plan: _Plan, retrain: bool, actor: str) -> int:
    """The store's part, in one step; says how many examples are in the queue again."""
    touched = plan.frozen | plan.runs
    with store.transaction():
        if store.runs.unfinished():
            raise Conflict("A run has begun just now; try again when it has ended, or cancel it first.")
        store.forgotten.erase(plan.traces, plan.learned)
        for run in sorted(touched):
            with suppress(NotFound):
                row = store.runs.get(run)
                # A program's last words may quote what it failed at.
                reason = re.sub(r"(It ended with code \d+):.*", r"\1.", row.reason or "", flags=re.DOTALL)
                store.runs.update(run, report=_without_answers(row.report), reason=reason or None)
        for adapter in store.adapters.list():
            if adapter.run_id in touched and adapter.report is not None:
                store.adapters.set_state(adapter.name, adapter.state, _without_answers(adapter.report))
        requeued = 0
        if retrain:
            store.adapters.bar(plan.adapters)
            requeued = store.examples.requeue(plan.runs)
        note: dict[str, Any] = {
            "examples": sorted(plan.traces.examples),
            "runs": sorted(touched),
            "adapters": plan.adapters if retrain else [],
        }
        pending = store.settings.get(KEY)
        if pending is not None:  # cut off before: what was due then still is
            for name, values in json.loads(pending).items():
                note[name] = sorted({*note[name], *values})
        store.settings.set(KEY, json.dumps(note))
        detail = {"asked": wish.ids, "device": wish.device, "examples": len(plan.traces.examples)}
        store.audit.add(actor, "examples.forget", {**detail, "adapters": plan.adapters, "retrain": retrain})
    return requeued


# -- files ------------------------------------------------------------------------------------


def _clean_run(directory: Path, examples: Collection[str]) -> None:
    """Take the text of these examples out of the files of a run that has ended."""
    snapshot, report = directory / "examples.jsonl", directory / "report.json"
    if snapshot.is_file():
        kept = [line for line, example, _ in snapshot_lines(snapshot) if example not in examples]
        left = "".join(f"{line}\n" for line in kept).encode()
        if left != snapshot.read_bytes():  # what cannot be read goes, too: it may be just that
            write_atomic(snapshot, left)
    if report.is_file():
        try:
            found = _without_answers(json.loads(report.read_text(encoding="utf-8")))
            text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
            text.encode()
        except (ValueError, TypeError, RecursionError):
            report.unlink()  # cut off by a crash, or spoilt: nobody can read it
        else:
            write_atomic(report, text)
    # Anything else may hold it: the log what a library said of its input when it failed, a candidate that a
    # cancelled run left what was learned, temporary files of a crash all of it.
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        if path.name not in WITHOUT_TEXT and path.is_file():
            path.unlink()


def _without_answers(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """A report without the questions it quotes and how the model answered them before and after."""
    return None if report is None else {**report, "answers": []}
