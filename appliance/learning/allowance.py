"""How much feedback a device may give: the owner's disk and evenings are not for one device to fill.

The owner, and who needs no key, may give any amount.
"""

from __future__ import annotations

import time

from appliance.errors import FeedbackLimit, TooLarge
from appliance.sections import CollectConfig
from appliance.store import Store
from appliance.store.examples import NewExample, size_of

DAY = 86_400.0
MB = 1_000_000


def check_allowance(store: Store, config: CollectConfig, device: str, new: NewExample) -> None:
    """Let feedback of a device be stored, or not; in the transaction that stores it.

    Raises:
        TooLarge: this one alone is more than the device may give in a day.
        FeedbackLimit: with it, that would be too much for today, or for all that waits.
    """
    size = size_of(new)
    daily, waiting = config.feedback_daily_mb * MB, config.feedback_waiting_mb * MB
    if size > min(daily, waiting):
        raise TooLarge(
            f"This feedback takes {size / MB:.1f} MB; a device may give {min(daily, waiting) / MB:g} MB. "
            "Send less of the conversation."
        )
    count, today, waits = store.examples.given(device, time.time() - DAY)
    if count >= config.feedback_daily:
        raise FeedbackLimit(
            f"This device has given {count:,} pieces of feedback in 24 hours, which is as many as it may "
            "(collect.feedback_daily). Nothing was lost; try again later."
        )
    if today + size > daily:
        raise FeedbackLimit(
            f"This device has given {today / MB:.1f} MB of feedback in 24 hours, and may give "
            f"{daily / MB:g} MB (collect.feedback_daily_mb). Nothing was lost; try again later."
        )
    if waits + size > waiting:
        raise FeedbackLimit(
            f"{waits / MB:.1f} MB of feedback from this device wait to be learned or looked at, and "
            f"{waiting / MB:g} MB may (collect.feedback_waiting_mb). Try again when that has been learned."
        )
