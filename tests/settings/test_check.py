"""A value that would keep the box from starting is refused while there is still a page to say so."""

from __future__ import annotations

import socket

import pytest

from appliance.config import Config, parse_config
from appliance.errors import InvalidSettings
from appliance.home import Home
from appliance.settings.check import problems
from appliance.settings.editor import SettingsEditor
from appliance.store import Store


def check(store: Store, home: Home, text: str) -> dict[str, str]:
    config = parse_config(text)
    return problems(config, {text.partition(" ")[0]}, home, store)


def test_the_network_needs_nothing_first(store: Store, home: Home) -> None:
    """Until there is a password the daemon listens there, but serves this machine only."""
    for bind in ("0.0.0.0:0", "[::]:0", "localhost:0"):
        assert check(store, home, f'server.bind = "{bind}"') == {}


@pytest.mark.parametrize("host", ["192.0.2.1", "[1:2:3]", "no-such-host.invalid", f"{'a' * 64}.b"])
def test_an_address_that_is_not_ours(store: Store, home: Home, host: str) -> None:
    assert list(check(store, home, f'server.bind = "{host}:8080"')) == ["server.bind"]


def test_a_port_in_use_is_most_likely_our_own(store: Store, home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert check(store, home, f'server.bind = "127.0.0.1:{taken.getsockname()[1]}"') == {}


def test_a_model_that_is_not_there(store: Store, home: Home) -> None:
    assert "shammah model import" in check(store, home, 'model.name = "absent"')["model.name"]
    assert check(store, home, f'model.name = "{Config().model.name}"') == {}


def test_a_trainer_that_is_not_there(store: Store, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"train.backend", "train.ort_python"}
    config = parse_config('train.backend = "ort"\ntrain.ort_python = "/no/such/python"')
    assert list(problems(config, changed, home, store)) == ["train.ort_python"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(check(store, home, 'train.backend = "peft"')) == ["train.backend"]
    assert check(store, home, 'train.backend = "auto"') == {}


def test_only_what_is_changed_is_looked_at(editor: SettingsEditor, home: Home) -> None:
    home.config.write_text('model.name = "absent"\n')
    etag = editor.page().file.etag
    editor.save({"train.rank": "4"}, etag, "owner")
    with pytest.raises(InvalidSettings) as caught:
        editor.save({"model.name": "gone"}, editor.page().file.etag, "owner")
    assert caught.value.param == "model.name"


def test_every_way_to_the_file_is_checked(editor: SettingsEditor, home: Home, store: Store) -> None:
    text = 'server.bind = "no-such-host.invalid:8080"\n'
    etag = editor.page().file.etag
    for attempt in (
        lambda: editor.preview({"server.bind": "no-such-host.invalid:8080"}, etag),
        lambda: editor.save({"server.bind": "no-such-host.invalid:8080"}, etag, "owner"),
        lambda: editor.preview_text(text, etag),
        lambda: editor.replace(text, etag, "owner"),
    ):
        with pytest.raises(InvalidSettings) as caught:
            attempt()
        assert list(caught.value.problems) == ["server.bind"]
    assert not home.config.exists()
    # Undoing brings back a value that was fine when it was saved, and may not be any more.
    home.config.write_text(text)
    away = editor.save({"server.bind": "127.0.0.1:0"}, editor.page().file.etag, "owner")
    with pytest.raises(InvalidSettings):
        editor.undo(away.id, "owner")
