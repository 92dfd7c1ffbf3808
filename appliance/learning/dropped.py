"""Adapter files that people put into the directory: known ones, new ones, vanished ones."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.adapters.file import SUFFIX, AdapterMeta, read_adapter
from appliance.adapters.registry import Registry
from appliance.config import Config
from appliance.errors import AdapterInvalid
from appliance.events import EventBus
from appliance.home import Home
from appliance.learning.child import Child, ChildFailed, ChildStopped, kill_orphans
from appliance.learning.judge import Judge
from appliance.learning.yielding import Yielding
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow, AdapterState

logger = logging.getLogger(__name__)

DIRECTORY = "dropped"
"""Under `runs/`: log and report of the gate for files that no run made."""
GONE = ("missing", "deleted")


class DroppedIn:
    """Keeps the store's table of adapters true to the directory."""

    def __init__(
        self,
        home: Home,
        config: Config,
        store: Store,
        registry: Registry,
        bundle: Bundle,
        events: EventBus,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """The gate yields to requests while `busy` says that there are some."""
        self._directory = home.runs / DIRECTORY
        self._store = store
        self._registry = registry
        self._bundle = bundle
        self._events = events
        self._child = Child(Yielding(busy, config.resources.busy_share))
        self._judge = Judge(home, config, registry, bundle, self._child)
        self.judging: str | None = None
        """The adapter that the gate is looking at."""

    @staticmethod
    def name(path: Path) -> str:
        """What the adapter in a file is called."""
        return path.name.removesuffix(SUFFIX)

    def close(self) -> None:
        """Stop judging; a file under judgement is judged at the next start."""
        self._child.stop()

    def reconcile(self) -> set[str]:
        """At the start: make the store say what the directory and its link say.

        Returns:
            The names of the adapters that are there.
        """
        kill_orphans(self._directory)
        there = set(self._registry.list())
        unfinished = {run.adapter for run in self._store.runs.unfinished()}
        for row in self._store.adapters.list():
            if row.name not in there and row.state not in GONE and row.name not in unfinished:
                self._store.adapters.set_state(row.name, "missing")
        serving = self._registry.current()
        last = self._store.adapters.switches(1)
        if serving != (last[0].to if last else None):
            self._store.adapters.record_switch(serving, "found at the start", "appliance")
        return there

    def known(self, path: Path) -> bool:
        """Whether this very file has been judged, or belongs to a run that takes care of it."""
        row = self._store.adapters.get(self.name(path))
        if row is None or row.state == "candidate" or row.state in GONE:
            return False
        try:
            return row.sha256 == _sha256(path)
        except OSError:
            return True  # gone again: that is reported by itself

    def vanished(self, path: Path) -> bool:
        """Note that a file is gone; says whether it was in service."""
        name = self.name(path)
        row = self._store.adapters.get(name)
        if row is not None and row.state not in GONE:
            self._store.adapters.set_state(name, "missing")
        last = self._store.adapters.switches(1)
        return bool(last) and last[0].to == name

    def judge(self, path: Path, serving: str | None) -> tuple[int, ...] | None:
        """Have the gate judge a file and keep the verdict.

        Args:
            path: the file.
            serving: the adapter to compare with.

        Returns:
            The probe's tokens if it passed, for the switch to it; else None.
        """
        name = self.name(path)
        if self.known(path):
            return None
        self.judging = name
        try:
            return self._judge_unknown(path, name, serving)
        finally:
            self.judging = None

    def _judge_unknown(self, path: Path, name: str, serving: str | None) -> tuple[int, ...] | None:
        logger.info("%s was found in the directory of adapters; the gate looks at it", name)
        self._events.publish("adapter.considered", adapter=name)
        try:
            adapter = read_adapter(path, self._bundle.manifest)
        except AdapterInvalid as error:
            self._reject_unread(path, error)
            return None
        row = (adapter.sha256, adapter.size, adapter.meta)
        if self._store.adapters.barred(adapter.sha256):
            report = _report("It learned from what has been forgotten.", "forgotten", "Forgotten examples")
            self._keep(name, *row, "rejected", report)
            self._rejected(name, report["summary"])
            return None
        self._keep(name, *row, "candidate", None)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        try:
            report = self._judge.judge(path, self._directory, current=serving if serving != name else None)
        except ChildStopped:
            return None  # it stays a candidate and is judged at the next start
        except ChildFailed as error:
            report = _report(str(error), "gate", "The gate itself")
        if report["passed"] and report.get("sha256") != adapter.sha256:
            return None  # changed meanwhile: the watcher reports it again
        self._keep(name, *row, "accepted" if report["passed"] else "rejected", report)
        if not report["passed"]:
            self._rejected(name, report["summary"])
            return None
        self._events.publish("adapter.accepted", adapter=name)
        row_now = self._store.adapters.get(name)
        if row_now is not None and row_now.withdrawn is not None:
            logger.warning("%s passed, but is left to a person: %s", name, row_now.withdrawn)
            return None
        return tuple(report["fingerprint"])

    def _reject_unread(self, path: Path, error: AdapterInvalid) -> None:
        try:
            size, sha256 = path.stat().st_size, _sha256(path)
        except OSError:
            return
        name = self.name(path)
        report = _report(error.message, "structure", "Structure of the file")
        self._keep(name, sha256, size, AdapterMeta("", 0, 0.0), "rejected", report)
        self._rejected(name, report["summary"])

    def _rejected(self, name: str, reason: str) -> None:
        logger.warning("%s was rejected: %s", name, reason)
        self._events.publish("adapter.rejected", adapter=name, run=None, reason=reason)

    def _keep(
        self,
        name: str,
        sha256: str,
        size: int,
        meta: AdapterMeta,
        state: AdapterState,
        report: dict[str, Any] | None,
    ) -> None:
        known = self._store.adapters.get(name)
        same = (
            known if known is not None and known.sha256 == sha256 else None
        )  # put back: where from is known
        self._store.adapters.upsert(
            AdapterRow(
                name=name,
                created=same.created if same else time.time(),
                sha256=sha256,
                size=size,
                base_hash=meta.base_hash,
                rank=meta.rank,
                run_id=same.run_id if same else None,
                parent=same.parent if same else meta.parent,
                state=state,
                report=report,
            )
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(message: str, check: str, title: str) -> dict[str, Any]:
    return {
        "passed": False,
        "summary": f"Rejected. {message}",
        "checks": [{"name": check, "title": title, "passed": False, "detail": message,
                    "measured": None, "reference": None, "limit": None}],
        "answers": [],
        "seconds": 0.0,
    }  # fmt: skip
