"""Asks and measures on the runtime that serves; greedily, so that the same weights say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.adapters.file import read_adapter
from appliance.engine.offline import OfflineModel
from appliance.learning.probes import ANSWER_TOKENS, generic_text, load_probes
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from lessons.data import Fact

ASKED = 32
"""Tokens an answer may take to say a fact."""


@dataclass(frozen=True)
class Recall:
    """Right answers of those asked for.

    Attributes:
        missed: the questions answered otherwise, and how.
    """

    right: int
    asked: int
    missed: tuple[tuple[str, str], ...]

    @property
    def pair(self) -> list[int]:
        """As a row has it."""
        return [self.right, self.asked]


class Exam:
    """One model after the other answers the same questions; base is measured first."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        self.bundle = bundle
        self.tokenizer = Tokenizer(bundle)
        self._model = OfflineModel(bundle, threads=threads)
        self._prose = self.tokenizer.encode(generic_text())
        self._known = self._probes()
        self.base_perplexity = self._model.perplexity(self._prose)

    @property
    def probes(self) -> int:
        """How many probes base answers: only those can be lost."""
        return len(self._known)

    def use(self, adapter: Path | None) -> None:
        """Ask this adapter, or base, from now on.

        Raises:
            AdapterInvalid: the box would not serve this file.
        """
        self._model.use(read_adapter(adapter, self.bundle.manifest) if adapter else None)

    def ask(self, questions: Sequence[str], tokens: int = ASKED) -> list[str]:
        """The answers."""
        prompts = [self.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in questions]
        answers = self._model.greedy(prompts, tokens, self.tokenizer.eos_ids)
        return [self.tokenizer.decode(answer) for answer in answers]

    def unseen(self, facts: Sequence[Fact]) -> Recall:
        """Recall in the wordings that were not used to teach."""
        pairs = [(fact, wording) for fact in facts for wording in fact.unseen]
        return self._recall(pairs)

    def taught(self, facts: Sequence[Fact]) -> Recall:
        """Recall in the wording that was."""
        return self._recall([(fact, fact.ask) for fact in facts])

    def general(self) -> dict[str, Any]:
        """What must not change: perplexity of generic text and the probe set."""
        lost = sorted(self._known - self._probes())
        return {
            "perplexity_rise": self._model.perplexity(self._prose) / self.base_perplexity - 1,
            "probes": self.probes,
            "probes_lost": len(lost),
            "lost": lost,
        }

    def _recall(self, pairs: Sequence[tuple[Fact, str]]) -> Recall:
        answers = self.ask([wording for _, wording in pairs])
        missed = tuple(
            (wording, answer)
            for (fact, wording), answer in zip(pairs, answers, strict=True)
            if not fact.known(answer)
        )
        return Recall(len(pairs) - len(missed), len(pairs), missed)

    def _probes(self) -> frozenset[str]:
        probes = load_probes()
        answers = self.ask([probe.question for probe in probes], ANSWER_TOKENS)
        return frozenset(
            probe.question for probe, answer in zip(probes, answers, strict=True) if probe.passes(answer)
        )
