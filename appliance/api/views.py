"""What a device gets to see of learning: where it stands, and counts of what the device itself said.

Reports, reasons and queues hold what all devices asked and were told, word for word, and even a count tells
one that another was busy. So what a device sees is listed here, field by field: one that is added elsewhere
does not show by itself. The owner, and who needs no key, see everything.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from appliance.learning.service import LearningStatus
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.keys import Device
from appliance.store.runs import Run

_STATUS = ("enabled", "threshold")
_PROGRESS = ("id", "phase", "fraction")
_RUN = ("id", "created", "started", "ended", "state", "adapter", "parent")
_ADAPTER = ("name", "created", "sha256", "size", "base_hash", "rank", "run_id", "parent", "state")


def status_for(device: Device | None, status: LearningStatus, store: Store, timeout: float) -> dict[str, Any]:
    """Where learning stands.

    Args:
        device: who asks; None for one that may see everything.
        status: all of it.
        store: for counts of the device's own.
        timeout: seconds that the oldest example waits at most.
    """
    if device is None:
        return asdict(status)
    counts, oldest = store.examples.counts_of(device.id), store.examples.oldest_pending(device.id)
    return {
        **_only(_STATUS, status),
        "pending": counts["pending"],
        "review": counts["review"],
        "timeout_at": oldest + timeout if status.enabled and oldest is not None else None,
        "run": _only(_PROGRESS, status.run) if status.run else None,
        "last_run": run_for(device, status.last_run, store) if status.last_run else None,
    }


def run_for(device: Device | None, run: Run, store: Store) -> dict[str, Any]:
    """A run; to a device without its report, and with the number of the device's own examples in it."""
    if device is None:
        return asdict(run)
    return {**_only(_RUN, run), "examples": store.examples.count_of_run(run.id, device.id)}


def adapter_for(device: Device | None, row: AdapterRow) -> dict[str, Any]:
    """An adapter; to a device without its report."""
    return asdict(row) if device is None else _only(_ADAPTER, row)


def pending_for(device: Device | None, store: Store) -> int:
    """How many examples wait to be learned: all, or the device's own."""
    return (
        store.examples.count("pending") if device is None else store.examples.counts_of(device.id)["pending"]
    )


def _only(names: tuple[str, ...], thing: object) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}
