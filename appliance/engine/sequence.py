"""One request while it is being answered: where each of its tokens is chosen and becomes text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from appliance.engine.request import Delta, FinishReason, GenerationRequest
from appliance.engine.sampling import Sampler
from appliance.engine.session import Session
from appliance.engine.stops import StopMatcher
from appliance.model.tokenizer import Tokenizer


class Sequence:
    """One request while it is being answered.

    Attributes:
        request: what was asked.
        emit: called with each delta, or the error that ends the answer, in the stepping thread.
        cancelled: set by anyone; the slot is freed at the next step.
        session: the weights that answer, fixed when the sequence joins.
        row: its row of the cache.
        length: tokens of it in the cache.
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
        self.length = 0
        self.generated = 0
        self.last_token = 0
        self._limit = limit
        self._eos = frozenset(tokenizer.eos_ids)
        self._sampler = Sampler(request.sampling)
        self._text = tokenizer.stream()
        self._stops = StopMatcher(request.stop)

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens are still to be computed."""
        return self.length < len(self.request.prompt)

    def accept(self, logits: np.ndarray) -> bool:
        """Choose the next token from [vocab] logits and emit its text; True when the answer is complete."""
        token = self._sampler.sample(logits)
        if token in self._eos:
            return self._end("stop")
        self.generated += 1
        self.last_token = token
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            self._send(text, "stop")
            return True
        if self.generated >= self._limit:
            return self._end("length", text)
        self._send(text, None)
        return False

    def _end(self, reason: FinishReason, text: str = "") -> bool:
        """Send what was held back: the rest of a character, the beginning of a stop string."""
        rest, stopped = self._stops.push(self._text.flush())
        self._send(text + rest + self._stops.flush(), "stop" if stopped else reason)
        return True

    def _send(self, text: str, reason: FinishReason | None) -> None:
        assert self.session is not None
        prompt = len(self.request.prompt)
        self.emit(Delta(text, reason, prompt, self.generated, self.session.adapter))
