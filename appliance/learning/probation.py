"""The record of a probation: which adapter has to prove itself in service, and until when.

It is written in the transaction of the switch that begins it, and ended by that of any other switch:
what is on record is in service, after a power cut at any line.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace

from appliance.store.settings import Settings

KEY = "learning.probation"
FIRST_PROBES_MINUTES = 10.0
"""The probe set is repeated this long after the promotion, or after half of a shorter probation; each
further wait is twice as long."""


@dataclass(frozen=True)
class Probation:
    """An adapter in service that the box put there by itself.

    Attributes:
        adapter: its name.
        sha256: of its file.
        before: what was in service before; None for base.
        since: Unix time of the promotion.
        until: when it has stood the test.
        probe_at: when the probe set is to be repeated.
        probed: how often that has been done.
        failed: why it is about to be taken out of service.
        failed_by: what found it: "ratings", "probes" or "engine".
    """

    adapter: str
    sha256: str
    before: str | None
    since: float
    until: float
    probe_at: float
    probed: int = 0
    failed: str | None = None
    failed_by: str | None = None

    def begun_anew(self, now: float) -> Probation:
        """The record when the clock was set back since it began: as long again, from now on."""
        later = now - self.since
        return replace(self, since=now, until=self.until + later, probe_at=self.probe_at + later)

    def after_probes(self, now: float) -> Probation:
        """The record when the probe set has been repeated."""
        return replace(self, probed=self.probed + 1, probe_at=now + 2 * (self.probe_at - self.since))


def begin_probation(
    settings: Settings, adapter: str, sha256: str, before: str | None, minutes: float
) -> Probation:
    """Put an adapter on probation from now on; that of another one ends."""
    now = time.time()
    first = min(FIRST_PROBES_MINUTES, minutes / 2) * 60
    probation = Probation(adapter, sha256, before, now, now + minutes * 60, now + first)
    save_probation(settings, probation)
    return probation


def load_probation(settings: Settings) -> Probation | None:
    """The probation going on, if one is."""
    text = settings.get(KEY)
    return None if text is None else Probation(**json.loads(text))


def save_probation(settings: Settings, probation: Probation | None) -> None:
    """Keep it over restarts, or end it."""
    if probation is None:
        settings.delete(KEY)
    else:
        settings.set(KEY, json.dumps(asdict(probation)))
