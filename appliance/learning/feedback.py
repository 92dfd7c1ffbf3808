"""What feedback means: praise, correction or critique, and what it does to earlier examples.

Training harder on a wrong answer makes the model worse, so weight alone never makes an answer more
likely: only praise does that. A critique says that an answer is wrong without giving the right one;
see `learning/critique.py` for how it gets a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from appliance.config import Config
from appliance.errors import InvalidRequest, NotFound
from appliance.events import EventBus
from appliance.failpoints import failpoint
from appliance.learning.allowance import check_allowance
from appliance.learning.collector import Collector
from appliance.learning.critique import (
    accept_review,
    discard_review,
    draft_critique,
    mentions,
    stated_answer,
)
from appliance.store import Store
from appliance.store.completions import StoredCompletion
from appliance.store.example import MAX_WEIGHT
from appliance.store.examples import Example, Kind, NewExample
from appliance.store.normalise import normalise

__all__ = ["MAX_WEIGHT", "Feedback", "accept_review", "discard_review", "draft_critique", "give_feedback"]


@dataclass(frozen=True)
class Feedback:
    """A person's word on an answer.

    Attributes:
        query: the last user message; may be left out when `completion_id` names a stored completion.
        response: the answer it is about; same.
        weight: "normal", "medium", "high" or a number above 0.
        feedback: a note in the person's words.
        correction: the right answer.
        rating: "up" or "down".
        completion_id: the `id` of the completion the answer came in.
        device: the device that gives it: of what was said before it can name and replace its own only. None
            for the owner and who needs no key, who reach everything.
        teaches: the device may teach others: what it says replaces everybody's, and holds for all.
        source: where it was given ("api", "console", ...).
    """

    query: str | None = None
    response: str | None = None
    weight: str | float = "normal"
    feedback: str | None = None
    correction: str | None = None
    rating: str | None = None
    completion_id: str | None = None
    device: str | None = None
    source: str = "api"
    teaches: bool = False

    @property
    def reach(self) -> str | None:
        """The device whose examples alone it may replace; None for everybody's."""
        return None if self.teaches else self.device


@dataclass(frozen=True)
class _Exchange:
    query: str
    response: str
    messages: list[dict[str, Any]]
    finish_reason: Literal["stop", "length"]
    completion_id: str | None
    device: str | None


def give_feedback(
    store: Store,
    config: Config,
    feedback: Feedback,
    *,
    collector: Collector | None = None,
    events: EventBus | None = None,
) -> Example:
    """Store feedback and what follows from it, in one transaction; it is on disk when this returns.

    Args:
        store: where to.
        config: for the weights.
        feedback: the person's word.
        collector: waited for first, so that an answer given a moment ago is known.
        events: gets `feedback.given`.

    Returns:
        The new example. A critique's is in state "review", or "superseded" when a correction that
        waits to be learned answers it already.

    Raises:
        InvalidRequest: something is missing or makes no sense; `param` names the field.
        NotFound: `completion_id` is unknown, or of another device, and query and response were not given.
        Busy: the device has given as much feedback as it may for now.
        TooLarge: it is more than a device may give at all.
        StorageFull: the disk is full; nothing was stored.
    """
    rating = _rating(feedback.rating)
    weight = _weight(feedback.weight, config, feedback.device)
    note = _text(feedback.feedback, "feedback")
    correction = _text(feedback.correction, "correction")
    kind = _kind(feedback.weight, weight, config, note, correction, rating)
    if collector is not None and collector.paused is None:
        collector.flush(timeout=2.0)
    with store.transaction():
        exchange = _exchange(store, feedback)
        target = {"praise": exchange.response, "correction": correction}.get(kind)
        if kind == "praise" and not exchange.response.strip():
            raise InvalidRequest("An empty answer cannot be praised.", param="response")
        if kind == "correction" and target == exchange.response.strip():
            raise InvalidRequest("The correction is the answer it corrects.", param="correction")
        new = NewExample(
            kind=kind,
            state="review" if target is None else "pending",
            query=exchange.query,
            response=exchange.response,
            target=target,
            weight=weight,
            messages=exchange.messages,
            feedback=note,
            correction=correction,
            rating=rating,
            finish_reason=exchange.finish_reason if kind == "praise" else "stop",
            device=feedback.device or exchange.device,
            source=feedback.source,
            completion_id=exchange.completion_id,
            giver=feedback.device,
        )
        if feedback.device is not None:
            check_allowance(store, config.collect, feedback.device, new)
        example = store.examples.add(new)
        failpoint("feedback.added")
        example = _consequences(store, example, feedback.reach)
    failpoint("feedback.stored")
    if events is not None:
        pending = store.examples.count("pending")
        events.publish("feedback.given", id=example.id, kind=kind, state=example.state, pending=pending)
    return example


def _consequences(store: Store, example: Example, by: str | None) -> Example:
    examples = store.examples
    if example.kind == "praise":
        examples.accept_answer(example.query, example.response, by)
        examples.supersede_exchange(example.id, by)
        return example
    # A correction of form only ("paris" to "Paris") does not make the answer wrong.
    if example.target is None or normalise(example.target) != normalise(example.response):
        examples.reject_answer(example.query, example.response, example.id, by)
    if example.target is not None:
        examples.accept_answer(example.query, example.target, by)
        examples.supersede(example.query, example.id, by=by)
        return example
    answer = examples.correction_of(example.query, example.messages, by)
    answered = answer is not None and _answers(answer, example)
    examples.supersede(example.query, example.id, spare_corrections=answered, by=by)
    if answer is not None and answered:
        return examples.update(
            example.id, state="superseded", note=f"answered already by the correction {answer.id}"
        )
    return example


def _answers(correction: Example, critique: Example) -> bool:
    target = correction.target or ""
    if normalise(target) == normalise(critique.response):
        return False
    stated = stated_answer(critique.feedback or "")
    return stated is None or mentions(target, stated)


def _kind(
    given: str | float,
    weight: float,
    config: Config,
    note: str | None,
    correction: str | None,
    rating: Literal["up", "down"] | None,
) -> Kind:
    if correction is not None:
        return "correction"
    if rating is not None:
        return "praise" if rating == "up" else "critique"
    # With no rating a raised weight means that something was wrong, not that it was very good.
    raised = given != "normal" and weight > config.lora.normal_weight
    return "critique" if raised or given in ("medium", "high") or note is not None else "praise"


def _rating(rating: str | None) -> Literal["up", "down"] | None:
    if rating == "up":
        return "up"
    if rating == "down":
        return "down"
    if rating is None:
        return None
    raise InvalidRequest('`rating` is "up" or "down".', param="rating")


def _weight(weight: str | float, config: Config, device: str | None) -> float:
    names = {
        "normal": config.lora.normal_weight,
        "medium": config.lora.medium_weight,
        "high": config.lora.high_weight,
    }
    if isinstance(weight, str) and weight in names:
        return names[weight]
    # How hard the box learns is for its owner to say: a device goes up to what they call high.
    most = MAX_WEIGHT if device is None else min(MAX_WEIGHT, names["high"])
    if isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight <= most:
        return float(weight)
    whose = "" if device is None else " from a device"
    raise InvalidRequest(
        f'`weight`{whose} is "normal", "medium", "high" or a number above 0 and up to {most:g}.',
        param="weight",
    )


def _text(value: str | None, param: str) -> str | None:
    """A stripped text; None for a blank one, as forms send for a field left empty."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"`{param}` must be a text.", param=param)
    return (value or "").strip() or None


def _exchange(store: Store, feedback: Feedback) -> _Exchange:
    for param, value in (("query", feedback.query), ("response", feedback.response)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"`{param}` must be a text.", param=param)
    named = None
    if feedback.completion_id is not None:
        named = store.completions.get(feedback.completion_id, feedback.device)
        if named is None and (feedback.query is None or feedback.response is None):
            raise NotFound(
                f"There is no completion {feedback.completion_id!r} (any more): send query and response.",
                param="completion_id",
            )
    if named is not None and named.query:
        return _named_exchange(feedback, named)
    if feedback.query is None or not feedback.query.strip():
        raise InvalidRequest("`query` is missing: the question the answer was given to.", param="query")
    if feedback.response is None:
        raise InvalidRequest("`response` is missing: the answer this is about.", param="response")
    completion_id = feedback.completion_id
    if named is None and completion_id is not None and store.completions.get(completion_id) is not None:
        completion_id = None  # another device's: as good as unknown
    found = store.completions.find(feedback.query, feedback.response, feedback.device)
    if named is None and found is not None:
        return replace(_from_completion(found), completion_id=completion_id or found.id)
    return _Exchange(
        query=feedback.query,
        response=feedback.response,
        messages=[{"role": "user", "content": feedback.query}],
        finish_reason="stop",
        completion_id=completion_id,
        device=None,
    )


def _named_exchange(feedback: Feedback, named: StoredCompletion) -> _Exchange:
    for param, given, stored in (
        ("query", feedback.query, named.query),
        ("response", feedback.response, named.response),
    ):
        if given is not None and normalise(given) != normalise(stored):
            raise InvalidRequest(
                f"`{param}` is not that of completion {named.id}: leave it out, or name the right one.",
                param=param,
            )
    return _from_completion(named)


def _from_completion(completion: StoredCompletion) -> _Exchange:
    return _Exchange(
        query=completion.query,
        response=completion.response,
        messages=completion.messages or [{"role": "user", "content": completion.query}],
        finish_reason="length" if completion.finish_reason == "length" else "stop",
        completion_id=completion.id,
        device=completion.device,
    )
