"""`shammah keys` and `shammah console password`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from appliance.home import Home
from appliance.store import Store
from appliance.store.owner import password_set

if TYPE_CHECKING:
    from conftest import Shammah


def test_a_key_from_creation_to_revocation(shammah: Shammah, home: Home) -> None:
    created = shammah("keys", "create", "kitchen tablet", "--no-collect")
    secret = created.stdout.strip()
    assert secret.startswith("sk-shammah-")
    assert "cannot be shown again" in created.stderr
    store = Store.open(home)
    device = store.keys.verify(secret)
    assert device is not None
    assert device.name == "kitchen tablet"
    assert device.collect is False
    listed = json.loads(shammah("keys", "list", "--json").stdout)
    assert [item["name"] for item in listed] == ["kitchen tablet"]
    assert secret not in shammah("keys", "list").stdout
    assert shammah("keys", "revoke", "kitchen tablet").returncode == 0
    assert store.keys.verify(secret) is None
    assert {entry.action for entry in store.audit.list()} == {"key.created", "key.revoked"}
    store.close()


def test_the_same_name_twice(shammah: Shammah) -> None:
    assert shammah("keys", "create", "a", "--json").returncode == 0
    again = shammah("keys", "create", "a")
    assert again.returncode == 1
    assert again.stdout == ""


def test_limits_of_a_device(shammah: Shammah, home: Home) -> None:
    shammah("keys", "create", "guests")
    done = shammah("keys", "limit", "guests", "--rate", "20", "--model", "shammah", "--model", "shammah:base")
    assert done.stdout == "'guests' may send 20 requests a minute to shammah, shammah:base.\n"
    assert "all models" in shammah("keys", "limit", "guests", "--all-models").stdout
    (listed,) = json.loads(shammah("keys", "list", "--json").stdout)
    assert (listed["rate"], listed["models"], listed["collect"]) == (20, None, True)
    for arguments in ((), ("--rate", "3", "--any-rate"), ("--model", "a", "--all-models")):
        assert shammah("keys", "limit", "guests", *arguments).returncode == 2
    assert shammah("keys", "limit", "guests", "--rate", "0").returncode == 1
    assert shammah("keys", "limit", "nobody", "--any-rate").returncode == 1
    assert "any number" in shammah("keys", "limit", "guests", "--any-rate").stdout
    store = Store.open(home)
    assert store.keys.list()[0].rate is None
    assert [entry.action for entry in store.audit.list()] == ["key.limited"] * 3 + ["key.created"]
    store.close()


def test_a_device_may_teach_others_when_the_owner_says_so(shammah: Shammah, home: Home) -> None:
    shammah("keys", "create", "my phone")
    store = Store.open(home)

    def teaches() -> bool:
        (listed,) = json.loads(shammah("keys", "list", "--json").stdout)
        assert listed["teach"] is store.keys.list()[0].teach
        return bool(listed["teach"])

    assert not teaches()
    assert shammah("keys", "teach", "my phone").stdout == "'my phone' may teach others.\n"
    assert teaches()
    shammah("keys", "limit", "my phone", "--rate", "20")
    assert teaches(), "another change leaves it alone"
    assert shammah("keys", "teach", "my phone", "--no").stdout == "'my phone' may not teach others.\n"
    assert not teaches()
    assert shammah("keys", "teach", "nobody").returncode == 1
    assert [entry.action for entry in store.audit.list()].count("key.teaches") == 2
    store.close()


def test_password_from_stdin(shammah: Shammah, home: Home) -> None:
    assert shammah("console", "password", stdin="correct horse battery\n").returncode == 0
    store = Store.open(home)
    assert password_set(store)
    store.close()


def test_a_short_password_is_refused(shammah: Shammah, home: Home) -> None:
    done = shammah("console", "password", stdin="short\n")
    assert done.returncode == 1
    assert "8 to" in done.stderr
    store = Store.open(home)
    assert not password_set(store)
    store.close()
