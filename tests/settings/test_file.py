"""The owner's file is changed, not written anew."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config, keep_good, load_config, load_to_serve, parse_config
from appliance.errors import ConfigError, Conflict, InvalidSettings, StorageFull, Unavailable
from appliance.settings.file import ABSENT, edit, newline, read, render, write
from appliance.settings.form import keys, values
from appliance.settings.typed import apply

FILE = """\
# My box, see the shelf.

[train]   # slow at night
rank = 8            # enough for us

  # nobody knows
  seed = 0x10

# When to learn.
[lora]
# why seven
auto_train_threshold = 7  # there are two of us
'high_weight' = 12.5
# medium_weight = 4

[server]
bind = '127.0.0.1:9000'
"""


def change(text: str, **changes: str | None) -> str:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    wanted = apply(tomllib.loads(text), named)
    return edit(text, {name: value and values(wanted)[name] for name, value in named.items()}, wanted)


def test_a_value_is_replaced_where_it_stands() -> None:
    done = change(FILE, lora__auto_train_threshold="9", train__rank="4", server__bind="127.0.0.1:1")
    assert done == FILE.replace("= 7 ", "= 9 ").replace("= 8 ", "= 4 ").replace(
        "'127.0.0.1:9000'", '"127.0.0.1:1"'
    )


def test_a_new_key_comes_after_the_last_of_its_section() -> None:
    done = change(FILE, lora__normal_weight="2", train__epochs="3")
    assert done == FILE.replace("12.5\n", "12.5\nnormal_weight = 2.0\n").replace(
        "0x10\n", "0x10\nepochs = 3\n"
    )


def test_a_new_section_comes_last() -> None:
    assert change(FILE, gate__max_empty="0.25") == FILE + "\n[gate]\nmax_empty = 0.25\n"


def test_a_default_is_removed_and_its_comment_stays() -> None:
    done = change(FILE, lora__auto_train_threshold=None, train__rank=None)
    assert done == FILE.replace("auto_train_threshold = 7  # there", "# there").replace(
        "rank = 8            # enough", "# enough"
    )
    assert parse_config(done).train.rank == 16


def test_a_section_goes_with_its_last_key_unless_something_is_said_in_it() -> None:
    assert change(FILE, server__bind=None) == FILE.partition("[server]")[0]
    assert "[lora]" in change(FILE, lora__auto_train_threshold=None, lora__high_weight=None)
    assert change("[train] # slow\nrank = 8\n", train__rank=None) == "[train] # slow\n"


def test_unknown_keys_can_be_taken_out() -> None:
    text = "# a\n[lora]\nenabeld = true # b\nenabled = false\n[servr]\nx = 1\n"
    wanted = parse_config("lora.enabled = false")
    assert edit(text, {"lora.enabeld": None, "servr": None}, wanted) == "# a\n[lora]\n# b\nenabled = false\n"


def test_comments_of_dotted_keys_stay_too() -> None:
    rest = "lora.high_weight = 4 # b\nserver.log_level = 'INFO'\n"
    text = f"lora.enabled = false # a\n{rest}lora.normal_weight = 2 # c\n"
    done = change(text, lora__enabled=None, lora__normal_weight=None)
    assert done == f"# a\n{rest}# c\n"
    assert "[lora]" not in change(done, lora__high_weight=None)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("", "[lora]\nhigh_weight = 4.0\n"),
        ("# mine", "# mine\n\n[lora]\nhigh_weight = 4.0\n"),
        ("[lora]\nenabled = false", "[lora]\nenabled = false\nhigh_weight = 4.0\n"),
        ("lora.enabled = false # a\n", "lora.enabled = false # a\nlora.high_weight = 4.0\n"),
        ("lora = { enabled = false } # a\n", "lora = { enabled = false, high_weight = 4.0} # a\n"),
        ("[lora]\r\nenabled = false # a\r\n", "[lora]\r\nenabled = false # a\r\nhigh_weight = 4.0\r\n"),
        ("[lora]\n\n# b\n[train]\nrank = 8\n", "[lora]\nhigh_weight = 4.0\n\n# b\n[train]\nrank = 8\n"),
        (
            "lora.enabled = false # a\nserver.log_level = 'INFO'\nlora.normal_weight = 1 # b\n",
            "lora.enabled = false # a\nlora.high_weight = 4.0\nserver.log_level = 'INFO'\n"
            "lora.normal_weight = 1 # b\n",
        ),
    ],
    ids=["empty", "comment", "no end of line", "dotted", "inline", "windows", "blank", "apart"],
)
def test_ways_to_write_a_file(text: str, after: str) -> None:
    assert change(text, lora__high_weight="4") == after
    assert parse_config(change(after, lora__high_weight=None)) == parse_config(text)


def test_a_wrong_outcome_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Conflict, match="edit the file") as caught:
        edit(FILE, {"train.rank": 4}, Config())
    assert caught.value.param == "train.rank"

    def broken(text: str) -> Any:
        raise AttributeError("a bug of tomlkit's")

    monkeypatch.setattr("tomlkit.parse", broken)
    with pytest.raises(Conflict, match="edit the file"):
        change(FILE, train__rank="4")


NUMBERS = {name: key for name, key in keys().items() if key.kind in ("whole", "number") and key.most != 0.1}


def _sample(name: str) -> str:
    """Some value that is allowed and not the default."""
    key = keys()[name]
    for value in ("0.25", "1", "2", "17", "70", "300", "2000"):
        try:
            if values(apply({}, {name: value}))[name] != key.default:
                return value
        except InvalidSettings:
            continue
    raise AssertionError(name)


@st.composite
def files(draw: st.DrawFn) -> str:
    """Files of many habits, each with comments, numbered so that none can be lost unseen."""
    lines: list[str] = []

    def comment() -> str:
        return f"# c{len(lines)}." if draw(st.booleans()) else ""

    def trivia() -> None:
        lines.extend(draw(st.lists(st.sampled_from(["", "  ", "# free"]), max_size=2)))
        if draw(st.booleans()):
            lines.append(f"# c{len(lines)}.")

    sections = draw(st.lists(st.sampled_from(list(Config.model_fields)), unique=True, max_size=4))
    dotted = [section for section in sections if draw(st.integers(0, 4)) == 0]
    for section in sorted(sections, key=lambda name: name not in dotted):
        names = [name for name in NUMBERS if name.startswith(f"{section}.")]
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=4)) if names else []
        trivia()
        if section not in dotted:
            lines.append(
                draw(st.sampled_from([f"[{section}]", f"  [ {section} ]", f"['{section}']"])) + comment()
            )
        for name in chosen:
            title = name if section in dotted else name.partition(".")[2]
            trivia()
            lines.append(f"{draw(st.sampled_from(['', '  ']))}{title} = {_sample(name)} {comment()}")
    trivia()
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + draw(st.sampled_from(["", end]))


def _comments(text: str) -> list[str]:
    return re.findall(r"# c\d+\.", text)


@given(files(), st.lists(st.tuples(st.sampled_from(list(NUMBERS)), st.booleans()), max_size=5))
def test_any_file_keeps_its_comments_and_its_order(text: str, wishes: list[tuple[str, bool]]) -> None:
    old = parse_config(text)
    changes = {name: _sample(name) if there else None for name, there in wishes}
    wanted = apply(tomllib.loads(text), changes)
    done = edit(text, {name: value and values(wanted)[name] for name, value in changes.items()}, wanted)
    assert parse_config(done) == wanted
    assert _comments(done) == _comments(text)
    assert newline(done) == newline(text) or len(done.splitlines()) < 2 or len(text.splitlines()) < 2
    untouched = [line for line in text.splitlines() if line.strip() and "=" in line]
    kept = [line for line in untouched if not any(name.partition(".")[2] in line for name in changes)]
    there = iter(done.splitlines())
    assert all(line in there for line in kept)
    assert parse_config(done) == old or changes


def test_render_says_only_what_differs() -> None:
    config = parse_config(FILE)
    text = render(config)
    assert parse_config(text) == config
    assert text.splitlines()[:2] == ["[server]", 'bind = "127.0.0.1:9000"']
    assert text.count("=") == 5
    assert render(Config()) == ""


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    absent = read(path)
    assert (absent.etag, absent.config, absent.raw, absent.data) == (ABSENT, Config(), {}, None)
    seen = {ABSENT}
    for data in (b"", b"[lora]\n", b"[lora]\r\n", FILE.encode()):
        path.write_bytes(data)
        file = read(path)
        assert file.text.encode() == file.data == data
        assert file.config == parse_config(data.decode())
        assert file.problems == ()
        assert file.etag not in seen
        seen.add(file.etag)


@pytest.mark.parametrize(
    ("data", "problem", "raw"),
    [
        (b"[lora]\nenabled = = 1", "line 2", None),
        (b"a = 1\xff", "UTF-8", None),
        (b"\xff\xfe[\0l\0o\0r\0a\0]\0", "UTF-16", None),
        (b"a = " + b"[" * 5000, "not valid TOML", None),
        (b"[lora]\nenabled = 'x'\nb = 1", "line 2", {"lora": {"enabled": "x", "b": 1}}),
    ],
    ids=["grammar", "bytes", "mark", "deep", "value"],
)
def test_read_a_broken_file(tmp_path: Path, data: bytes, problem: str, raw: dict[str, Any] | None) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    file = read(path)
    assert file.config is None
    assert problem in file.problems[0]
    assert file.raw == raw
    assert file.data == data
    assert file.text


def test_read_what_is_no_file(tmp_path: Path) -> None:
    file = read(tmp_path)
    assert file.config is file.data is None
    assert "cannot be read" in file.problems[0]
    with pytest.raises(Unavailable, match="cannot be written"):
        write(tmp_path, "x")


def test_write_keeps_mode_and_link(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real.name)
    write(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    fresh = tmp_path / "fresh.toml"
    write(fresh, b"x\r\n")
    assert fresh.read_bytes() == b"x\r\n"
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise StorageFull("full")

    monkeypatch.setattr("appliance.settings.file.write_atomic", full)
    with pytest.raises(StorageFull):
        write(tmp_path / "config.toml", "x")


# -- as editors on other systems save it


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_part_of_it(tmp_path: Path, ends: str) -> None:
    """Read in every way there is, changed by the console, and good for the next start."""
    path, good = tmp_path / "config.toml", tmp_path / "good.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ends.join(["# mine", "[lora]", "enabled = false", ""]).encode())
    assert not load_config(path).lora.enabled
    assert not load_to_serve(path, good).problems
    keep_good(path, good)
    assert not load_config(good).lora.enabled
    found = read(path)
    assert found.config == load_config(path)
    assert not found.problems
    assert found.raw == {"lora": {"enabled": False}}
    wanted = parse_config("[lora]\nenabled = false\nnormal_weight = 2.0\n")
    changed = edit(found.text, {"lora.normal_weight": 2.0}, wanted)
    write(path, changed)
    assert load_config(path) == wanted
    assert path.read_bytes().decode().startswith("# mine" + ends)
    assert parse_config("\ufeff" + changed) == wanted  # pasted into the form


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_of_utf_16_it_is_said_what_it_is(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes("[lora]\nenabled = false\n".encode(encoding))
    with pytest.raises(ConfigError, match="saved as UTF-16: save it as UTF-8"):
        load_config(path)
    assert "UTF-16" in read(path).problems[0]


def test_of_another_encoding_the_line_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes('# a\n[console]\nname = "Küche"\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match="line 3: not valid UTF-8"):
        load_config(path)
