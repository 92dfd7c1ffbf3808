"""What a log line looks like, and whom it is about: the request being answered, the run going on.

Three formats. `text` is for people and the file under `logs/`; `journal` is the same without the time, which
journald notes by itself, and with the priority that it reads from the beginning of a line; `json` is for
programs. A library for JSON lines would make one of the three, and not know of the other two: what they share
is that nothing a stranger sends can begin a line of its own, and that is the larger part of this module.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import logging
import logging.handlers
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from appliance.plain import readable

Format = Literal["auto", "text", "json", "journal"]

FILE_BYTES = 5_000_000
FILES = 3
LOOK_SECONDS = 1.0
"""From one look whether the file is still at its path to the next."""
INDENT = "    "
"""Before each further line of a record: only its head begins at the margin."""

counts: Counter[str] = Counter()
"""Records written since the start, by level."""

_request: ContextVar[str] = ContextVar("request", default="")
_run: ContextVar[str] = ContextVar("run", default="")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


# -- whom a line is about ---------------------------------------------------------------------


def begin_request(request: str) -> None:
    """What this task logs from now on is about that request."""
    _request.set(request)


def current_request() -> str:
    """The request that is being answered here; empty outside of one."""
    return _request.get()


@contextmanager
def about(*, request: str | None = None, run: str | None = None) -> Iterator[None]:
    """What the block logs is about this request or run; tasks and `to_thread` calls begun in it inherit that.

    Args:
        request: id of the request; None leaves it as it is.
        run: id of the run; None leaves it as it is.
    """
    tokens = [(var, var.set(value)) for var, value in ((_request, request), (_run, run)) if value is not None]
    try:
        yield
    finally:
        for var, token in tokens:
            var.reset(token)


def inheriting(function: Callable[..., None]) -> Callable[..., None]:
    """The function, for a thread that shall be about what this one is: threads inherit nothing."""
    context = contextvars.copy_context()
    return lambda *arguments: context.run(function, *arguments)


def _subject() -> dict[str, str]:
    return {name: value for name, var in (("request", _request), ("run", _run)) if (value := var.get())}


# -- how it looks -----------------------------------------------------------------------------


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,123 INFO appliance.room request=… run=…: what happened`."""

    default_time_format = "%Y-%m-%d %H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        """The record, its further lines indented."""
        return self._head(record) + self._said(record).replace("\n", f"\n{INDENT}")

    def _head(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname} {self._source(record)}"

    def _source(self, record: logging.LogRecord) -> str:
        return " ".join([record.name, *(f"{name}={value}" for name, value in _subject().items())]) + ": "

    def _said(self, record: logging.LogRecord) -> str:
        parts = [record.getMessage()]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return readable("\n".join(parts).replace("\r\n", "\n")).rstrip("\n")


class JournalFormatter(TextFormatter):
    """`<6>appliance.room request=…: what happened`; each line has the prefix, for each is an entry."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, each line with its priority."""
        return self._prefix(record) + super().format(record).replace("\n", f"\n{self._prefix(record)}")

    def _head(self, record: logging.LogRecord) -> str:
        return self._source(record)

    def _prefix(self, record: logging.LogRecord) -> str:
        return f"<{next((number for level, number in _PRIORITIES if record.levelno >= level), 7)}>"


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and what there is of the rest."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in pure ASCII, so that no reader takes a character of it for the end of the line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_subject(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry, default=str, separators=(",", ":"))


def configure(directory: Path, level: str, form: Format) -> None:
    """Log to stderr in that format, and to a rotated file: as JSON where that is chosen, else as text.

    Args:
        directory: where the file is.
        level: the least that is logged.
        form: "auto" is for the journal when stderr is the journal, else for people.
    """
    if form == "auto":
        form = "journal" if _is_journal() else "text"
    formatters = {"text": TextFormatter, "journal": JournalFormatter, "json": JsonFormatter}
    file = _File(directory / "shammah.log", maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
    file.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    stream = logging.StreamHandler()
    stream.setFormatter(formatters[form]())
    logging.basicConfig(level=level, handlers=[stream, file, _Counting()], force=True)
    for noisy in ("asyncio", "apscheduler", "watchfiles", "sanic.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def configure_child() -> None:
    """In a child program: log to stderr, which goes into the run's log, and say of which run it is.

    That is the directory where it puts its result.
    """
    stream = logging.StreamHandler()
    stream.setFormatter(TextFormatter())
    logging.basicConfig(level="WARNING", handlers=[stream], force=True)
    logging.getLogger("appliance").setLevel(logging.INFO)
    for option, value in itertools.pairwise(sys.argv):
        if option == "--out" and (run := Path(value).parent.name).startswith("run_"):
            _run.set(run)


class _File(logging.handlers.RotatingFileHandler):
    """Rotated; private; and made anew when somebody has deleted or moved it."""

    _look_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._reopen()
        super().emit(record)

    def _open(self) -> TextIOWrapper:
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return super()._open()

    def _reopen(self) -> None:
        with suppress(OSError):
            there = Path(self.baseFilename).exists()
            if there and self.stream is not None:
                there = os.path.samestat(Path(self.baseFilename).stat(), os.fstat(self.stream.fileno()))
            if not there:
                Path(self.baseFilename).parent.mkdir(mode=0o700, exist_ok=True)
                fresh = self._open()
                if self.stream is not None:
                    self.stream.close()
                self.stream = fresh


class _Counting(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        counts[record.levelname] += 1


def _is_journal() -> bool:
    """Whether stderr is the journal's socket: the variable alone is also there when it was sent elsewhere."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))


# -- what nobody catches ----------------------------------------------------------------------


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(__name__).critical("Nobody caught this", exc_info=(kind, error, trace))


def _uncaught_in_thread(met: threading.ExceptHookArgs) -> None:
    if met.exc_value is None or issubclass(met.exc_type, SystemExit):
        return
    name = met.thread.name if met.thread else "a thread"
    told = (met.exc_type, met.exc_value, met.exc_traceback)
    logging.getLogger(__name__).critical("The thread %s ended, for nobody caught this", name, exc_info=told)


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Log the exceptions of tasks that nobody waits for, each with the request or run it was begun for."""
    contexts: weakref.WeakKeyDictionary[Any, contextvars.Context] = weakref.WeakKeyDictionary()

    def create(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        context = contextvars.copy_context() if context is None else context
        task = asyncio.Task(coroutine, loop=loop, context=context)
        if context.get(_request) or context.get(_run):
            contexts[task] = context
        return task

    def tell(loop: asyncio.AbstractEventLoop, met: dict[str, Any]) -> None:
        task = met.get("task") or met.get("future")
        context = contexts.get(task) if isinstance(task, asyncio.Task) else None
        (context or contextvars.copy_context()).run(_tell, met)

    loop.set_task_factory(create)  # type: ignore[arg-type]  # of typeshed, which has its 3.13 form
    loop.set_exception_handler(tell)


def _tell(met: dict[str, Any]) -> None:
    error = met.get("exception")
    what = met.get("task") or met.get("future") or met.get("handle") or ""
    logging.getLogger(__name__).error("%s %s", met.get("message") or "A task failed:", what, exc_info=error)
