"""What a run repeats of what was learned before, and whether it begins anew from the base model.

Going on from the adapter in service is quick, but run after run a little of what earlier ones taught
is lost. As long as people have taught no more than `[train] relearn` answers, a run begins from the base
model and learns all of them again beside what is new. Either way only what the adapter in service
has learned is repeated: what the owner took back stays taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.config import TrainConfig
from appliance.learning.batch import TAUGHT
from appliance.learning.switch import APPLIANCE
from appliance.store import Store
from appliance.store.examples import Example


@dataclass(frozen=True)
class Past:
    """What the next run builds on.

    Attributes:
        adapter: whose knowledge it is; None for nothing but the base model.
        runs: those that taught it, to the adapter itself or to one before it.
        whole: all it knows comes from them, so it can be learned again.
        examples: how many examples they learned, as far as these may be repeated.
        taught: how many of them are answers of people.
    """

    adapter: str | None
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


def past(store: Store, serving: str | None) -> Past:
    """What the adapter in service knows.

    When the box fell back to the base model by itself (the adapter's file broke, or the owner changed the
    model), it is what the adapter before knew; not so when a person took that out of service.
    """
    adapter = serving
    if serving is None:
        last = store.adapters.switches(1)
        if last and last[0].to is None and last[0].actor == APPLIANCE:
            adapter = last[0].from_
    runs: set[str] = set()
    whole, name = True, adapter
    while name is not None:
        row = store.adapters.get(name)
        if row is None or row.run_id is None or row.run_id in runs:
            whole = False
            break
        runs.add(row.run_id)
        name = row.parent
    return Past(adapter, frozenset(runs), whole, *store.examples.count_replayable(runs))


def count_new(examples: Sequence[Example]) -> int:
    """How many of them hold an answer of a person."""
    return sum(example.kind in TAUGHT for example in examples)
