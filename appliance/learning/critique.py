"""From "Wrong answer! Should be 4" to a target worth learning.

The model drafts the answer its owner asked for, and the draft is checked: one that cannot be right is not
even shown. But a draft is the word of the model that was wrong a moment ago, so nothing is learned from it
before a person has said yes: the critique stays in review, with the draft as its target and a note that
starts with "draft:", until they accept it or write another. One that was learned unasked taught a box that
2 + 2 = 5.

A number that the note itself states word for word ("Should be 4") is no draft: it is what the person said,
and is learned as the correction it is.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from appliance.errors import Conflict, InvalidRequest, ShammahError
from appliance.store import Store
from appliance.store.examples import DRAFT_NOTE, REVIEWED, Example
from appliance.store.normalise import normalise

log = logging.getLogger(__name__)

Generate = Callable[[list[dict[str, Any]]], Awaitable[str]]

_STATED = re.compile(
    r"\b(?:should(?:\s+have)?\s+be(?:en)?|(?:correct|right|real)\s+(?:answer|one)\s*(?:is|was|:)"
    r"|(?:the\s+)?answer\s+(?:is|was|:)|must\s+be|it(?:'s|\u2019s|\s+is|\s+was)\s+actually|actually\s+(?:it(?:'s|\u2019s|\s+is)\s+)?)"
    r"\s*[:=]?\s*(?P<answer>[^\n;!?]{1,200}?)(?=[.;!?](?:\s|$)|,?\s+(?:not|and\s+not|instead)\b|$)",
    re.IGNORECASE | re.MULTILINE,
)
# "Should be shorter" says how to answer, not what.
_MANNER = re.compile(
    r"^(?:a\s+(?:bit|little)\s+)?(?:more|less|not|able|about|in|at|on|with|without|very|much|too|so|simply|just|"
    r"written|given|said|answered|shown|formatted|"
    r"shorter|longer|better|clearer|nicer|simpler|briefer|friendlier|politer|kinder|easier)\b",
    re.IGNORECASE,
)
_LONGEST_STATED = 12
# A number, with the sign or the short unit of a measure. "2 lines" says how to answer, not what.
_QUANTITY = re.compile(
    r"^[-+\u00b1$\u20ac\u00a3]?\d[\d.,:/]*\s?(?:[%\u00b0$\u20ac\u00a3][CF]?|[^\W\d_]{1,3}\.?)?$"
)
_TALKS_ABOUT_ITSELF = re.compile(
    r"^(?:i(?:'m|\u2019m|\s+am)?\s+(?:very\s+|so\s+)?(?:sorry|apologi[sz]e)|sorry|apologies|my\s+apologies|my\s+mistake|"
    r"you(?:'re|\u2019re|\s+are)\s+(?:absolutely\s+)?right|thank\s+you|thanks)\b",
    re.IGNORECASE,
)
_SHORT_WORDS = 6


def stated_answer(note: str) -> str | None:
    """The answer a note gives in so many words: "4" for "Wrong! Should be 4". None when it gives none."""
    # With no two spaces in a row the pattern has one way to match; in a long run it would try all of them.
    lines = (" ".join(line.split()) for line in note.splitlines())
    for match in _STATED.finditer("\n".join(line for line in lines if line)):
        answer = match["answer"].strip(" \t,.\"'`*\u201c\u201d")
        if answer and len(answer.split()) <= _LONGEST_STATED and not _MANNER.match(answer):
            return answer
    return None


def mentions(text: str, phrase: str) -> bool:
    """Whether `text` contains `phrase` as whole words, after normalisation."""
    wanted = normalise(phrase)
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalise(text)) is not None


def check_draft(example: Example, draft: str) -> str | None:
    """Why a draft must not be learned; None when it may be.

    Args:
        example: the critique.
        draft: the target proposed for it.
    """
    answer, rejected = normalise(draft), normalise(example.response)
    if not answer:
        return "it is empty"
    if answer == rejected:
        return "it repeats the rejected answer"
    stated = stated_answer(example.feedback or "")
    if stated is not None and not mentions(draft, stated):
        return f"it does not say {stated!r}, as the note does"
    if _TALKS_ABOUT_ITSELF.match(draft.strip()):
        return "it talks about the mistake instead of answering"
    if example.feedback and answer == normalise(example.feedback):
        return "it repeats the note"
    if _same_claim(answer, rejected, example.query, stated):
        return "it says the same as the rejected answer"
    return None


def _same_claim(answer: str, rejected: str, query: str, stated: str | None) -> bool:
    """Whether one of the two texts is just the other one with words around it."""
    inner, outer = sorted((answer, rejected), key=len)
    if not mentions(outer, inner) or mentions(query, inner):
        return False
    if inner == rejected:
        # "It is 4, not 5" still teaches 5; a long answer that was extended is a fair draft.
        return len(rejected.split()) <= _SHORT_WORDS and not (
            stated is not None and mentions(stated, rejected)
        )
    # "5" out of "The answer is 5": only the note's own answer can tell that this is the right part.
    return stated is None


async def draft_critique(store: Store, example: Example, generate: Generate) -> Example:
    """Let the model draft the target of a critique in review, and check the draft.

    Args:
        store: where the critique is.
        example: the critique.
        generate: gives the model's answer to a list of messages.

    Returns:
        The critique as it is now: in review with a drafted target and a note that starts with "draft:", or
        without one and a note that says why; or pending, when the note itself states a number. Unchanged
        when a person or newer feedback has dealt with it.
    """
    if example.state != "review" or example.target is not None:
        return example
    stated = stated_answer(example.feedback or "")
    # A number a person has written down needs no better words to be learned.
    if stated is not None and _QUANTITY.match(stated) and check_draft(example, stated) is None:
        return await _settle(store, example, target=stated, note="taken from the note", state="pending")
    if example.feedback is None:
        return await _settle(store, example, note="No note says what is wrong: write the right answer.")
    reason = draft = ""
    for messages in _prompts(example):
        try:
            draft = (await generate(messages)).strip()
        except ShammahError as error:
            return await _settle(store, example, note=f"No draft could be made: {error.message}")
        problem = await asyncio.to_thread(check_draft, example, draft)
        if problem is None:
            note = f"{DRAFT_NOTE} by the model, from the note"
            return await _settle(store, example, target=draft, note=note)
        reason = problem
    return await _settle(store, example, note=f"The draft was not good, {reason}: {draft}")


def accept_review(store: Store, example_id: str, target: str | None = None) -> Example:
    """The owner accepts the drafted target of a critique, or writes their own; it becomes trainable.

    It is their word then: what others said of the same question before is replaced by it.

    Raises:
        InvalidRequest: there is no target, or it is the rejected answer.
        Conflict: the critique is not waiting for review any more.
    """
    with store.transaction():
        example = _in_review(store, example_id)
        text = (target if target is not None else example.target or "").strip()
        if not text:
            raise InvalidRequest("Write the answer that should have been given.", param="target")
        if normalise(text) == normalise(example.response):
            raise InvalidRequest("This is the answer that was rejected.", param="target")
        store.examples.accept_answer(example.query, text)
        store.examples.supersede(example.query, example_id)
        return store.examples.update(example_id, target=text, state="pending", note=REVIEWED)


def discard_review(store: Store, example_id: str) -> Example:
    """A person wants nothing learned from this critique; the rejected answer stays rejected.

    Raises:
        Conflict: the critique is not waiting for review any more.
    """
    with store.transaction():
        _in_review(store, example_id)
        return store.examples.update(example_id, state="excluded", note="discarded in review")


def _in_review(store: Store, example_id: str) -> Example:
    example = store.examples.get(example_id)
    if example.state != "review" and not (example.state == "pending" and example.drafted):
        raise Conflict(f"Example {example_id} is not waiting for review (it is {example.state}).")
    return example


def _prompts(example: Example) -> list[list[dict[str, Any]]]:
    note = example.feedback or ""
    talk = [
        *example.messages,
        {"role": "assistant", "content": example.response},
        {
            "role": "user",
            "content": f"{note}\n\nAnswer again, correctly and in one short sentence, as if for the first "
            f"time. Do not mention the mistake.\n\n{example.query}",
        },
    ]
    # Small models do better without their own wrong answer before their eyes.
    fresh = [{"role": "user", "content": f"Fact: {note}\nUse the fact to answer briefly: {example.query}"}]
    return [talk, fresh]


async def _settle(
    store: Store,
    example: Example,
    *,
    note: str,
    target: str | None = None,
    state: Literal["review", "pending"] = "review",
) -> Example:
    fields: dict[str, Any] = {"note": note, "state": state} | ({} if target is None else {"target": target})

    def change() -> Example:
        with store.transaction():
            now = store.examples.get(example.id)
            if now.state != "review" or now.target is not None:
                return now
            return store.examples.update(example.id, **fields)

    return await asyncio.to_thread(change)
