"""What is stored steers no terminal that it is shown on, and no environment breaks the command."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.owner import verify_password

from .conftest import Shammah

TITLE = "\x1b]0;x\x07"
EVIL = {
    "title": TITLE,
    "hidden": "\x1b[8m",
    "c1": "\x9b31m\x9d0;x\x9c",
    "delete": "a\x7f\x7f\x7fb",
    "back": "a\rb\x08c",
    "around": "‮gpj.exe⁦x⁩",
    "lines": "one two",
    "markup": "[red]no[/red] [link=http://evil/]x[/link] :bomb:",
    "surrogate": "\ud83d",
}
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
COMMAND = [sys.executable, "-m", "appliance.cli"]


@pytest.fixture
def stored(home: Home) -> Home:
    """A home in which all that people and devices can name is such text."""
    home.ensure()
    store = Store.open(home)
    for text in EVIL.values():
        if "\ud83d" in text:
            continue
        store.examples.add(
            NewExample(
                kind="automatic", query=text, response=text, target=text, weight=1.0,
                messages=[{"role": "user", "content": text}],
            )
        )  # fmt: skip
    store.keys.create(EVIL["markup"])
    run = store.runs.create("person", 1)
    store.runs.update(run.id, state="failed", reason="It ended with code 1: " + "".join(EVIL.values())[:-1])
    store.close()
    return home


def on_a_terminal(home: Home, *words: str, **environment: str) -> str:
    """What arrives at a real terminal."""
    main, other = pty.openpty()
    done = subprocess.Popen(
        [*COMMAND, *words],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, "SHAMMAH_HOME": str(home.root), "COLUMNS": "300", "TERM": "xterm", **environment},
    )
    os.close(other)
    parts = []
    try:
        while part := os.read(main, 65536):
            parts.append(part)
    except OSError:
        pass  # so a terminal says that all have left
    os.close(main)
    done.wait(60)
    return b"".join(parts).decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def drawn(said: str) -> str:
    """Without the colours and the bar of the doctor."""
    assert "\x1b[8m" not in said
    return re.sub(r"\x1b\[\??[\d;]*[A-Za-z]|\r", "", said)


VERBS = [("queue", "show"), ("keys", "list"), ("status",), ("queue", "export"), ("doctor", "--quick")]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_what_is_stored_steers_no_terminal(stored: Home, shammah: Shammah, verb: tuple[str, ...]) -> None:
    said = on_a_terminal(stored, *verb)
    assert len(said) > 40, said
    assert not STEERS.search(drawn(said) if verb[0] == "doctor" else said), repr(said)
    piped = shammah(*verb)
    assert not STEERS.search(piped.stdout + piped.stderr), repr(piped.stdout)
    if verb == ("queue", "show"):
        assert r"\x1b]0;x\x07" in said
        assert "[red]no[/red] [link=http://evil/]x" in said, "markup is shown as it was written"


@pytest.mark.parametrize(
    "words",
    [
        ("queue", "forget", TITLE),
        ("keys", "revoke", f"‮{TITLE}"),
        ("adapters", "promote", TITLE),
        (TITLE,),
        ("queue", f"--{TITLE}"),
        ("config", "check", f"/nowhere/{TITLE}"),
        ("restore", f"/nowhere/{TITLE}"),
    ],
)
def test_errors_that_quote_do_not_either(stored: Home, words: tuple[str, ...]) -> None:
    said = on_a_terminal(stored, *words)
    assert not STEERS.search(said), repr(said)
    assert "bug" not in said


def test_a_config_file_that_is_quoted_does_not_either(home: Home) -> None:
    home.ensure().config.write_text('[server]\nbind = "\\u001b]0;x\\u0007"\n"\u202ekey" = 1\n')
    for words in (("config", "check"), ("config", "show"), ("doctor", "--quick")):
        said = on_a_terminal(home, *words)
        said = drawn(said) if words[0] == "doctor" else said
        assert not STEERS.search(said), repr(said)
        assert r"\x1b]0;x" in said


def test_a_home_with_markup_in_its_name_is_shown(tmp_path: Path) -> None:
    home = Home(tmp_path / "[red]home[").ensure()
    said = on_a_terminal(home, "doctor", "--quick")
    assert "[red]home[" in said.replace("\n", ""), said


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_is_exact_whatever_the_terminal_can_show(stored: Home, encoding: str) -> None:
    shown = subprocess.run(
        [*COMMAND, "queue", "show", "--json"],
        env={**os.environ, "SHAMMAH_HOME": str(stored.root), "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert not STEERS.search(shown)
    store = Store.open(stored)
    want = {example.query for example in store.examples.list()}
    store.close()
    assert {item["query"] for item in json.loads(shown)["examples"]} == want
    lines = subprocess.run(
        [*COMMAND, "queue", "export"],
        env={**os.environ, "SHAMMAH_HOME": str(stored.root), "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert {json.loads(line)["query"] for line in lines.splitlines()} == want


# -- environments -------------------------------------------------------------------------------


def run(home: Home, *words: str, **change: str | None) -> subprocess.CompletedProcess[bytes]:
    given = {**os.environ, "SHAMMAH_HOME": str(home.root), **change}
    return subprocess.run(
        [*COMMAND, *words],
        env={name: value for name, value in given.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": None},
        {"TERM": "dumb"},
        {"TMPDIR": "/nowhere"},
        {"COLUMNS": "nonsense"},
        {"PATH": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [("queue", "show"), ("doctor", "--quick")], ids=" ".join)
def test_no_environment_breaks_it(stored: Home, verb: tuple[str, ...], change: dict[str, str | None]) -> None:
    store = Store.open(stored)
    store.examples.add(
        NewExample(
            kind="automatic",
            query="Was heißt „ja“ → 日本 " * 9,
            response="はい",
            target="はい",
            weight=1.0,
            messages=[],
        )
    )
    store.close()
    done = run(stored, *verb, **change)
    assert b"this is a bug" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1) and done.stdout


def test_without_home_it_asks_the_system_or_says_what_to_do(tmp_path: Path) -> None:
    """`status` only looks, so the real home of whoever runs this is left alone."""
    code = (
        "import os, sys, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from appliance.cli import main\n"
        "sys.argv = ['shammah', 'status']\n"
        "main()\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "SHAMMAH_HOME")}
    for given in (env, env | {"HOME": ""}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "say in SHAMMAH_HOME where the box keeps its data" in done.stderr
        assert "bug" not in done.stderr
    for named in ("~nobody-of-that-name/x", "rel"):
        gone = tmp_path / "gone"
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'cd {gone}; rmdir {gone}; exec "$@"',
                "-",
                sys.executable,
                "-P",
                *COMMAND[1:],
                "status",
            ],
            env=env | {"SHAMMAH_HOME": named, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "SHAMMAH_HOME" in done.stderr, done.stderr
        assert "bug" not in done.stderr


@pytest.mark.parametrize("ends", [">&-", "2>&-", "<&- >&- 2>&-", "| head -c 0", "> /dev/full"])
def test_it_may_be_cut_off_from_everything(stored: Home, ends: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m appliance.cli queue show {ends}; echo done"],
        env={**os.environ, "SHAMMAH_HOME": str(stored.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "done" in done.stdout
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_a_password_may_come_from_any_shell(home: Home) -> None:
    """PowerShell puts a mark before what it pipes."""
    home.ensure()
    for typed in (b"\xef\xbb\xbfcorrect horse battery\r\n", b"correct horse battery\n"):
        done = subprocess.run(
            [*COMMAND, "console", "password"],
            input=typed,
            env={**os.environ, "SHAMMAH_HOME": str(home.root)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        store = Store.open(home)
        assert verify_password(store, "correct horse battery")
        store.close()
    done = run(home, "console", "password")
    assert b"bug" not in done.stderr
