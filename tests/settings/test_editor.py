"""Changes from a form: saved, compared, written down, taken back, and what a broken file does to that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from appliance.config import Config, load_config, parse_config
from appliance.errors import (
    ConfigError,
    Conflict,
    InvalidRequest,
    InvalidSettings,
    NotFound,
    StorageFull,
    Unavailable,
)
from appliance.events import Event, EventBus
from appliance.home import Home
from appliance.settings.editor import SettingsEditor
from appliance.settings.file import ABSENT
from appliance.settings.form import keys
from appliance.store import Store
from appliance.store.changes import Change, Difference

FILE = """\
# mine
[lora]
auto_train_threshold = 7  # there are two of us
normal_weight = 1.0  # the default, but I want to see it

[train]
rank = 8
"""
BROKEN = "[lora]\nenabled = = 1\n"
WRONG = """\
[lora]
auto_train_threshold = 0  # none
enabeld = true
high_weight = 12

[train]
rank = 8
"""

Save = Callable[..., Change]


@pytest.fixture
def save(editor: SettingsEditor) -> Save:
    def run(actor: str = "owner", **changes: str | None) -> Change:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return editor.save(named, editor.page().file.etag, actor)

    return run


def test_the_page_of_no_file(editor: SettingsEditor) -> None:
    page = editor.page()
    assert page.file.etag == ABSENT
    assert list(page.texts) == list(keys())
    assert (page.texts["lora.enabled"], page.texts["train.learning_rate"]) == ("true", "0.0016")
    assert (page.errors, page.restart, page.reload, page.suggestion) == ({}, (), (), None)


def test_the_page_shows_the_file_and_what_waits_for_a_restart(editor: SettingsEditor, home: Home) -> None:
    home.config.write_text(f"{FILE}[model]\nslots = 3\n")
    page = editor.page()
    assert page.file.text == f"{FILE}[model]\nslots = 3\n"
    assert page.texts["lora.auto_train_threshold"] == "7"
    assert page.texts["lora.high_weight"] == "10"
    assert [key.name for key in page.restart] == ["model.slots"]
    assert [key.name for key in page.reload] == ["lora.auto_train_threshold", "train.rank"]


def test_what_runs_already_waits_for_nothing(home: Home, store: Store) -> None:
    home.config.write_text(FILE)
    editor = SettingsEditor(home, store, parse_config(FILE), EventBus())
    assert editor.page().restart == editor.page().reload == ()
    editor.save({"model.slots": "3", "train.rank": None}, editor.page().file.etag, "owner")
    assert [key.name for key in editor.page().restart] == ["model.slots"]
    assert editor.page().reload == ()
    editor.save({"model.slots": None, "train.rank": "8"}, editor.page().file.etag, "owner")
    assert editor.page().restart == ()


# -- what counts at once ----------------------------------------------------------------------


@pytest.fixture
def running() -> Config:
    return Config()


@pytest.fixture
def told(home: Home, store: Store, running: Config) -> tuple[SettingsEditor, list[Event]]:
    """The editor of a daemon that goes by `running`, and what that hears."""
    events, heard = EventBus(), list[Event]()
    events.listen(heard.append)
    return SettingsEditor(home, store, running, events), heard


def test_a_change_counts_at_once_or_waits(
    running: Config, told: tuple[SettingsEditor, list[Event]], home: Home
) -> None:
    editor, heard = told
    changes = {"train.rank": "4", "model.slots": "3", "model.temperature": "0.5"}
    change = editor.save(changes, editor.page().file.etag, "owner")
    assert (running.train.rank, running.model.slots, running.model.temperature) == (4, 8, 0.5)
    assert [key.name for key in editor.page().restart] == ["model.slots"]
    assert [event.data for event in heard] == [{"keys": ["model.temperature", "train.rank"]}]
    editor.undo(change.id, "owner")
    assert running == Config()
    editor.replace("[gate]\nmax_empty = 0.5\n", editor.page().file.etag, "owner")
    assert running.gate.max_empty == 0.5
    # What has no effect yet is no news.
    editor.save({"model.slots": "3"}, editor.page().file.etag, "owner")
    assert len(heard) == 3
    assert load_config(home.config).model.slots == 3


def test_nothing_counts_that_could_not_be_saved(
    running: Config,
    told: tuple[SettingsEditor, list[Event]],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor, heard = told
    _fail_commits(store, monkeypatch)
    with pytest.raises(StorageFull):
        editor.save({"train.rank": "4"}, editor.page().file.etag, "owner")
    assert running == Config()
    assert heard == []


def test_a_file_edited_by_hand_counts_when_it_is_read_again(
    running: Config, told: tuple[SettingsEditor, list[Event]], home: Home, store: Store
) -> None:
    editor, heard = told
    home.config.write_text(FILE)
    assert running == Config()
    assert [item.key for item in editor.reload("kitchen")] == ["lora.auto_train_threshold", "train.rank"]
    assert running == parse_config(FILE)
    (entry,) = store.audit.list()
    assert (entry.actor, entry.action) == ("kitchen", "settings.reload")
    assert entry.detail["keys"]["train.rank"] == [16, 8]
    assert editor.reload("kitchen") == ()
    assert len(store.audit.list()) == 1
    home.config.write_text(BROKEN)
    with pytest.raises(ConfigError, match="line 2"):
        editor.reload("kitchen")
    assert running == parse_config(FILE)
    assert len(heard) == 1


def test_as_it_is_typed(editor: SettingsEditor, home: Home) -> None:
    assert editor.check("train.rank", "0") == "This must be at least 1."
    assert editor.check("train.rank", " 64 ") is None
    assert editor.check("train.rank", "many") == "This must be a whole number."
    assert "model import" in (editor.check("model.name", "absent") or "")
    with pytest.raises(NotFound):
        editor.check("train.flux", "1")
    home.config.write_text(BROKEN)
    assert editor.check("train.rank", "0") is None
    assert not home.config.with_name("config.toml.broken").exists()


def test_save(editor: SettingsEditor, home: Home, store: Store) -> None:
    home.config.write_text(FILE)
    home.config.chmod(0o644)
    etag = editor.page().file.etag
    changes = {"lora.auto_train_threshold": "9", "train.rank": None, "gate.max_empty": "0.2"}
    expected = (
        Difference("lora.auto_train_threshold", 7, 9),
        Difference("train.rank", 8, 16),
        Difference("gate.max_empty", 0.05, 0.2),
    )
    assert editor.preview(changes, etag) == expected
    assert home.config.read_text() == FILE
    assert store.changes.list() == store.audit.list() == []

    change = editor.save(changes, etag, "owner")
    assert (change.actor, change.undoes, change.differences) == ("owner", None, expected)
    assert store.changes.list() == [change]
    assert home.config.read_text() == FILE.partition("\n[train]")[0].replace("= 7 ", "= 9 ") + (
        "\n[gate]\nmax_empty = 0.2\n"
    )
    (entry,) = store.audit.list()
    assert (entry.actor, entry.action) == ("owner", "settings.save")
    assert entry.detail["keys"]["train.rank"] == [8, 16]
    assert entry.detail["change"] == change.id
    assert home.config.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in home.root.glob("*config*")] == ["config.toml"]


def test_the_whole_form_may_be_sent(editor: SettingsEditor, home: Home) -> None:
    """Fields that nobody touched are no changes, not even those that say the default in the file."""
    home.config.write_text(FILE)
    page = editor.page()
    with pytest.raises(InvalidRequest, match="Nothing was changed") as caught:
        editor.save(page.texts, page.file.etag, "owner")
    assert caught.value.code == "unchanged"
    editor.save({**page.texts, "train.rank": "4"}, page.file.etag, "owner")
    assert home.config.read_text() == FILE.replace("rank = 8", "rank = 4")


def test_a_value_set_to_its_default_leaves_the_file(home: Home, save: Save) -> None:
    home.config.write_text(FILE)
    save(train__rank="16")
    assert "rank" not in home.config.read_text()
    save(train__rank="16.0", train__epochs="6")
    assert home.config.read_text().endswith("[train]\nepochs = 6\n")


def test_the_first_change_makes_the_file(home: Home, save: Save) -> None:
    save(lora__enabled="false")
    assert home.config.read_text() == "[lora]\nenabled = false\n"
    assert home.config.stat().st_mode & 0o777 == 0o600


def test_nothing_is_saved_when_one_value_is_wrong(home: Home, store: Store, save: Save) -> None:
    home.config.write_text(FILE)
    with pytest.raises(InvalidSettings) as caught:
        save(lora__enabled="false", train__rank="0")
    assert caught.value.problems == {"train.rank": "This must be at least 1."}
    assert home.config.read_text() == FILE
    assert store.changes.list() == store.audit.list() == []


@pytest.mark.parametrize("now", [FILE + "\n", None, BROKEN], ids=["edited", "removed", "broken"])
def test_a_file_that_changed_meanwhile(
    editor: SettingsEditor, home: Home, store: Store, now: str | None
) -> None:
    home.config.write_text(FILE)
    etag = editor.page().file.etag
    home.config.unlink()
    if now is not None:
        home.config.write_text(now)
    for attempt in (
        lambda: editor.preview({"train.rank": "4"}, etag),
        lambda: editor.save({"train.rank": "4"}, etag, "owner"),
        lambda: editor.preview_text("", etag),
        lambda: editor.replace("", etag, "owner"),
    ):
        with pytest.raises(Conflict) as caught:
            attempt()
        assert caught.value.param == "etag"
    assert (home.config.read_text() if home.config.exists() else None) == now
    assert store.changes.list() == []


def test_of_two_that_save_the_same_form_one_is_told(editor: SettingsEditor, store: Store) -> None:
    etag = editor.page().file.etag
    refused: list[str | None] = []

    def run(rank: int) -> None:
        try:
            editor.save({"train.rank": str(rank)}, etag, f"owner {rank}")
        except Conflict as error:
            refused.append(error.param)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["etag"] * 4
    (change,) = store.changes.list()
    assert editor.page().texts["train.rank"] == str(change.differences[0].new)


# -- undo -------------------------------------------------------------------------------------


def test_undo(editor: SettingsEditor, home: Home, store: Store, save: Save) -> None:
    home.config.write_text(FILE)
    first = save(train__rank="4", lora__enabled="false")
    save(train__seed="3")
    expected = editor.preview_undo(first.id)
    undone = editor.undo(first.id, "kitchen")
    assert undone.differences == expected
    assert home.config.read_text() == FILE + "seed = 3\n"
    assert (undone.actor, undone.undoes) == ("kitchen", first.id)
    assert undone.differences == (
        Difference("lora.enabled", False, True),
        Difference("train.rank", 4, 8),
    )
    entry = store.audit.list(1)[0]
    assert (entry.actor, entry.action, entry.detail["change"]) == ("kitchen", "settings.undo", undone.id)
    assert [item.undone for item in store.changes.list()] == [False, False, True]
    with pytest.raises(Conflict, match="already"):
        editor.undo(first.id, "owner")
    editor.undo(undone.id, "owner")
    assert parse_config(home.config.read_text()).train.rank == 4
    assert not store.changes.get(first.id).undone


def test_undo_of_what_never_was(editor: SettingsEditor) -> None:
    for attempt in (lambda: editor.undo(7, "owner"), lambda: editor.preview_undo(7)):
        with pytest.raises(NotFound):
            attempt()


def test_undo_when_a_key_was_changed_again(
    editor: SettingsEditor, home: Home, store: Store, save: Save
) -> None:
    first = save(train__rank="4", train__seed="1")
    second = save("kitchen tablet", train__rank="2", train__epochs="9")
    before = home.config.read_text()
    with pytest.raises(Conflict, match=r"train\.rank was changed again by kitchen tablet at 20") as caught:
        editor.undo(first.id, "owner")
    assert caught.value.param == "train.rank"
    assert home.config.read_text() == before
    # The same value again is a change of mind all the same.
    third = save(train__rank="4")
    with pytest.raises(Conflict, match="changed again by owner"):
        editor.undo(first.id, "owner")
    # From the newest on, all of them can be taken back.
    for change in (third, second, first):
        editor.undo(change.id, "owner")
    assert load_config(home.config) == Config()
    assert home.config.read_text() == ""
    assert store.changes.count() == 6


def test_undo_when_the_file_was_edited(editor: SettingsEditor, home: Home, store: Store, save: Save) -> None:
    first = save(train__rank="4")
    home.config.write_text("[train]\nrank = 5\n")
    with pytest.raises(Conflict, match="changed in the file since, to 5") as caught:
        editor.undo(first.id, "owner")
    assert caught.value.param == "train.rank"
    home.config.write_text(BROKEN)
    with pytest.raises(Conflict, match="broken"):
        editor.undo(first.id, "owner")
    assert home.config.read_text() == BROKEN
    assert store.changes.count() == 1


def test_undo_of_a_key_that_a_release_dropped(editor: SettingsEditor, store: Store) -> None:
    gone = store.changes.add("owner", [Difference("train.flux", 1, 2)])
    with pytest.raises(Conflict, match=r"no train\.flux any more"):
        editor.undo(gone.id, "owner")


def test_undo_to_a_value_that_is_not_allowed_any_more(
    editor: SettingsEditor, store: Store, save: Save
) -> None:
    save(train__rank="4")
    narrowed = store.changes.add("owner", [Difference("train.rank", 1000, 4)])
    with pytest.raises(InvalidSettings) as caught:
        editor.undo(narrowed.id, "owner")
    assert caught.value.param == "train.rank"


# -- a broken file ----------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_shown_and_replaced(
    editor: SettingsEditor, home: Home, store: Store
) -> None:
    home.config.write_text(BROKEN)
    page = editor.page()
    assert page.file.text == BROKEN
    assert "line 2" in page.file.problems[0]
    assert page.texts["lora.auto_train_threshold"] == "100"
    assert (page.restart, page.suggestion) == ((), "")
    with pytest.raises(Conflict, match="as a whole"):
        editor.save({"train.rank": "4"}, page.file.etag, "owner")
    with pytest.raises(InvalidSettings) as caught:
        editor.replace(BROKEN + "x = 1", page.file.etag, "owner")
    assert "line 2" in caught.value.problems["text"]
    assert home.config.read_text() == BROKEN

    mended = "[lora]\nenabled = false\n"
    assert editor.preview_text(mended, page.file.etag) == (Difference("lora.enabled", True, False),)
    change = editor.replace(mended, page.file.etag, "owner")
    assert home.config.read_text() == mended
    assert (home.root / "config.toml.broken").read_text() == BROKEN
    assert store.audit.list()[0].action == "settings.replace"
    editor.undo(change.id, "owner")
    assert load_config(home.config) == Config()


def test_what_is_in_use_is_offered_for_a_broken_file(home: Home, store: Store) -> None:
    running = parse_config(FILE)
    editor = SettingsEditor(home, store, running, EventBus())
    home.config.write_bytes(b"\xff\xfe")
    page = editor.page()
    assert page.texts["train.rank"] == "8"
    assert page.suggestion is not None
    change = editor.replace(page.suggestion, page.file.etag, "owner")
    assert load_config(home.config) == running
    assert (home.root / "config.toml.broken").read_bytes() == b"\xff\xfe"
    assert editor.page().restart == change.differences == ()
    with pytest.raises(Conflict, match="nothing to undo"):
        editor.undo(change.id, "owner")


def test_wrong_values_are_mended_key_by_key(editor: SettingsEditor, home: Home) -> None:
    home.config.write_text(WRONG)
    page = editor.page()
    assert page.errors == {
        "lora.auto_train_threshold": "This must be at least 1.",
        "lora.enabeld": "Unknown key; did you mean `enabled`?",
    }
    assert (page.texts["lora.auto_train_threshold"], page.texts["lora.high_weight"]) == ("0", "12")
    assert [problem.split(":")[0] for problem in page.file.problems] == [
        f"config.toml line {n}" for n in (2, 3)
    ]
    with pytest.raises(InvalidSettings) as caught:
        editor.save({"lora.auto_train_threshold": "5"}, page.file.etag, "owner")
    assert list(caught.value.problems) == ["lora.enabeld"]
    change = editor.save({"lora.auto_train_threshold": "5", "lora.enabeld": None}, page.file.etag, "owner")
    assert home.config.read_text() == WRONG.replace("= 0 ", "= 5 ").replace("enabeld = true\n", "")
    # Compared with what runs: the values of the file were never in effect.
    assert {item.key: item.old for item in change.differences} == {
        "lora.auto_train_threshold": 100,
        "lora.high_weight": 10,
        "train.rank": 16,
    }


def test_mending_to_what_runs_is_no_change_of_values(
    editor: SettingsEditor, home: Home, store: Store
) -> None:
    home.config.write_text("[train]\nrank = 'x' # hm\n")
    change = editor.save({"train.rank": None}, editor.page().file.etag, "owner")
    assert change.differences == ()
    assert home.config.read_text() == "[train]\n# hm\n"
    assert store.changes.count() == 1


def test_a_good_file_may_be_written_by_hand(editor: SettingsEditor, home: Home) -> None:
    home.config.write_text(FILE)
    text = FILE.replace("rank = 8", "rank = 4  # less") + "# the end\n"
    change = editor.replace(text.replace("\n", "\r\n"), editor.page().file.etag, "owner")
    assert change.differences == (Difference("train.rank", 8, 4),)
    assert home.config.read_bytes().decode() == text
    assert not (home.root / "config.toml.broken").exists()
    with pytest.raises(InvalidSettings) as caught:
        editor.replace("# \ud800", editor.page().file.etag, "owner")
    assert caught.value.param == "text"
    home.config.write_bytes(text.replace("\n", "\r\n").encode())
    editor.replace("# a\r\n# b\r\n", editor.page().file.etag, "owner")
    assert home.config.read_bytes() == b"# a\r\n# b\r\n"


def test_a_directory_in_its_place(editor: SettingsEditor, home: Home, store: Store) -> None:
    home.config.mkdir()
    page = editor.page()
    assert "cannot be read" in page.file.problems[0]
    with pytest.raises(Unavailable, match="cannot be written"):
        editor.replace("", page.file.etag, "owner")
    assert store.changes.list() == []


# -- file and store together --------------------------------------------------------------------


def test_a_full_disk_keeps_history_empty(
    editor: SettingsEditor, home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise StorageFull("full")

    home.config.write_text(FILE)
    monkeypatch.setattr("appliance.settings.file.write_atomic", full)
    with pytest.raises(StorageFull):
        editor.save({"train.rank": "4"}, editor.page().file.etag, "owner")
    assert home.config.read_text() == FILE
    assert store.changes.list() == store.audit.list() == []


def test_the_file_is_put_back_when_the_commit_fails(
    editor: SettingsEditor, home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for before in (FILE, None):
        if before is None:
            home.config.unlink()
        else:
            home.config.write_text(before)
        etag = editor.page().file.etag
        with monkeypatch.context() as patched:
            _fail_commits(store, patched)
            with pytest.raises(StorageFull):
                editor.save({"train.rank": "4"}, etag, "owner")
        assert editor.page().file.etag == etag
        assert (home.config.read_text() if home.config.exists() else None) == before
    assert store.changes.list() == store.audit.list() == []


def _fail_commits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything go well until the end of the outermost transaction."""
    inner = store.database.transaction

    @contextmanager
    def outermost() -> Iterator[None]:
        with inner():
            yield
            raise StorageFull("full")

    monkeypatch.setattr(store, "transaction", outermost)
