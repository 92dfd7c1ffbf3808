"""`shammah config`, and that the daemon refuses a bad file with the line at fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import appliance
from appliance.config import Config, parse_config
from appliance.errors import ConfigError
from appliance.home import Home

if TYPE_CHECKING:
    from conftest import Shammah

BAD = """\
[server]
bind = "127.0.0.1:8080"
log_levl = "INFO"

[lora]
auto_train_threshold = 0
normal_weight = nan
"""


def test_show_prints_a_file_that_means_the_same(shammah: Shammah) -> None:
    assert parse_config(shammah("config", "show").stdout) == Config()


def test_show_has_what_the_file_says(shammah: Shammah, home: Home) -> None:
    home.ensure().config.write_text("[lora]\nauto_train_threshold = 7\n")
    shown = json.loads(shammah("config", "show", "--json").stdout)
    assert shown["lora"]["auto_train_threshold"] == 7
    assert shown["lora"]["batch_timeout_minutes"] == 60


def test_check_prints_every_problem_with_its_line(shammah: Shammah, home: Home) -> None:
    home.ensure().config.write_text(BAD)
    done = shammah("config", "check")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"config.toml line {n}" for n in (3, 6, 7)]
    assert "did you mean `log_level`?" in lines[0]


def test_check_of_a_file_not_in_place(shammah: Shammah, home: Home) -> None:
    home.ensure()
    other = home.root / "other.toml"
    other.write_text("[model]\nname = 'absent'\n")
    done = shammah("config", "check", str(other))
    assert done.returncode == 1
    assert "no model 'absent'" in done.stderr
    other.write_text("[lora]\nenabled = false\n")
    assert shammah("config", "check", str(other)).returncode == 0


@pytest.mark.parametrize("verb", [("config", "show"), ("status",), ("model", "list")], ids=" ".join)
def test_a_bad_file_stops_the_verb_with_the_line(shammah: Shammah, home: Home, verb: tuple[str, ...]) -> None:
    home.ensure().config.write_text(BAD)
    done = shammah(*verb)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "line 3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("servr = 1", 1),
        ("\n\nlora = 3", 3),
        ("[lora]\n# enabled = 1\nenabled = 'maybe'", 3),
        ("lora.enabled = 'maybe'", 1),
        ("lora = { enabled = 'maybe' }", 1),
        ("[train]\nrank = 8\n[train2]\nrank = 0", 3),
        ("[server]\n'bind' = 'x'", 2),
    ],
)
def test_lines(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.problems[0].startswith(f"config.toml line {line}: ")


@pytest.mark.parametrize("number", ["inf", "1e999"])
@pytest.mark.parametrize("key", [f"{s}.{k}" for s, of in Config() for k, v in of if type(v) in (int, float)])
def test_no_number_is_infinite(key: str, number: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"{key} = {number}")
    assert caught.value.param == key


def test_a_port_that_no_machine_has() -> None:
    assert parse_config('server.bind = "[::1]:65535"').server.bind == "[::1]:65535"
    with pytest.raises(ConfigError, match="65535"):
        parse_config('server.bind = "127.0.0.1:65536"')


@pytest.mark.parametrize(
    "text", ["[model]\nqueue = " + "9" * 5000, "a = " + "[" * 5000], ids=["long", "deep"]
)
def test_what_the_reader_of_toml_trips_over_is_a_problem_like_any_other(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        parse_config(text)


def test_only_one_room_of_the_daemon_reads_the_file_again() -> None:
    """All others go by the `Config` that they were given, which the room `settings` keeps up to date.

    The room `backup` reads the file of a backup, to see which model that needs; the doctor works beside the
    daemon.
    """
    package = Path(appliance.__file__).parent
    readers = {
        source.relative_to(package).parts[0]
        for source in package.rglob("*.py")
        if re.search(r"\b(load_config|parse_config)\b", source.read_text(encoding="utf-8"))
    }
    assert readers == {"backup", "commands", "config.py", "doctor", "settings"}


def test_broken_toml_names_the_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        parse_config("[lora]\nenabled = = 1\n")


def test_the_daemon_wants_a_model_it_can_name(shammah: Shammah, home: Home) -> None:
    home.ensure().config.write_text("[model]\nname = 'absent'\n")
    done = shammah("daemon")
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert "shammah model import" in done.stderr
