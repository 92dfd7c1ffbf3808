"""What is in the audit trail, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from appliance.store.audit import AuditEntry

_BASE = "the base model"


def _adapters(detail: Mapping[str, Any]) -> str:
    names = detail.get("adapters") or []
    return f"; {', '.join(map(str, names))} had learned from it" if names else ""


def _counted(count: Any, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "login": lambda d: "Logged in",
    "logout": lambda d: "Logged out",
    "login.failed": lambda d: "Tried to log in with a wrong password",
    "login.throttled": lambda d: "Tried to log in too often, and was made to wait",
    "owner.password": lambda d: "Set the owner's password",
    "setup.refused": lambda d: "Opened a setup link that does not work",
    "setup.throttled": lambda d: "Tried setup links too often, and was made to wait",
    "setup.password": lambda d: "Set the owner's password, and so made the box theirs",
    "setup.tried": lambda d: "Tried a device's key" + ("" if d.get("worked") else ", in vain"),
    "account.password": lambda d: "Changed the owner's password",
    "account.password.failed": lambda d: "Gave a wrong password when changing it",
    "account.sessions": lambda d: f"Logged out {_counted(d.get('ended', 0), 'other browser')}",
    "key.created": lambda d: f"Gave a key to {d.get('name')}",
    "key.changed": lambda d: f"Changed what {d.get('name')} may do",
    "key.teaches": lambda d: f"Changed what {d.get('name')} may do",
    "key.limited": lambda d: f"Changed what {d.get('name')} may do",
    "key.revoked": lambda d: f"Revoked the key of {d.get('name')}",
    "adapter.promote": lambda d: (
        f"Put {d.get('to') or _BASE} in service, after {d.get('from') or _BASE}"
        + (f": {d['reason']}" if d.get("reason") else "")
    ),
    "adapter.keep": lambda d: f"Kept {d.get('adapter')}, without further probation",
    "adapter.withdraw": lambda d: f"Withdrew {d.get('adapter')}: {d.get('reason')}",
    "adapter.pin": lambda d: f"Pinned {d.get('adapter') or _BASE}",
    "adapter.unpin": lambda d: f"Unpinned {d.get('adapter') or _BASE}",
    "adapter.upload": lambda d: f"Uploaded {d.get('adapter')}",
    "adapter.delete": lambda d: f"Deleted {d.get('adapter')}",
    "feedback": lambda d: f"Gave a {d.get('kind')} in the playground",
    "conversation.forget": lambda d: "Forgot a conversation of the playground",
    "download": lambda d: f"Downloaded {d.get('adapter')}",
    "examples.forget": lambda d: f"Forgot {_counted(d.get('examples', 0), 'example')}{_adapters(d)}",
    "settings.save": lambda d: f"Changed {', '.join(map(str, d.get('keys') or ())) or 'the settings'}",
    "settings.replace": lambda d: "Edited the settings as text",
    "settings.reload": lambda d: "Read the settings again, as they had been changed in the file",
    "settings.undo": lambda d: "Took back a change of the settings",
    "store.mended": lambda d: "Mended a damaged store",
    "storage.tidied": lambda d: f"Removed what may go: {d.get('mb')} MB",
    "backup.created": lambda d: f"Made {d.get('name')}",
    "backup.restored": lambda d: "Put a backup in place",
    "backup.downloaded": lambda d: f"Downloaded {d.get('name')}",
    "backup.uploaded": lambda d: f"Uploaded {d.get('name')}",
    "backup.deleted": lambda d: f"Deleted {d.get('name')}",
    "backup.staged": lambda d: f"Got {d.get('name')} ready to be put back",
    "backup.cancelled": lambda d: "Decided not to restore",
    "train": lambda d: f"Started {d.get('run')}",
    "examples.exclude": lambda d: f"Excluded {_counted(d.get('count', 0), 'example')}",
    "examples.put-back": lambda d: f"Put {_counted(d.get('count', 0), 'example')} back",
    "examples.weight": lambda d: f"Changed the weight of {_counted(d.get('count', 0), 'example')}",
    "examples.edit": lambda d: f"Edited {d.get('example')}",
    "examples.import": lambda d: f"Imported {_counted(d.get('count', 0), 'example')}",
    "examples.export": lambda d: "Exported examples",
    "restart": lambda d: "Restarted the box",
    "model.import": lambda d: f"Began to import {d.get('source')}",
    "model.measure": lambda d: f"Had {d.get('model')} measured",
    "model.cancel": lambda d: "Cancelled an import or a measurement",
    "model.switch": lambda d: f"Chose {d.get('model')} to serve from the next start",
    "model.delete": lambda d: f"Deleted the model {d.get('model')}",
    "cancel": lambda d: f"Stopped {d.get('run') or 'the run'}",
    "retry": lambda d: f"Had the examples of {d.get('of')} tried again in {d.get('run')}",
    "review": lambda d: "Accepted a drafted answer" if d.get("accepted") else "Dropped a drafted answer",
}


def in_words(entry: AuditEntry) -> str:
    """One act as a sentence without its subject, as `Rolled back from A to the base model`.

    An act that is not known here is called by its name, with what was noted about it.
    """
    try:
        return _WORDS[_name(entry)](entry.detail)
    except (KeyError, TypeError):
        return plain(entry)


def plain(entry: AuditEntry) -> str:
    """An act by its name in the trail, with its details."""
    name = _name(entry).replace(".", " ").replace("_", " ")
    detail = ", ".join(f"{key} {value}" for key, value in entry.detail.items() if key != "address")
    return f"{name[:1].upper()}{name[1:]}{': ' if detail else ''}{detail}"


def path_of(entry: AuditEntry) -> str:
    """The page of what an act was done to; empty when there is none."""
    detail = entry.detail
    adapter = detail.get("to") if entry.action == "adapter.promote" else detail.get("adapter")
    found = {"runs": detail.get("run"), "adapters": adapter, "devices": detail.get("device")}
    for section, ident in found.items():
        if ident:
            return f"/{section}/{quote(str(ident), safe='')}"
    return ""


def _name(entry: AuditEntry) -> str:
    """What was done, the same wherever the owner did it."""
    return entry.action.removeprefix("console.")
