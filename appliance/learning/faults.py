"""What can be held against an adapter while it serves, all of it or a share of the requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

from appliance.engine.engine import Engine
from appliance.learning.ratings import balanced, count_votes, find_worse
from appliance.store import Store
from appliance.store.ratings import Vote

FAILURES = 3
"""Answers that the engine fails to give: one may be the box's fault, three are the adapter's."""
IN_USE_SECONDS = 7 * 86_400.0
"""A device that asked something in so long before an adapter came into service is one of those in use."""


@dataclass(frozen=True)
class Fault:
    """Why an adapter must not serve.

    Attributes:
        by: what found it.
        reason: for a person.
    """

    by: Literal["ratings", "probes", "engine"]
    reason: str


def engine_fault(engine: Engine, sha256: str) -> Fault | None:
    """Whether the engine has failed on these weights too often since its start."""
    failures = engine.failures(sha256)
    if failures < FAILURES:
        return None
    return Fault("engine", f"The engine failed {failures} times to give an answer with it.")


def rating_fault(
    store: Store, chance: float, adapter: str, before: str | None, since: float, until: float = inf
) -> Fault | None:
    """Whether people like its answers less than those of the adapter before.

    Args:
        store: where the answers and the words on them are.
        chance: how often an equally good one may be taken for worse.
        adapter: whose answers, since `since`.
        before: those of this one are compared, given before `until`; None for base.
        since: Unix time.
        until: Unix time.
    """
    ratings = store.ratings
    # The only device of a box is heard; one of several does not decide for the others.
    several = ratings.askers(since - IN_USE_SECONDS) > 1
    heard: Callable[[list[Vote]], list[Vote]] = balanced if several else list
    now = count_votes(ratings.answers(adapter, since), heard(ratings.votes(adapter, since)))
    then = count_votes(ratings.answers(before, before=until), heard(ratings.votes(before, before=until)))
    worse = find_worse(now, then, chance)
    return None if worse is None else Fault("ratings", worse)
