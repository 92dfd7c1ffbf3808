"""Changing `config.toml` from the console: shown, compared, checked, saved, written down, taken back.

What is saved counts at once, as far as the daemon can take it while it runs (see `Config.adopt`), and
`Page.restart` says what waits for the next start. A file that somebody edited beside it counts when
`reload` is called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from appliance.config import Config, parse_config
from appliance.errors import ConfigError, Conflict, InvalidRequest, InvalidSettings, NotFound, ShammahError
from appliance.events import EventBus
from appliance.failpoints import failpoint
from appliance.files import remove_durably
from appliance.home import Home
from appliance.settings.check import problems
from appliance.settings.file import OnDisk, edit, newline, read, render, write
from appliance.settings.form import Key, as_text, differences, keys, reload_needed, restart_needed, values
from appliance.settings.typed import Changes, apply
from appliance.store import Store
from appliance.store.changes import Change, Difference


@dataclass(frozen=True)
class Page:
    """What the owner looks at.

    Attributes:
        file: `config.toml` as it is now; its etag goes back with what is saved.
        texts: of each key, what the form shows: the file's value or the default; of a file that cannot be
            read at all, the value in use.
        errors: what is wrong with the file, by key; beside `file.problems`, which has the lines.
        restart: the keys that a restart would change. Of a broken file, none: the box would not start.
        reload: the keys that `reload` would change.
        suggestion: of a broken file, one that means what is in use, to replace it with.
    """

    file: OnDisk
    texts: Mapping[str, str]
    errors: Mapping[str, str]
    restart: tuple[Key, ...]
    reload: tuple[Key, ...]
    suggestion: str | None


@dataclass(frozen=True)
class _Plan:
    file: OnDisk
    text: str
    after: Config
    differences: tuple[Difference, ...]


class SettingsEditor:
    """The one way to the file for the console. Thread-safe; its calls wait for the disk."""

    def __init__(self, home: Home, store: Store, running: Config, events: EventBus) -> None:
        """Make one.

        Args:
            home: whose `config.toml` it is.
            store: for history and audit.
            running: what the daemon goes by; changed here.
            events: told of what counts from now on.
        """
        self._home = home
        self._store = store
        self._running = running
        self._events = events
        self._lock = threading.Lock()

    def page(self) -> Page:
        """The file's state and the form's texts. Never fails because of the file."""
        file = read(self._home.config)
        if file.config is not None:
            restart, reload = (
                restart_needed(self._running, file.config),
                reload_needed(self._running, file.config),
            )
            return Page(file, _texts(values(file.config)), {}, restart, reload, None)
        suggestion = render(self._running)
        if file.raw is None:
            return Page(file, _texts(values(self._running)), {}, (), (), suggestion)
        shown = {name: key.default for name, key in keys().items()}
        for section, table in file.raw.items():
            if isinstance(table, dict):
                shown |= {f"{section}.{key}": value for key, value in table.items()}
        errors: dict[str, str] = {}
        try:
            apply(file.raw, {})
        except InvalidSettings as error:
            errors = error.problems
        return Page(file, _texts({name: shown[name] for name in keys()}), errors, (), (), suggestion)

    def check(self, name: str, text: str) -> str | None:
        """What is wrong with the value of one key as it was typed; None when nothing is.

        Raises:
            NotFound: there is no such key.
        """
        if name not in keys():
            raise NotFound(f"There is no setting {name}.", param="key")
        try:
            self._plan(read(self._home.config), {name: text})
        except InvalidSettings as error:
            return error.problems.get(name)
        except Conflict:
            return None  # with the file, not with the value
        return None

    def reload(self, actor: str) -> tuple[Difference, ...]:
        """Go by the file as it is now, as far as that needs no restart; returns what counts from now on.

        Raises:
            ConfigError: the file is broken; all goes on as before.
            StorageFull: there is no room to write down who did this; all goes on as before.
        """
        with self._lock:
            file = read(self._home.config)
            if file.config is None:
                raise ConfigError(*file.problems)
            after = self._running.model_copy()
            after.adopt(file.config)
            if found := differences(self._running, after):
                detail = {item.key: [item.old, item.new] for item in found}
                self._store.audit.add(actor, "settings.reload", {"keys": detail})
            return self._adopt(file.config)

    def preview(self, changes: Changes, etag: str) -> tuple[Difference, ...]:
        """What saving these changes would do; raises what `save` would."""
        return self._plan(self._file(etag), changes).differences

    def save(self, changes: Changes, etag: str, actor: str) -> Change:
        """Change keys and keep the rest of the file as it is.

        Args:
            changes: by key, the text of the form; None is back to the default, or away with an unknown key.
            etag: of the file that the form was made of.
            actor: who does it, for history and audit.

        Raises:
            InvalidSettings: a value is wrong, or the box would not start with it.
            Conflict: the file has changed since, or cannot be changed key by key.
            InvalidRequest: nothing would be different.
            StorageFull: there is no room; nothing was changed.
        """
        with self._lock:
            plan = self._plan(self._file(etag), changes)
            if not plan.differences and plan.file.config is not None:
                raise InvalidRequest("Nothing was changed.", code="unchanged")
            return self._keep(plan, actor, "settings.save")

    def preview_text(self, text: str, etag: str) -> tuple[Difference, ...]:
        """What replacing the file would do; raises what `replace` would."""
        return self._plan_text(self._file(etag), text).differences

    def replace(self, text: str, etag: str, actor: str) -> Change:
        """Put another file in place of this one: the way out of a broken file, which is kept beside.

        Raises:
            InvalidSettings: under "text", every problem of it with its line; or the box would not start.
            Conflict: the file has changed since.
            InvalidRequest: it is the same text.
            StorageFull: there is no room; nothing was changed.
        """
        with self._lock:
            plan = self._plan_text(self._file(etag), text)
            if plan.text == plan.file.text and plan.file.config is not None:
                raise InvalidRequest("Nothing was changed.", code="unchanged")
            return self._keep(plan, actor, "settings.replace")

    def preview_undo(self, change_id: int) -> tuple[Difference, ...]:
        """What undoing a change would do; raises what `undo` would."""
        return self._plan_undo(self._store.changes.get(change_id)).differences

    def undo(self, change_id: int, actor: str) -> Change:
        """Give all keys of a change the values from before it.

        Raises:
            NotFound: there is no such change.
            Conflict: it is undone already, one of its keys was changed again, or the file is broken.
            InvalidSettings: the box would not start with the values of then.
            StorageFull: there is no room; nothing was changed.
        """
        with self._lock:
            change = self._store.changes.get(change_id)
            return self._keep(self._plan_undo(change), actor, "settings.undo", change.id)

    def _file(self, etag: str) -> OnDisk:
        file = read(self._home.config)
        if file.etag != etag:
            raise Conflict(
                "config.toml was changed since this page was shown: look at it again, then save.",
                param="etag",
            )
        return file

    def _plan(self, file: OnDisk, changes: Changes) -> _Plan:
        if file.raw is None:
            raise Conflict("config.toml cannot be read: mend or replace it as a whole.", param="text")
        before, after = values(file.config or self._running), apply(file.raw, changes)
        new = values(after)
        edits: dict[str, Any] = {}
        for name in changes:
            if name not in new:
                edits[name] = None
            # What the owner wrote down stays, even where it says the default.
            elif file.config is None or new[name] != before[name]:
                edits[name] = None if new[name] == keys()[name].default else new[name]
        return self._checked(file, edit(file.text, edits, after) if edits else file.text, after)

    def _plan_text(self, file: OnDisk, text: str) -> _Plan:
        # A browser sends every text with the line ends of Windows.
        text = text.replace("\r\n", "\n").replace("\n", newline(file.text))
        try:
            text.encode()
            after = parse_config(text)
        except UnicodeEncodeError as error:
            raise InvalidSettings({"text": "This is not valid Unicode."}) from error
        except ConfigError as error:
            raise InvalidSettings({"text": "\n".join(error.problems)}) from error
        return self._checked(file, text, after)

    def _checked(self, file: OnDisk, text: str, after: Config) -> _Plan:
        """A plan that the box would start with. A broken file was never in effect: what runs is compared."""
        found = differences(file.config or self._running, after)
        if wrong := problems(after, {item.key for item in found}, self._home, self._store):
            raise InvalidSettings(wrong)
        return _Plan(file, text, after, found)

    def _plan_undo(self, change: Change) -> _Plan:
        file = read(self._home.config)
        self._may_undo(change, file)
        return self._plan(file, {item.key: item.old for item in change.differences})

    def _may_undo(self, change: Change, file: OnDisk) -> None:
        if change.undone:
            raise Conflict("This change is undone already.", param="id")
        if not change.differences:
            raise Conflict("This change left every value as it was: there is nothing to undo.", param="id")
        if file.config is None:
            raise Conflict("config.toml is broken: mend it first.", param="text")
        now = values(file.config)
        later = self._store.changes.standing_after(change.id)
        for item in change.differences:
            newer = next((other for other in later if other.touches(item.key)), None)
            if newer is not None:
                at = time.strftime("%Y-%m-%d %H:%M", time.localtime(newer.at))
                raise Conflict(
                    f"{item.key} was changed again by {newer.actor} at {at}: undo that first.", param=item.key
                )
            if item.key not in now:
                raise Conflict(f"There is no {item.key} any more.", param=item.key)
            if now[item.key] != item.new:
                raise Conflict(
                    f"{item.key} was changed in the file since, to {as_text(now[item.key]) or 'nothing'}: "
                    "set it by hand.",
                    param=item.key,
                )

    def _keep(self, plan: _Plan, actor: str, action: str, undoes: int | None = None) -> Change:
        detail = {item.key: [item.old, item.new] for item in plan.differences}
        with self._put_back_on_failure(plan), self._store.transaction():
            change = self._store.changes.add(actor, plan.differences, undoes)
            self._store.audit.add(actor, action, {"change": change.id, "keys": detail})
            failpoint("settings.recorded")
            if plan.file.config is None and plan.file.data is not None:
                write(self._home.config.with_name("config.toml.broken"), plan.file.data)
            write(self._home.config, plan.text)
            failpoint("settings.written")
        failpoint("settings.stored")
        self._adopt(plan.after)
        return change

    def _adopt(self, new: Config) -> tuple[Difference, ...]:
        before = self._running.model_copy()
        self._running.adopt(new)
        taken = differences(before, self._running)
        if taken:
            self._events.publish("settings.changed", keys=[item.key for item in taken])
        return taken

    @contextmanager
    def _put_back_on_failure(self, plan: _Plan) -> Iterator[None]:
        """The file is written before the store commits, so history tells of nothing that never was."""
        try:
            yield
        except BaseException:
            if read(self._home.config).data == plan.text.encode():
                with suppress(ShammahError, OSError):
                    if plan.file.data is None:
                        remove_durably(self._home.config)
                    else:
                        write(self._home.config, plan.file.data)
            raise


def _texts(shown: Mapping[str, object]) -> dict[str, str]:
    return {name: as_text(value) for name, value in shown.items()}
