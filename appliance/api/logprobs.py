"""Log probabilities in OpenAI's two shapes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from appliance.engine.logprobs import TokenLogprob
from appliance.model.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Chat's object: one entry a token, with its bytes, since a token need not be whole characters."""

    def entry(ident: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.bytes_of(ident)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        {**entry(token.token, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """The object of plain completions, piece by piece: it counts characters from piece to piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._characters = 0

    def of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Parallel lists over the next tokens; `text_offset` counts from the answer's beginning."""
        offsets = []
        for token in tokens:
            offsets.append(self._characters)
            self._characters += len(self._decoder.decode(self._tokenizer.bytes_of(token.token)))
        return {
            "tokens": [self._named(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._named(ident): logprob for ident, logprob in (*token.top, (token.token, token.logprob))}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _named(self, ident: int) -> str:
        """The token's text; bytes that are no text are spelt, so that different tokens differ."""
        raw = self._tokenizer.bytes_of(ident)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
