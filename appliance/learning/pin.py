"""The pin: while it is set, only a person changes what is in service.

Runs go on, and what passes the gate meanwhile waits, accepted. It is whatever is in service that is
pinned, an adapter or base: a person who switches takes the pin along.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from appliance.store.settings import Settings

KEY = "learning.pin"


@dataclass(frozen=True)
class Pin:
    """Since when the box does not switch by itself."""

    since: float


def load_pin(settings: Settings) -> Pin | None:
    """The pin, if one is set."""
    text = settings.get(KEY)
    return None if text is None else Pin(**json.loads(text))


def save_pin(settings: Settings, pin: Pin | None) -> None:
    """Set it, over restarts too, or take it off."""
    if pin is None:
        settings.delete(KEY)
    else:
        settings.set(KEY, json.dumps(asdict(pin)))
