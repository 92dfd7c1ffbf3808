"""What a run repeats of what was learned before, and whether it begins anew from the base model.

Going on from the adapter in service is quick, but run after run a little of what earlier ones taught
is lost. As long as people have taught no more than `[train] relearn` answers, a run begins from the base
model and learns all of them again beside what is new. Either way only what the adapter in service
has learned is repeated: what the owner took back stays taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.learning.batch import TAUGHT
from appliance.learning.switch import APPLIANCE
from appliance.sections import TrainConfig
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example


@dataclass(frozen=True)
class Past:
    """What the next run builds on.

    Attributes:
        runs: those that taught the adapter in service, or one before it.
        whole: all it knows comes from them, so it can be learned again.
        examples: how many examples they learned, as far as these may be repeated.
        taught: how many of them are answers of people.
    """

    runs: frozenset[str]
    whole: bool
    examples: int
    taught: int

    def anew(self, new: int, settings: TrainConfig) -> bool:
        """Whether a run begins from the base model, with `new` more answers of people."""
        return self.whole and self.taught + new <= settings.relearn

    def count(self, chosen: int, new: int, settings: TrainConfig) -> int:
        """How many earlier examples a run on `chosen` ones repeats.

        When it begins anew, enough for all that people taught, which are three quarters of a sample.
        """
        share = round(settings.replay_share * chosen)
        if self.anew(new, settings):
            share = max(share, self.taught + self.taught // 3 + 1)
        return min(share, self.examples)


def ancestor(store: Store, serving: str | None) -> str | None:
    """The adapter whose knowledge the next one takes over: the one in service.

    When the box fell back to the base model by itself (the adapter's file broke, or the owner changed the
    model), it is the one before; not so when a person took that out of service.
    """
    if serving is None:
        last = store.adapters.switches(1)
        if last and last[0].to is None and last[0].actor == APPLIANCE:
            return last[0].from_
    return serving


def start(store: Store, serving: str | None, base_hash: str) -> str | None:
    """What the next run goes on from: the adapter in service, or the newest of those that wait.

    These were made while what is in service was pinned, each from the one before. What they learned is not
    to be lost, nor learned twice.

    Args:
        store: where.
        serving: the adapter in service; None for base.
        base_hash: of the bundle in service.
    """
    newest, before = serving, ancestor(store, serving)
    for name, parent in store.adapters.waiting(base_hash):
        if parent == before:
            newest = before = name
    return newest


def past(store: Store, serving: str | None) -> Past:
    """What a run builds on that goes on from that adapter."""
    runs, whole = runs_behind(ancestor(store, serving), store.adapters.get)
    return Past(runs, whole, *store.examples.count_replayable(runs))


def runs_behind(name: str | None, find: Callable[[str], AdapterRow | None]) -> tuple[frozenset[str], bool]:
    """The runs behind an adapter (its own, and those of what it grew from), and whether these are all.

    Args:
        name: the adapter; None for base, behind which there are none.
        find: gives what is known of an adapter.
    """
    runs: set[str] = set()
    while name is not None:
        row = find(name)
        if row is None or row.run_id is None or row.run_id in runs:
            return frozenset(runs), False
        runs.add(row.run_id)
        name = row.parent
    return frozenset(runs), True


def count_new(examples: Sequence[Example]) -> int:
    """How many of them hold an answer of a person."""
    return sum(example.kind in TAUGHT for example in examples)
