"""The fixed probe set: general questions that an adapter must not make the model forget.

All of them are answered rightly by the default model without an adapter. With another model some
may fail from the start; the gate compares with the adapter in service, so that does no harm.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources

DATA = resources.files("appliance.learning") / "data"
PROBES = "probes.json"
GENERIC = "generic.txt"
ANSWER_TOKENS = 24
"""All accepted words come within 16 of these in a good answer; the others show whether a sentence is said
twice. More would only cost time."""


@dataclass(frozen=True)
class Probe:
    """A question and the words of which a right answer has at least one."""

    question: str
    accept: tuple[str, ...]

    def passes(self, answer: str) -> bool:
        """Whether the answer has an accepted word, as a word of its own, in any case."""
        return any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in self.accept
        )


def load_probes() -> tuple[Probe, ...]:
    """The probe set."""
    items = json.loads((DATA / PROBES).read_text(encoding="utf-8"))
    return tuple(Probe(item["question"], tuple(item["accept"])) for item in items)


def generic_text() -> str:
    """English text of no subject, on which perplexity is measured."""
    return (DATA / GENERIC).read_text(encoding="utf-8")
