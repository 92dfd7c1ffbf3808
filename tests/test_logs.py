"""Log lines: three formats, whom they are about, and nothing a stranger sends begins one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from appliance import logs
from appliance.console.logs import records
from appliance.logs import JournalFormatter, JsonFormatter, TextFormatter

FORGED = "harmless\n2026-11-26 04:29:53,012 ERROR appliance.app: forged\r\x1b[31m\u2028\x85\udcff"
FORMATTERS = {"text": TextFormatter(), "journal": JournalFormatter(), "json": JsonFormatter()}


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("appliance.x", logging.WARNING, "x.py", 1, message, arguments, told)  # type: ignore[arg-type]


def raised(message: str) -> ValueError:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


@pytest.mark.parametrize("name", FORMATTERS)
def test_nobody_forges_a_line(name: str) -> None:
    line = FORMATTERS[name].format(record("said %s", FORGED, error=raised(FORGED)))
    assert line.encode()  # even what is no text can be written
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", line)
    first, *rest = line.split("\n")
    if name == "json":
        assert rest == []
        assert json.loads(first)["message"] == f"said {FORGED}"
    elif name == "journal":
        assert first.startswith("<4>appliance.x: said harmless")
        assert rest
        assert all(more.startswith("<4>    ") for more in rest)
    else:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING appliance\.x: said harmless$", first)
        assert rest
        assert all(more.startswith("    ") for more in rest)


@pytest.mark.parametrize("name", ["text", "json"])
def test_the_log_page_reads_what_is_written(name: str) -> None:
    with logs.about(request="req-1", run="run_2"):
        lines = FORMATTERS[name].format(record("one\nmore", error=raised("bad")))
    lines += "\n" + FORMATTERS[name].format(record("two %s", FORGED)) + "\n"
    one, two = records(lines)
    assert (one.level, one.name, one.request, one.run) == ("WARNING", "appliance.x", "req-1", "run_2")
    assert one.text.startswith("one\nmore\nTraceback")
    assert one.text.endswith("ValueError: bad")
    assert (two.request, two.run) == ("", "")
    assert two.text.startswith("two harmless\n2026-11-26 04:29:53,012 ERROR appliance.app: forged")
    assert abs(one.at - two.at) < 60


def test_a_file_of_both_formats() -> None:
    mixed = "".join(FORMATTERS[name].format(record(name)) + "\n" for name in ("text", "json", "text"))
    assert [found.text for found in records(mixed)] == ["text", "json", "text"]
    assert [found.text for found in records('{"time": 1}\n{broken\n' + mixed)] == ["text", "json", "text"]


def test_whom_a_line_is_about(tmp_path: Path) -> None:
    async def work() -> list[str]:
        found = []
        with logs.about(request="req-1"):
            found.append(await asyncio.to_thread(logs.current_request))
            found.append(await asyncio.create_task(asyncio.sleep(0, logs.current_request())))
            thread = threading.Thread(target=logs.inheriting(lambda: found.append(logs.current_request())))
            thread.start()
            thread.join()
        return [*found, logs.current_request()]

    assert asyncio.run(work()) == ["req-1", "req-1", "req-1", ""]


PROGRAM = """
import asyncio, gc, logging, sys, threading, warnings
from pathlib import Path
from appliance import logs
logs.configure(Path(sys.argv[1]), "INFO", sys.argv[2])

def fail():
    raise ValueError("in a thread")

async def fail_too():
    raise ValueError("in a task")

async def main():
    logs.watch_tasks(asyncio.get_running_loop())
    with logs.about(request="req-7"):
        task = asyncio.create_task(fail_too())
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.05)
    del task
    gc.collect()

say = logging.getLogger("appliance.y").info
with logs.about(run="run_1"):
    thread = threading.Thread(target=logs.inheriting(lambda: say("of a run")))
    thread.start(); thread.join()
thread = threading.Thread(target=fail, name="careless")
thread.start(); thread.join()
asyncio.run(main())
warnings.warn("old", stacklevel=1)
raise ValueError("at the end")
"""


def run(directory: Path, form: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), form],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_what_nobody_catches_is_logged(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(tmp_path, "json")]
    assert lines == [json.loads(line) for line in (tmp_path / "shammah.log").read_text().splitlines()]
    by_end = {str(line.get("exception", "")).rpartition("\n")[2]: line for line in lines}
    assert "careless" in by_end["ValueError: in a thread"]["message"]
    assert by_end["ValueError: in a task"]["request"] == "req-7"
    assert "ZeroDivisionError: division by zero" in by_end
    assert by_end["ValueError: at the end"]["level"] == "CRITICAL"
    assert [line["run"] for line in lines if line["message"] == "of a run"] == ["run_1"]
    assert any(line["logger"] == "py.warnings" for line in lines)


def test_the_journal_is_recognised(tmp_path: Path) -> None:
    # A pipe of ours is the "journal": systemd tells a service the device and inode of its stderr.
    reading, writing = os.pipe()
    stat = os.fstat(writing)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "auto"],
        stderr=writing,
        env={**os.environ, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"},
    )
    os.close(writing)
    with os.fdopen(reading) as journal:
        lines = journal.read().splitlines()
    assert program.wait() == 1
    assert lines
    assert all(re.match(r"<[2-7]>", line) for line in lines)
    assert "<6>appliance.y run=run_1: of a run" in lines
    # The file is for people and for the console's page: it has the time.
    assert (tmp_path / "shammah.log").read_text().startswith("20")
    assert any("request=req-7" in found.group(0) for line in lines if (found := re.match(r".*?: ", line)))
    # The variable alone does not make it so: stderr may have been sent elsewhere.
    other = tmp_path / "other"
    other.mkdir()
    assert run(other, "auto", JOURNAL_STREAM="1:2")[0].startswith("20")
