"""What is going on when a fault strikes: things that people and devices do, and whether they came to be."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from faults.trial import CONFIG, Trial, backup_names, opened

from appliance.backup import archive

ADAPTERS = ("adapter_one", "adapter_two")
"""Accepted by the gate before the trial begins."""


@dataclass(frozen=True)
class Act:
    """Something that can be done again and again.

    Attributes:
        do: does it; the daemon may die meanwhile. Gives the answer's status.
        done: whether the last `do` has brought about what it should.
    """

    do: Callable[[Trial], int]
    done: Callable[[Trial], bool]


_said: dict[int, Any] = {}
"""What the last `do` of a trial was about."""


def _ask(trial: Trial) -> int:
    number = trial.next_number()
    question = f"What is number {number}?"
    _said[id(trial)] = question
    body = {"model": "shammah", "messages": [{"role": "user", "content": question}], "max_tokens": 4}
    return trial.daemon.post("/v1/chat/completions", json=body).status_code


def _collected(trial: Trial) -> bool:
    with opened(trial.home) as store:
        known = [said.id for said in store.completions.recent(20) if said.query == _said[id(trial)]]
        examples = [item for item in store.examples.list(limit=1000) if item.query == _said[id(trial)]]
        return len(known) == len(examples) == 1


def _teach(trial: Trial) -> int:
    before = set(trial.acknowledged)
    status = trial.teach().status_code
    _said[id(trial)] = trial.acknowledged - before
    return status


def _lose_log(trial: Trial) -> int:
    """The database's log is deleted under the box, which then is taught something."""
    trial.home.store.with_name("store.db-wal").unlink(missing_ok=True)
    return _teach(trial)


def _taught(trial: Trial) -> bool:
    with opened(trial.home) as store:
        return all(store.examples.get(example).state == "pending" for example in _said[id(trial)])


def _save(trial: Trial) -> int:
    name = f"Box {trial.next_number()}"
    _said[id(trial)] = name
    etag = hashlib.sha256(trial.home.config.read_bytes()).hexdigest()
    text = f'{CONFIG}[console]\nname = "{name}"\n'
    answer = trial.form("/settings/text/save", text=text, etag=etag)
    return 200 if answer.status_code == 303 else answer.status_code


def _saved(trial: Trial) -> bool:
    name = _said[id(trial)]
    with opened(trial.home) as store:
        (last, *_) = store.changes.list(1)
    told = [item.new for item in last.differences if item.key == "console.name"] == [name]
    return told and name in trial.home.config.read_text() and f"{name}</title>" in trial.daemon.get("/").text


def _make_key(trial: Trial) -> int:
    """A key for the lamp; if there is one that nobody has seen it is revoked first."""
    answer = trial.form("/devices", name="Lamp", collect="on")
    if answer.status_code == 409:
        status = _revoke_key(trial)
        if status != 200:
            return status
        answer = trial.form("/devices", name="Lamp", collect="on")
    found = re.findall(r"sk-shammah-[\w-]{40,}", answer.text)
    _said[id(trial)] = found[0] if found else None
    return answer.status_code


def _key_works(trial: Trial) -> bool:
    return _with_key(trial) == 200


def _with_key(trial: Trial) -> int:
    headers = {"Authorization": f"Bearer {_said[id(trial)]}"}
    return httpx.get(f"{trial.daemon.url}/v1/models", headers=headers, timeout=60).status_code


def _revoke_key(trial: Trial) -> int:
    with opened(trial.home) as store:
        lamps = [device.id for device in store.keys.list() if device.name == "Lamp" and not device.revoked]
    for lamp in lamps:
        answer = trial.form(f"/devices/{lamp}/revoke")
        if answer.status_code != 303:
            return answer.status_code
    return 200


def _make_and_revoke(trial: Trial) -> int:
    status = _make_key(trial)
    return _revoke_key(trial) if status == 200 else status


def _key_refused(trial: Trial) -> bool:
    return _with_key(trial) == 401


def _promote(trial: Trial) -> int:
    """The adapter that is not in service."""
    current = trial.daemon.get("/v1/adapters").json()["current"]
    _said[id(trial)] = name = ADAPTERS[current == ADAPTERS[0]]
    return trial.daemon.post("/v1/adapters/promote", json={"name": name}).status_code


def _roll_back(trial: Trial) -> int:
    _promote(trial)  # so that there is something to go back to
    before = trial.daemon.get("/v1/adapters").json()["current"]
    answer = trial.daemon.post("/v1/adapters/rollback", json={})
    _said[id(trial)] = answer.json().get("current") if answer.status_code == 200 else None
    assert answer.status_code != 200 or answer.json()["current"] != before
    return answer.status_code


def _serves(trial: Trial) -> bool:
    return bool(trial.daemon.get("/v1/adapters").json()["current"] == _said[id(trial)])


def _back_up(trial: Trial) -> int:
    _said[id(trial)] = set(backup_names(trial.daemon.get("/backup").text))
    answer = trial.form("/backup/make")
    made = set(backup_names(trial.daemon.get("/backup").text)) - _said[id(trial)]
    return 200 if answer.status_code == 303 and made else 507


def _backed_up(trial: Trial) -> bool:
    names = backup_names(trial.daemon.get("/backup").text)
    for name in names:
        archive.verify(trial.home.backups / name)
    return bool(set(names) - _said[id(trial)])


ASK = Act(_ask, _collected)
TEACH = Act(_teach, _taught)
SAVE = Act(_save, _saved)
MAKE_KEY = Act(_make_key, _key_works)
REVOKE_KEY = Act(_make_and_revoke, _key_refused)
PROMOTE = Act(_promote, _serves)
ROLL_BACK = Act(_roll_back, _serves)
LOSE = Act(_lose_log, _taught)
BACK_UP = Act(_back_up, _backed_up)

ACTS = {
    "collect.completion": ASK,
    "collect.stored": ASK,
    "feedback.added": TEACH,
    "feedback.stored": TEACH,
    "mirror.appended": TEACH,
    "files.written": SAVE,
    "files.replaced": SAVE,
    "settings.recorded": SAVE,
    "settings.written": SAVE,
    "settings.stored": SAVE,
    "keys.added": MAKE_KEY,
    "keys.stored": MAKE_KEY,
    "keys.revoked": REVOKE_KEY,
    "files.link": PROMOTE,
    "promote.swapped": PROMOTE,
    "promote.stated": PROMOTE,
    "promote.linked": PROMOTE,
    "promote.recorded": PROMOTE,
    "promote.back": ROLL_BACK,
    "backup.copied": BACK_UP,
    "backup.packed": BACK_UP,
    "backup.verified": BACK_UP,
    "backup.published": BACK_UP,
    "rescue.saved": LOSE,
    "rescue.cleared": LOSE,
}
"""By failpoint: what leads to it, in a daemon that does not train."""
