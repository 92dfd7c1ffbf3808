"""What needs the owner: the things the box cannot settle by itself, most pressing first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # home.py shows them
    from appliance.backup.automatic import BackupState
    from appliance.backup.mend import Mended
    from appliance.console.home import Overview
    from appliance.served import Fallback
    from appliance.storage.upkeep import UpkeepState

Tone = Literal["bad", "warn", "info"]
DISK_SHARE = 0.95
RECENT_SECONDS = 24 * 3600.0
"""A run that ended badly is news for so long."""


@dataclass(frozen=True)
class Need:
    """One thing to look at.

    Attributes:
        tone: how pressing it is.
        text: what it is, a sentence or two.
        path: where it is dealt with.
        act: what the link there is called.
    """

    tone: Tone
    text: str
    path: str
    act: str


@dataclass(frozen=True)
class Safety:
    """How the box's own data is.

    Attributes:
        mended: a damaged database that was put right, and the owner has not said that he read it.
        upkeep: what the daily care found.
        backups: how the automatic ones go.
        config: what is wrong with `config.toml`.
    """

    mended: Mended | None
    upkeep: UpkeepState
    backups: BackupState
    config: tuple[str, ...]


def find_needs(
    now: float,
    overview: Overview,
    *,
    protected: bool,
    devices: int,
    fallback: Fallback | None,
    safety: Safety | None = None,
    errors: int = 0,
) -> list[Need]:
    """Go through what can be amiss.

    Args:
        now: Unix time.
        overview: what Home shows.
        protected: the owner's password is set.
        devices: keys that are good.
        fallback: a model that could not be served.
        safety: how the box's own data is.
        errors: what the doctor found last.
    """
    learning, res = overview.learning, overview.resources
    found: list[Need] = []

    def add(tone: Tone, text: str, path: str, act: str) -> None:
        found.append(Need(tone, text, path, act))

    if safety:
        found += _of_safety(safety)
    if fallback:
        text = f"{fallback.model} could not be served: the box went back to {fallback.instead}."
        add("bad", text, "/models", "Why")
    if errors:
        text = (
            "Something is wrong with the box." if errors == 1 else f"{errors} things are wrong with the box."
        )
        add("bad", text, "/doctor", "What, and what mends it")
    if overview.paused:
        add("bad", f"Nothing is collected: {overview.paused}", "/logs", "See the log")
    if res.disk_used > DISK_SHARE * res.disk_total:
        add(
            "bad",
            "The disk is nearly full. Old backups and adapters can go.",
            "/backup#disk",
            "What takes it",
        )
    if learning.review:
        drafts = "1 draft" if learning.review == 1 else f"{learning.review:,} drafts"
        add("warn", f"{drafts} to review before they are learned.", "/review", "Review")
    if learning.deferral:
        add("warn", f"A run is put off: {learning.deferral.reason}", "/runs", "Runs")
    last = learning.last_run
    if last and now - (last.ended or last.created) < RECENT_SECONDS and not learning.run:
        why = f": {last.reason}" if last.reason else "."
        if last.state == "rejected":
            add("warn", f"The last adapter was rejected{why}", f"/runs/{last.id}", "Why")
        elif last.state == "accepted" and learning.pin:
            add(
                "warn",
                "A new adapter passed every check, and waits for you.",
                f"/adapters/{last.adapter}" if last.adapter else f"/runs/{last.id}",
                "Look at it",
            )
        elif last.state == "failed":
            add("bad", f"The last run failed{why}", f"/runs/{last.id}", "What happened")
        elif last.state == "parked":
            add("bad", f"A batch was given up after several tries{why}", f"/runs/{last.id}", "Look at it")
    if learning.pin and learning.probation and learning.probation.failed:
        why = learning.probation.failed
        add("bad", f"The pinned adapter did not stand its probation: {why}", "/adapters", "Decide")
    elif learning.pin:
        add(
            "info",
            "What is in service is pinned: the box will not switch by itself.",
            "/adapters",
            "Unpin it",
        )
    elif learning.probation:
        add(
            "info",
            "The adapter in service is on probation: it goes back by itself when ratings get worse or what "
            "it knew is lost.",
            "/adapters",
            "Keep it, or not",
        )
    if not learning.enabled:
        add("info", "Learning by itself is switched off.", "/settings/lora", "Settings")
    if not overview.collecting:
        add("info", "Collecting from devices is switched off.", "/settings/collect", "Settings")
    if protected and not devices:
        add(
            "info", "No device has a key yet, so none but this machine can ask.", "/devices", "Give one a key"
        )
    return found


def _of_safety(safety: Safety) -> list[Need]:
    found = []
    if safety.upkeep.damaged:
        text = "The store is damaged in places, and what is new may not be kept. Serving goes on; a restart "
        found.append(Need("bad", text + "puts the last good state in place.", "/restart", "Restart"))
    if safety.mended:
        found.append(Need("bad", f"The store was damaged. {safety.mended.told}", "/backup#mended", "Look"))
    if safety.config:
        text = "config.toml cannot be used, so the box goes by other settings: "
        found.append(Need("bad", text + safety.config[0], "/settings/text", "Correct it"))
    if safety.backups.failed:
        text = f"The last automatic backup failed: {safety.backups.failed}"
        found.append(Need("bad", text, "/backup", "Backups"))
    if safety.upkeep.short:
        missing = max(1, safety.upkeep.short // 1_000_000)
        text = f"All that may go has gone, and {missing:,} MB are still missing for what the settings say."
        found.append(Need("warn", text, "/backup#disk", "What takes it"))
    return found
