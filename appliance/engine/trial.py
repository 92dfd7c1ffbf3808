"""A grammar is tried in a process of its own before the serving one compiles it.

The native compiler can crash, run on for minutes or fill the memory with a grammar that nobody has
foreseen, and neither can be undone in the process it happens in. So a child does the same work first, within
limits that the system enforces: processor time, memory, and a stack no larger than ours. What it survives
costs us no more. The child is light (no numpy, no model, only the tokenizer), starts with the first
grammar, goes when it is idle, and ends when its input does, however the daemon ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

import llguidance

from appliance.errors import Unavailable

STACK = 64 << 20
"""Bytes; for whoever compiles a grammar, here and there."""
CPU_SECONDS = 2.0
WAIT_SECONDS = 30.0
"""A machine that is so busy that the processor time takes this long has no room for more work."""
MEMORY = 400 << 20
"""Bytes beyond what the child takes without a grammar."""
IDLE_SECONDS = 600.0
STEPS = 24
"""Tokens taken at random after compiling: some costs only show there."""
FIRST_STEPS = 3
"""What is too complex by then is refused; what becomes so later ends its own answer there."""
# What a hostile grammar can cost a token is bounded: a few milliseconds, and memory, up to 1 kB a lexer
# state. An honest one needs a state for each character of its longest string.
LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, step_lexer_fuel=100_000, verbose_errors=False)


class TrialFailed(Exception):
    """The child did not survive a grammar; the message says how."""


def load_tokenizer(path: Path, vocab_size: int, eos: list[int]) -> llguidance.LLTokenizer:
    """llguidance's tokenizer of a model: 0.3 s and 50 MB."""
    return llguidance.LLTokenizer(path.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=eos)


class Trial:
    """The child, from outside. Not thread-safe."""

    def __init__(self, tokenizer: Path, vocab_size: int, eos: list[int]) -> None:
        """Nothing is started before the first grammar."""
        self._command = [sys.executable, "-m", "appliance.engine.trial", str(tokenizer), str(vocab_size)]
        self._command.append(json.dumps(eos))
        self._child: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes]], Trial] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None when there is none."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def run(self, grammar: str) -> str:
        """Compile a grammar over there; says what is wrong with it, nothing if nothing is.

        Raises:
            TrialFailed: it is too costly, or crashes the compiler.
            Unavailable: the child cannot be started, or was killed.
        """
        for last in (False, True):
            child = self._started()
            assert child.stdin is not None and child.stdout is not None
            line = b""
            with contextlib.suppress(OSError):
                child.stdin.write(json.dumps(grammar).encode() + b"\n")
                child.stdin.flush()
                line = _line(child.stdout)
            if line.endswith(b"\n"):
                return str(json.loads(line))
            late = child.poll() is None and not line and not _ended(child)
            code = self._reap()
            if late:
                raise Unavailable("The box is too busy to compile the answer's format. Retry in a minute.")
            if code in (-signal.SIGPROF, -signal.SIGXCPU):
                raise TrialFailed("it takes too long to compile; use a simpler schema.")
            if code < 0 and code not in (-signal.SIGKILL, -signal.SIGTERM):
                raise TrialFailed("it is too complex to compile; use a simpler schema.")
            if last:
                break  # else it had just gone, or somebody killed it
        raise Unavailable("The answer's format cannot be compiled just now.")

    def stop(self) -> None:
        """End the child; the next grammar starts another."""
        self._reap()

    def _started(self) -> subprocess.Popen[bytes]:
        if self.pid is None:
            self._reap()
            try:
                # A group of its own: Ctrl-C at the daemon's terminal is the daemon's business.
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    process_group=0,
                )
            except OSError as error:
                raise Unavailable(f"The answer's format cannot be compiled: {error}") from error
            self._end = weakref.finalize(self, _reap, self._child)
        assert self._child is not None
        return self._child

    def _reap(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        assert self._end is not None
        self._end()
        return int(child.returncode)


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it."""
    if not _ended(child):
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, or is about to: its output has."""
    assert child.stdout is not None
    if child.poll() is None and select.select([child.stdout], [], [], 0)[0]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
    return child.poll() is not None


def _line(output: IO[bytes]) -> bytes:
    """A line of the child's, less when it ends, nothing when it takes too long."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([output], [], [], WAIT_SECONDS)[0]:
            return b""
        piece = os.read(output.fileno(), 65536)
        if not piece:
            return line
        line += piece
    return line


# -- the child ------------------------------------------------------------------------------------


def compile_grammar(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """A matcher at the grammar's beginning, its first mask computed; it may be in error."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some only show at their first token that they are too complex
    return matcher


def _try(tokenizer: llguidance.LLTokenizer, grammar: str) -> str:
    matcher = compile_grammar(tokenizer, grammar)
    if matcher.is_error():
        return matcher.get_error()
    chosen = random.Random(0)
    for step in range(STEPS):
        mask = matcher.compute_bitmask()
        if matcher.is_stopped() and not matcher.is_error():
            break
        token = _any(mask, chosen)
        if token is not None:
            matcher.consume_token(token)
        if matcher.is_error():
            return "it is too complex to follow." if step < FIRST_STEPS else ""
        if token is None:
            break
    return ""


def _any(mask: bytes, chosen: random.Random) -> int | None:
    """The first token that a mask allows after a place at random, all around."""
    start = chosen.randrange(len(mask))
    for at in (*range(start, len(mask)), *range(start)):
        if mask[at]:
            bits = [bit for bit in range(8) if mask[at] >> bit & 1]
            return int(8 * at + chosen.choice(bits))
    return None


def _serve(path: Path, vocab_size: int, eos: list[int]) -> None:
    tokenizer = load_tokenizer(path, vocab_size, eos)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pending = b""
    while True:
        while b"\n" not in pending:
            if not select.select([0], [], [], IDLE_SECONDS)[0]:
                return
            piece = os.read(0, 1 << 20)
            if not piece:
                return
            pending += piece
        line, _, pending = pending.partition(b"\n")
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        said = _try(tokenizer, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(1, json.dumps(said[:4000]).encode() + b"\n")


def main(arguments: list[str]) -> None:
    """`python -m appliance.engine.trial TOKENIZER VOCAB_SIZE EOS`: grammars in, verdicts out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    os.nice(5)
    eos: Any = json.loads(arguments[2])
    threading.stack_size(STACK)
    worker = threading.Thread(target=_serve, args=(Path(arguments[0]), int(arguments[1]), eos))
    worker.start()
    worker.join()


if __name__ == "__main__":
    main(sys.argv[1:])
