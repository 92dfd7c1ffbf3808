"""Memory: whether the model fits, for serving and for learning beside it."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, ok, warning
from appliance.doctor.shapes import shape_of
from appliance.doctor.sizing import MB, need
from appliance.hardware import read_hardware, resident
from appliance.learning.backend import decided
from appliance.learning.guard import SPARE

SMALLER = (
    "`shammah model recommend` says which models fit. Or give less to each conversation: [model] slots, "
    "context_length and prefix_cache_mb."
)


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """What the daemon takes already counts as available to it."""
    bundle = box.bundle
    if bundle is None:
        return
    hardware = read_hardware(box.standing.pid if box.standing else None)
    mine = resident(box.standing.pid if box.standing else None)
    train = decided(box.config.train, bundle)
    wanted = need(shape_of(bundle), box.config.model, train, train.backend)
    free = hardware.available + mine
    whose = "its control group may have" if hardware.limited else "this machine has"
    told = (
        f"{bundle.name} takes about {wanted.start / MB:,.0f} MB to serve, {wanted.serve / MB:,.0f} MB with "
        f"{box.config.model.slots} conversations"
    )
    there = (
        f"{whose} {hardware.memory / MB:,.0f} MB, of which {free / MB:,.0f} MB are free or the daemon's own"
    )
    if wanted.start > hardware.memory:
        yield error(f"{told}; {there}.", SMALLER)
    elif wanted.serve > free:
        yield warning(f"{told}; {there}.", f"End other programs. {SMALLER}")
    else:
        yield ok(f"{told}; {there}.")
    if not box.config.lora.enabled:
        return
    least = max(box.config.resources.min_free_memory_mb * 1024 * 1024, wanted.learn * SPARE)
    left = free - max(wanted.start, mine)
    if left < least:
        yield warning(
            f"A run needs about {wanted.learn / MB:,.0f} MB beside that and starts with {least / MB:,.0f} "
            f"MB free; "
            f"{max(left, 0) / MB:,.0f} MB are left.",
            "Runs are put off until there is more; see [resources] min_free_memory_mb, and [train] "
            "max_tokens.",
        )
    else:
        yield ok(
            f"A run takes about {wanted.learn / MB:,.0f} MB beside that, and {left / MB:,.0f} MB are left."
        )
