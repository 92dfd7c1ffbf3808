"""The command as a whole: help, exit codes, errors, and that it starts light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest

from appliance.cli import cli
from appliance.home import Home
from appliance.process import only_daemon

if TYPE_CHECKING:
    from conftest import Shammah

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnxruntime",
    "sanic",
    "numpy",
    "pydantic",
    "httpx",
    "rich",
    "sqlite3",
    "asyncio",
)


def _verbs(command: click.Command = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(command, click.Group):
        found = [verb for name, sub in command.commands.items() for verb in _verbs(sub, (*path, name))]
        return [path, *found] if path else found
    return [path]


def test_help_teaches(shammah: Shammah) -> None:
    done = shammah("--help")
    assert done.returncode == 0
    for word in ("daemon", "train --now", "adapters", "queue", "model", "config", "Exit codes"):
        assert word in done.stdout


@pytest.mark.parametrize("verb", _verbs(), ids=" ".join)
def test_every_verb_explains_itself(verb: tuple[str, ...]) -> None:
    command: click.Command = cli
    for name in verb:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.name}"
        else:
            assert (parameter.metavar or parameter.name or "").upper() in command.help.upper()


def test_listing_verbs_have_json() -> None:
    verbs = ("status", "adapters list", "queue show", "model list", "keys list", "doctor", "model recommend")
    for verb in map(str.split, verbs):
        command: click.Command = cli
        for name in verb:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        assert "as_json" in {parameter.name for parameter in command.params}


def test_starting_the_command_loads_nothing_heavy() -> None:
    code = f"import sys, appliance.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("status", "--nonsense"),
        ("daemon", "--bind", "8080"),
        ("daemon", "--bind", "::1:80"),
        ("daemon", "--bind", "127.0.0.1:99999"),
        ("queue", "show", "--limit", "0"),
        ("keys", "create"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(shammah: Shammah, args: tuple[str, ...]) -> None:
    done = shammah(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "--now"), "No daemon runs"),
        (("train",), "No daemon runs"),
        (("model", "use", "absent"), "no model bundle"),
        (("model", "import", "not/a/model"), "is no model"),
        (("adapters", "validate", "../../etc/passwd"), "shammah model import"),
        (("adapters", "promote", "absent"), "shammah model import"),
        (("keys", "revoke", "absent"), "No device"),
        (("config", "check", "absent.toml"), "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_failure_is_1_and_one_line(shammah: Shammah, args: tuple[str, ...], words: str) -> None:
    done = shammah(*args)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_status_without_a_daemon(shammah: Shammah) -> None:
    assert "not running" in shammah("status").stdout
    facts = json.loads(shammah("status", "--json").stdout)
    assert facts["running"] is False
    assert facts["training"]["threshold"] == 100


@pytest.mark.parametrize("pid", ["dead", "reused"])
def test_a_daemon_that_crashed_is_not_taken_for_running(shammah: Shammah, home: Home, pid: str) -> None:
    home.ensure()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    # A pid that is in use by a process younger than the daemon was.
    started = time.time() if pid == "dead" else time.time() - 10 * 86400
    record = {
        "pid": child.pid if pid == "dead" else os.getpid(),
        "host": "127.0.0.1",
        "port": 9,
        "token": "t",
    }
    home.daemon.write_text(json.dumps({**record, "started": started}))
    assert json.loads(shammah("status", "--json").stdout)["running"] is False


def test_a_daemon_that_hangs_up_is_named(shammah: Shammah, home: Home) -> None:
    home.ensure()
    record = {"pid": os.getpid(), "host": "127.0.0.1", "port": 9, "token": "t", "started": time.time()}
    home.daemon.write_text(json.dumps(record))
    with only_daemon(home):
        done = shammah("status")
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr


def test_an_unexpected_error_is_no_traceback(shammah: Shammah, home: Home) -> None:
    home.ensure()
    home.adapters.rmdir()
    home.adapters.write_text("a file where a directory belongs")
    done = shammah("queue", "show")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
