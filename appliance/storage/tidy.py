"""Tidying: removing what may go, so that a cut at any line leaves something that can be tidied again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from appliance.backup.restore import delete_aside
from appliance.config import Config
from appliance.errors import Conflict, NotFound, ShammahError
from appliance.files import fsync_dir, remove_durably
from appliance.home import Home
from appliance.learning.forget import KEY as FORGETTING
from appliance.learning.switch import APPLIANCE
from appliance.storage.rules import DAY, Removable, find_removable
from appliance.storage.usage import measure
from appliance.store import Store

logger = logging.getLogger(__name__)

MB = 1_000_000
_GOING = ".gone-"

RemoveAdapter: TypeAlias = Callable[[str], None]
"""Deletes an adapter's file by the rules of `Switch.remove`; raises `Conflict` when it is needed."""


@dataclass(frozen=True)
class Tidied:
    """What was removed, or would be.

    Attributes:
        removed: in order.
        size: bytes of it.
        short: bytes that are still missing for budget and free disk: there is nothing more that may go.
        answers: rows of the store, likewise.
        audit: likewise.
    """

    removed: tuple[Removable, ...]
    size: int
    short: int
    answers: int = 0
    audit: int = 0


def plan(home: Home, store: Store, config: Config, serving: str | None) -> Tidied:
    """What a tidying would remove now: what is due, and for want of room what comes next."""
    found = find_removable(home, store, config, serving)
    wanted = lacking(home, config)
    due = [item for item in found if item.due]
    freed = sum(item.size for item in due)
    for item in found:
        if freed >= wanted:
            break
        if not item.due:
            due.append(item)
            freed += item.size
    return Tidied(tuple(due), freed, max(0, wanted - freed))


def lacking(home: Home, config: Config) -> int:
    """Bytes that must go to keep the budget and to leave the disk some room."""
    wanted, used = config.storage, measure(home)
    over = used.counted - wanted.budget_mb * MB if wanted.budget_mb else 0
    return max(0, over, wanted.min_free_mb * MB - used.free)


def tidy(
    home: Home,
    store: Store,
    config: Config,
    serving: str | None,
    remove_adapter: RemoveAdapter,
    actor: str = APPLIANCE,
) -> Tidied:
    """Remove what may go, one thing after the other. Fine to be cut off, and to be done again.

    Args:
        home: the home.
        store: its store.
        config: says what is kept.
        serving: the adapter in service; None for base.
        remove_adapter: deletes an adapter's file.
        actor: who wants it, for the audit trail.

    Raises:
        Conflict: something is being forgotten just now, which has to end first.
        StorageReadOnly: the disk takes no change.
    """
    if store.settings.get(FORGETTING) is not None:
        raise Conflict("What is to be forgotten is not out of all files yet. Restart the box to finish that.")
    _clear_going(home)
    wanted = plan(home, store, config, serving)
    done = []
    for item in wanted.removed:
        try:
            _remove(home, item, remove_adapter)
        except (NotFound, Conflict, FileNotFoundError) as error:  # needed after all, or gone
            logger.info("%s stays: %s", item.name, error)
            continue
        logger.info("Removed %s (%s, %.1f MB)", item.name, item.why, item.size / MB)
        done.append(item)
    answers, audit = _forget_rows(store, config)
    tidied = Tidied(tuple(done), sum(item.size for item in done), lacking(home, config), answers, audit)
    if done or answers or audit:
        _note(store, actor, summary(tidied))
    return tidied


def as_json(tidied: Tidied) -> dict[str, Any]:
    """For programs: without paths, which mean something on this machine only."""
    items = [
        {name: getattr(item, name) for name in ("kind", "name", "size", "at", "why", "due")}
        for item in tidied.removed
    ]
    counts = {"answers": tidied.answers, "audit": tidied.audit}
    return {"removed": items, "size": tidied.size, "short": tidied.short, **counts}


def summary(tidied: Tidied) -> dict[str, Any]:
    """Counts for event and audit trail."""
    counts: dict[str, int] = {}
    for item in tidied.removed:
        counts[item.kind] = counts.get(item.kind, 0) + 1
    counts |= {name: count for name, count in (("answers", tidied.answers), ("audit", tidied.audit)) if count}
    return {"removed": counts, "mb": round(tidied.size / MB, 1), "short_mb": round(tidied.short / MB, 1)}


def _note(store: Store, actor: str, detail: dict[str, Any]) -> None:
    try:
        store.audit.add(actor, "storage.tidied", detail)
    except ShammahError as error:
        logger.warning("Not in the audit trail (%s): tidied %s", error.message, detail)


def _forget_rows(store: Store, config: Config) -> tuple[int, int]:
    wanted = config.storage
    answers = store.completions.forget_before(wanted.answers_days * DAY) if wanted.answers_days else 0
    audit = store.audit.forget_before(wanted.audit_days * DAY) if wanted.audit_days else 0
    return answers, audit


def _remove(home: Home, item: Removable, remove_adapter: RemoveAdapter) -> None:
    if item.kind == "adapter":
        remove_adapter(item.name)
    elif item.kind == "restored":
        delete_aside(home, item.name)
    else:
        for path in item.paths:
            _remove_path(path)


def _remove_path(path: Path) -> None:
    if not path.is_dir():
        remove_durably(path)
        return
    # Cut off in the middle, a half of it must not look like the whole.
    going = path.with_name(f"{_GOING}{path.name}")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    fsync_dir(path.parent)
    shutil.rmtree(going)


def _clear_going(home: Home) -> None:
    for path in home.runs.glob(f"{_GOING}*"):
        shutil.rmtree(path, ignore_errors=True)
