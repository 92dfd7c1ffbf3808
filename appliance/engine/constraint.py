"""Answers that must follow a grammar.

llguidance compiles the grammar and says before each token which ones may come next. It reads the plain
vocabulary of `tokenizer.json`, where control tokens bear their own names: what is constrained is what
the model says, and no user's text passes through here.

What a client's schema can cost is bounded four times: `json_schema.py` screens it, `trial.py` compiles it
in another process first, compiling has a thread of its own here and takes turns among clients, and each
answer may spend so much on its tokens and no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import llguidance
import numpy as np
from numpy.typing import NDArray

from appliance.engine import json_schema
from appliance.engine.json_keywords import SchemaRefused
from appliance.engine.trial import STACK, Trial, TrialFailed, compile_grammar, load_tokenizer
from appliance.engine.way_out import Search, TooCostly, Vocabulary, WayOut
from appliance.errors import Busy, InvalidRequest
from appliance.model.bundle import Bundle

KEPT = 8  # compiled grammars that are kept; clients send the same few again and again
REMEMBERED = 1000  # grammars of which is known whether they compile
MAX_CHARS = 200_000  # of a grammar's text
WAITING = 8  # grammars of one client that are compiled or wait for it
WRITERS = 16  # clients whose schemas are read at once
COST_SECONDS = 1.0
"""Of processor time, for the masks of an answer, and as much again for each token as:"""
COST_PER_TOKEN = 0.005
_PLACE = re.compile(r"^(at )?\d+\(\d+\): |failed to compile JSON schema: ")
_LIMIT = re.compile(
    r"\bfuel\b|too big|too large|too many|Unable to determine if regex is empty", re.IGNORECASE
)
# A space after `:` and `,` and no other white space: a small model would go on indenting for ever.
_JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # A schema could bring these along: what is not understood would be ignored instead of refused.
    "lenient": False,
    "coerce_one_of": False,
}
Result = TypeVar("Result")


class Matcher:
    """Where one answer stands in its grammar. Not thread-safe."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, way: WayOut | None = None) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._way = way
        self._left = COST_SECONDS

    @property
    def bound(self) -> bool:
        """Whether the answer is known to end within its room."""
        return self._way is not None

    @property
    def complete(self) -> bool:
        """Whether the answer follows the grammar and nothing can come after it."""
        return bool(self._matcher.is_stopped())

    @property
    def closed(self) -> bool:
        """Whether what was said is whole, though more could follow: a number, one call of several."""
        return self._way is not None and self._way.closed

    @property
    def accepting(self) -> bool:
        """Whether the answer follows the grammar if it ends here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> NDArray[np.bool_]:
        """[vocab] which tokens may come next; the end of turn only where the answer may end.

        Raises:
            InvalidRequest: the grammar has become too complex to go on.
        """
        if self._way is not None and self._way.due:
            return self.way_out()
        began = time.thread_time()
        mask = self._matcher.compute_bitmask()
        self._check(began)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def way_out(self) -> NDArray[np.bool_]:
        """[vocab] the one token that leads to an end within the room; after `take` has said no."""
        assert self._way is not None
        only = np.zeros(self._vocab_size, np.bool_)
        only[self._way.next] = True
        return only

    def take(self, token: int) -> bool:
        """Go on by a token that was allowed; False when the answer could not be ended within its room then.

        Raises:
            InvalidRequest: the grammar has become too complex to go on.
        """
        began = time.thread_time()
        if self._way is None:
            self._matcher.consume_token(token)
        else:
            ahead = self._matcher.deep_copy()
            ahead.consume_token(token)
            try:
                followed = ahead.is_error() or self._way.follow(ahead, token)
            except TooCostly as error:
                raise _too_complex() from error
            if not followed:
                self._check(began)
                return False
            self._matcher = ahead
        self._left += COST_PER_TOKEN
        self._check(began)
        return True

    def _check(self, began: float) -> None:
        self._left -= time.thread_time() - began
        if self._matcher.is_error() or self._left < 0:
            raise _too_complex()


class Constraint:
    """A compiled grammar."""

    def __init__(self, start: llguidance.LLMatcher, vocab_size: int, vocabulary: Vocabulary) -> None:
        """Look for the shortest answer, too."""
        self._start = start
        self._vocab_size = vocab_size
        self._ends = vocabulary.ends
        self._search = Search(vocabulary)
        self._shortest: list[int] | None = None
        with suppress(TooCostly):  # then nothing is promised of where it ends
            found = self._search.find(start, MAX_CHARS, shortest=True)
            self._shortest = found[0] if found else None

    def begin(self, limit: int | None = None) -> Matcher:
        """A matcher at the beginning of an answer; takes microseconds.

        Args:
            limit: tokens that the answer may have. Where any answer fits into them, this one ends within.
        """
        way = None
        if limit is not None and self._shortest is not None and len(self._shortest) <= limit:
            way = WayOut(self._search, self._shortest, limit, self._ends)
        return Matcher(self._start.deep_copy(), self._vocab_size, way)


@dataclass(frozen=True)
class Verdict:
    """What became of trying a grammar out: the reason why it cannot be served, empty if it can."""

    reason: str
    costly: bool = False


class Grammars:
    """Compiles grammars for one bundle. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        """Nothing is loaded before the first grammar: it costs 0.3 s and 50 MB."""
        manifest = bundle.manifest
        self._file = bundle.path / "tokenizer.json"
        self._eos = list(manifest.eos_ids)
        self._vocab_size = manifest.vocab_size
        self._lock = threading.Lock()  # of what is kept
        self._ident = 0
        self._vocabulary: Vocabulary | None = None
        self._trial = Trial(self._file, self._vocab_size, self._eos)
        self._kept: OrderedDict[bytes, Constraint] = OrderedDict()
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None  # the one that compiles
        self._writers = ThreadPoolExecutor(WRITERS, "schema")
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    async def prepare(self, client: str, make: Callable[[], Constraint]) -> Constraint:
        """Run what writes and compiles a client's grammar, off the event loop and away from all else.

        One at a time for each client, so that each waits for one of each other's at most; and for none if
        its grammar is at hand.

        Args:
            client: who asks.
            make: calls `compile`.

        Raises:
            Busy: too many of this client's wait already.
            ShammahError: what `make` raises.
        """
        if self._waiting[client] >= WAITING:
            raise Busy("Too many answers' formats of this client are being compiled. Retry in a few seconds.")
        self._waiting[client] += 1
        loop, turn = asyncio.get_running_loop(), self._turns.setdefault(client, asyncio.Lock())

        def leave() -> None:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client], self._turns[client]

        try:
            await turn.acquire()
        except asyncio.CancelledError:
            leave()
            raise

        def end(_: object) -> None:
            turn.release()
            leave()

        def told(work: object) -> None:
            with suppress(RuntimeError):  # the loop may have closed
                loop.call_soon_threadsafe(end, work)

        # Whoever leaves in the middle keeps his turn until the work is done: it cannot be stopped.
        work = self._writers.submit(make)
        work.add_done_callback(told)
        return await asyncio.wrap_future(work)

    def compile(self, grammar: str, param: str, client: str = "") -> Constraint:
        """Compile a grammar in llguidance's dialect of Lark; see `json_grammar`. Call it off the event loop.

        What is at hand is so for the client that sent it: who is answered sooner because another one sent the
        same would learn what that one sent, and a schema can hold names and numbers.

        Args:
            grammar: its text.
            param: the request's field it comes from.
            client: who asks.

        Raises:
            InvalidRequest: it is malformed, unsatisfiable, too large, or asks for what is not supported.
            Unavailable: it cannot be tried out just now.
        """
        if len(grammar) > MAX_CHARS:
            raise InvalidRequest(f"{param} is too large.", param=param, code="invalid_value")
        key = _key(grammar, client)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        reason, constraint = self._deep(self._compile, key, grammar)
        if constraint is None:
            raise InvalidRequest(f"{param} cannot be served: {reason}", param=param, code="invalid_value")
        with self._lock:
            self._kept[key] = constraint
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return constraint

    def verdict(self, grammar: str, client: str = "") -> Verdict:
        """Whether a grammar by itself would compile. Call it off the event loop.

        Raises:
            Unavailable: it cannot be tried out just now.
        """
        return self._deep(self._tried, _key(grammar, client), grammar)

    def stop(self) -> None:
        """End the child process and the threads, as far as there are any."""
        self._writers.shutdown(wait=True, cancel_futures=True)
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._trial.stop()

    def _compile(self, key: bytes, grammar: str) -> tuple[str, Constraint | None]:
        reason = self._tried(key, grammar).reason
        if reason:
            return reason, None
        vocabulary = self._load()
        matcher = compile_grammar(vocabulary.tokenizer, grammar)
        if matcher.is_error():
            return _reason(matcher.get_error()), None
        return "", Constraint(matcher, self._vocab_size, vocabulary)

    def _tried(self, key: bytes, grammar: str) -> Verdict:
        """What the trial says; each grammar is tried once for each client."""
        verdict = self._verdicts.get(key)
        if verdict is None:
            try:
                verdict = Verdict(_reason(self._trial.run(grammar)))
            except TrialFailed as error:
                verdict = Verdict(str(error), costly=True)
            self._verdicts[key] = verdict
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        return verdict

    def _load(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(load_tokenizer(self._file, self._vocab_size, self._eos))
        return self._vocabulary

    def _deep(self, run: Callable[..., Result], *arguments: Any) -> Result:
        """Run it in the thread whose stack is as deep as the trial's."""
        if threading.get_ident() == self._ident:
            return run(*arguments)
        return self._worker().submit(run, *arguments).result()

    def _worker(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._thread is None:
                before = threading.stack_size(STACK)
                self._thread = ThreadPoolExecutor(1, "grammar", initializer=self._here)
                self._thread.submit(int)  # starts it
                threading.stack_size(before)
            return self._thread

    def _here(self) -> None:
        self._ident = threading.get_ident()


def json_rule(schema: Any, param: str, *, strict: bool = True, of: str = "") -> str:
    """A JSON schema as the right side of a grammar's rule.

    Args:
        schema: as the client sent it.
        param: the request's field it comes from.
        strict: refuse what cannot be followed rather than leave it out.
        of: whose it is, for the message.

    Raises:
        InvalidRequest: it cannot be served; says where in it and why.
    """
    try:
        served = json_schema.serve(schema, strict=strict)
    except SchemaRefused as error:
        whose = f"{of}, {param}" if of else param
        raise InvalidRequest(
            f"{whose} cannot be served: {error}", param=param, code="invalid_value"
        ) from error
    if served is True:
        served = {}
    elif served is False:
        served = {"enum": []}  # says in the compiler's words that nothing fits
    return f"%json {json.dumps({**served, 'x-guidance': _JSON_OPTIONS})}"


def json_grammar(schema: Any, param: str = "response_format") -> str:
    """The grammar of one JSON text that is valid against a schema.

    Raises:
        InvalidRequest: the schema cannot be served.
    """
    return f"start: {json_rule(schema, param)}\n"


def _too_complex() -> InvalidRequest:
    return InvalidRequest(
        "The answer's format became too complex to follow; use a simpler schema.", code="invalid_value"
    )


def _key(grammar: str, client: str) -> bytes:
    return hashlib.sha256(f"{client}\0{grammar}".encode("utf-8", "surrogatepass")).digest()


def _reason(error: str) -> str:
    """llguidance's message without places in a text that the caller never saw, and without its switches."""
    if not error:
        return ""
    if _LIMIT.search(error):
        return "it is too complex; use a simpler schema."
    first, *more = (line.strip() for line in error.splitlines() if line.strip())
    message = _PLACE.sub("", first).partition(". Enable ")[0]
    # A regular expression's fault is drawn over several lines; one of them says what it is.
    fault = next((line for line in more if line.startswith("error: ")), "")
    return f"{message} {fault.removeprefix('error: ')}".strip()
