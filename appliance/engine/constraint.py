"""Answers that must follow a grammar.

llguidance compiles the grammar and says before each token which ones may come next. It reads the plain
vocabulary of `tokenizer.json`, where control tokens bear their own names: what is constrained is what
the model says, and no user's text passes through here.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any

import llguidance
import llguidance.numpy as bitmasks
import numpy as np
from numpy.typing import NDArray

from appliance.errors import InvalidRequest
from appliance.model.bundle import Bundle

KEPT = 4  # compiled grammars that are kept; clients send the same few again and again
MAX_CHARS = 200_000  # of a grammar's text
_PLACE = re.compile(r"^(at )?\d+\(\d+\): |failed to compile JSON schema: ")
# What a hostile schema can cost is bounded: milliseconds a token, and memory, up to 1 kB a lexer state. An
# honest one needs a state for each character of its longest string.
_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
# A space after `:` and `,` and no other white space: a small model would go on indenting for ever.
_JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # A schema could bring these along: what is not understood would be ignored instead of refused.
    "lenient": False,
    "coerce_one_of": False,
}


class Matcher:
    """Where one answer stands in its grammar. Not thread-safe."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = bitmasks.allocate_token_bitmask(1, vocab_size)

    @property
    def complete(self) -> bool:
        """Whether the answer follows the grammar and nothing can come after it."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """Whether the answer follows the grammar if it ends here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> NDArray[np.bool_]:
        """[vocab] which tokens may come next; the end of turn only where the answer may end.

        Raises:
            InvalidRequest: the grammar has become too complex to go on.
        """
        bitmasks.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8)[0], count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            InvalidRequest: the grammar has become too complex to go on.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(
                "The answer's format became too complex to follow; use a simpler schema.",
                code="invalid_value",
            )


class Constraint:
    """A compiled grammar."""

    def __init__(self, start: llguidance.LLMatcher, vocab_size: int) -> None:
        self._start = start
        self._vocab_size = vocab_size

    def begin(self) -> Matcher:
        """A matcher at the beginning of an answer; takes microseconds."""
        return Matcher(self._start.deep_copy(), self._vocab_size)


class Grammars:
    """Compiles grammars for one bundle. Thread-safe; call it off the event loop."""

    def __init__(self, bundle: Bundle) -> None:
        """Nothing is loaded before the first grammar: it costs 0.3 s and 50 MB."""
        self._bundle = bundle
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[str, Constraint] = OrderedDict()

    def compile(self, grammar: str, param: str) -> Constraint:
        """Compile a grammar in llguidance's dialect of Lark; see `json_grammar`.

        Args:
            grammar: its text.
            param: the request's field it comes from.

        Raises:
            InvalidRequest: it is malformed, unsatisfiable, too large, or asks for what is not supported.
        """
        if len(grammar) > MAX_CHARS:
            raise InvalidRequest(f"{param} is too large.", param=param, code="invalid_value")
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
                return kept
            tokenizer = self._load()
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        constraint = Constraint(matcher, self._bundle.manifest.vocab_size)
        if not matcher.is_error():
            # Some grammars only show at their first token that they are too complex.
            bitmasks.fill_next_token_bitmask(
                matcher, bitmasks.allocate_token_bitmask(1, self._bundle.manifest.vocab_size)
            )
        if matcher.is_error():
            raise InvalidRequest(
                f"{param} cannot be served: {_reason(matcher.get_error())}", param=param, code="invalid_value"
            )
        with self._lock:
            self._kept[grammar] = constraint
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return constraint

    def _load(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            manifest = self._bundle.manifest
            self._tokenizer = llguidance.LLTokenizer(
                (self._bundle.path / "tokenizer.json").read_text(encoding="utf-8"),
                n_vocab=manifest.vocab_size,
                eos_token=list(manifest.eos_ids),
            )
        return self._tokenizer


def json_rule(schema: dict[str, Any]) -> str:
    """A JSON schema as the right side of a grammar's rule."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}"


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of one JSON text that is valid against a schema."""
    return f"start: {json_rule(schema)}\n"


def _reason(error: str) -> str:
    """llguidance's message without places in a text that the caller never saw, and without its switches."""
    first, *more = (line.strip() for line in error.splitlines() if line.strip())
    message = _PLACE.sub("", first).partition(". Enable ")[0]
    # A regular expression's fault is drawn over several lines; one of them says what it is.
    fault = next((line for line in more if line.startswith("error: ")), "")
    return f"{message} {fault.removeprefix('error: ')}".strip()
