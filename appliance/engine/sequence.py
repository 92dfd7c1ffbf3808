"""One request while it is being answered: where each of its tokens is chosen and becomes text."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from appliance.engine.drafts import Drafter
from appliance.engine.logprobs import TokenLogprob, token_logprob
from appliance.engine.request import Delta, FinishReason, GenerationRequest
from appliance.engine.sampling import Sampler
from appliance.engine.session import Session
from appliance.engine.stops import StopMatcher
from appliance.errors import InvalidRequest
from appliance.logs import current_request
from appliance.model.tokenizer import Tokenizer


class Sequence:
    """One request while it is being answered.

    Attributes:
        request: what was asked.
        emit: called with each delta, or the error that ends the answer, in the stepping thread.
        cancelled: set by anyone; the slot is freed at the next step.
        session: the weights that answer, fixed when the sequence joins.
        row: its row of the cache.
        tokens: prompt and answer so far.
        length: how many of `tokens` are in the cache; the last one of an answer is not.
        kept: how many of these the prefix cache has too.
        block: identity of the last block it has.
        cached: prompt tokens that came from there.
        drafter: guesses how the answer goes on.
        asked_by: id of the HTTP request behind it, for the log.
        queued: when it came, on the monotonic clock.
        spoke: when its last token was chosen; 0 before the first.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        limit: int,
        emit: Callable[[Delta | Exception], None],
    ) -> None:
        self.request = request
        self.emit = emit
        self.cancelled = False
        self.session: Session | None = None
        self.row = -1
        self.tokens = list(request.prompt)
        self.length = self.kept = self.block = self.cached = 0
        self.drafter = Drafter(self.tokens)
        self.asked_by = current_request()
        self.queued, self.spoke = time.monotonic(), 0.0
        self._limit = limit
        self._eos = frozenset(tokenizer.eos_ids)
        self._sampler = Sampler(request.sampling, request.prompt)
        self._matcher = request.constraint.begin(limit) if request.constraint else None
        self._text = tokenizer.stream()
        self._stops = StopMatcher(request.stop)
        self._unsent: list[TokenLogprob] = []

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens are still to be computed."""
        return self.length < len(self.request.prompt)

    @property
    def restorable(self) -> int:
        """Tokens of which the last at least must be computed here: it says what comes next."""
        return len(self.tokens) if self.request.score_from is None else self.request.score_from

    @property
    def generated(self) -> int:
        """Tokens of the answer so far, the end of turn not counted."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def room(self) -> int:
        """Tokens the answer may still have."""
        return self._limit - self.generated

    def accept(self, logits: NDArray[np.float32]) -> bool:
        """Choose the next token from [vocab] logits and emit its text; True when the answer is complete.

        The logits are changed in place. A grammar that cannot be followed further ends this answer with
        its error, and no other.
        """
        raw = None if self.request.logprobs is None else logits.copy()
        try:
            token = self._choose(logits)
        except InvalidRequest as error:
            self.emit(error)
            return True
        if token in self._eos:
            return self._end("stop")
        self.tokens.append(token)
        if raw is not None and self.request.logprobs is not None:
            self._unsent.append(token_logprob(raw, token, self.request.logprobs))
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            self._send(text, "stop")
            return True
        if self._matcher is not None and self._matcher.complete:
            return self._end("stop", text)  # only the end of turn could follow
        if self.generated >= self._limit:
            closed = self._matcher is not None and self._matcher.closed
            return self._end("stop" if closed else "length", text)
        self._send(text, None)
        return False

    def score(self, logits: NDArray[np.float32], first: int) -> None:
        """Report prompt tokens from [n, vocab] logits, of which the first says what token `first` may be."""
        for row, token in zip(logits, self.tokens[first:], strict=False):
            self._unsent.append(token_logprob(row, token, 0))
        if not self.prefilling:
            self._send("", "length")

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._matcher is None:
            return self._sampler.sample(logits)
        token = self._sampler.sample(logits, self._matcher.allowed())
        if token in self._eos or self._matcher.take(token):
            return token
        # It opens more than the room left can close.
        token = self._sampler.sample(logits, self._matcher.way_out())
        if token not in self._eos:
            self._matcher.take(token)
        return token

    def _end(self, reason: FinishReason, text: str = "") -> bool:
        """Send what was held back: the rest of a character, the beginning of a stop string."""
        rest, stopped = self._stops.push(self._text.flush())
        self._send(text + rest + self._stops.flush(), "stop" if stopped else reason)
        return True

    def _send(self, text: str, reason: FinishReason | None) -> None:
        assert self.session is not None
        tokens, self._unsent = tuple(self._unsent), []
        prompt = len(self.request.prompt)
        self.emit(Delta(text, reason, prompt, self.generated, self.session.adapter, tokens, self.cached))
