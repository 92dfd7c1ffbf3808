"""The owner changes what an example teaches while it waits."""

from __future__ import annotations

from typing import Any

from appliance.errors import InvalidRequest
from appliance.store import Store
from appliance.store.example import MAX_WEIGHT, Example
from appliance.store.examples import REVIEWED
from appliance.store.normalise import normalise


def edit_example(store: Store, example_id: str, target: str, weight: float) -> Example:
    """Give a pending example another target or weight.

    To write another answer under what the model said is to correct it: what was collected or praised
    becomes a correction, with all that follows from one for earlier examples and for the answer it rejects.

    Raises:
        InvalidRequest: the target is missing, or the very answer that was rejected; or there is no such
            weight. Nothing was changed.
        NotFound: there is no such example.
        Conflict: it is not pending any more.
    """
    target = target.strip()
    if not target:
        raise InvalidRequest("Write the answer it should learn.", param="target")
    if not 0 < weight <= MAX_WEIGHT:
        raise InvalidRequest(f"The weight is a number above 0 and up to {MAX_WEIGHT:g}.", param="weight")
    with store.transaction():
        example = store.examples.get(example_id)
        fields: dict[str, Any] = {"weight": float(weight)}
        if target != (example.target or "").strip():
            fields |= _correct(store, example, target)
        return store.examples.update(example_id, expect="pending", **fields)


def _correct(store: Store, example: Example, target: str) -> dict[str, Any]:
    """What another target changes of an example; the rest of what follows from it is done here."""
    same = normalise(target) == normalise(example.response)
    # A correction may be of form only ("paris" to "Paris").
    if same and (example.kind == "critique" or target == example.response.strip()):
        raise InvalidRequest("This is the answer that was rejected.", param="target")
    if not same:
        store.examples.reject_answer(example.query, example.response, example.id)
    store.examples.accept_answer(example.query, target)
    if example.kind == "critique":
        return {"target": target, "note": REVIEWED}
    store.examples.supersede(example.query, example.id)
    # The answer it had may have been cut off; this one has its end.
    return {
        "kind": "correction",
        "target": target,
        "correction": target,
        "rating": "down",
        "finish_reason": "stop",
    }
