"""`shammah adapters` without a daemon: files, link and store directly."""

from __future__ import annotations

import fcntl
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from daemons import install_bundle

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow, AdapterState

if TYPE_CHECKING:
    from conftest import Shammah


def put_adapter(
    home: Home, bundle: Bundle, name: str, state: AdapterState | None, value: float = 0.001
) -> None:
    """An adapter file on one layer; known to the store unless `state` is None."""
    port = bundle.manifest.ports[0]
    path = home.adapters / f"{name}.safetensors"
    tensors = {
        tensor_key(port.parts[0].module, "A"): np.full((4, port.inputs), value, np.float32),
        tensor_key(port.parts[0].module, "B"): np.full((port.parts[0].out, 4), value, np.float32),
    }
    write_adapter(path, tensors, AdapterMeta(bundle.manifest.base_hash, 4, 8.0, ("q_proj",)))
    if state is not None:
        read = read_adapter(path, bundle.manifest)
        base = bundle.manifest.base_hash
        store = Store.open(home)
        store.adapters.upsert(
            AdapterRow(
                name, time.time(), read.sha256, read.size, base, 4, None, None, state, {"summary": "fine"}
            )
        )
        store.close()


@pytest.fixture
def boxed(home: Home, bundle: Bundle) -> Home:
    install_bundle(home, bundle)
    put_adapter(home, bundle, "adapter_one", "accepted", 0.001)
    put_adapter(home, bundle, "adapter_two", "accepted", 0.002)
    put_adapter(home, bundle, "adapter_bad", "rejected", 0.003)
    put_adapter(home, bundle, "adapter_new", None, 0.004)
    return home


def test_promote_and_roll_back(shammah: Shammah, boxed: Home) -> None:
    assert shammah("adapters", "promote", "adapter_one").stdout == "In service: adapter_one.\n"
    assert boxed.current.readlink().name == "adapter_one.safetensors"
    assert shammah("adapters", "promote", "adapter_two").returncode == 0
    assert json.loads(shammah("status", "--json").stdout)["adapter"] == "adapter_two"
    assert shammah("adapters", "rollback").stdout == "In service: adapter_one.\n"
    assert boxed.current.readlink().name == "adapter_one.safetensors"
    assert shammah("adapters", "promote", "base").stdout == "In service: the base model.\n"
    assert not boxed.current.is_symlink()
    store = Store.open(boxed)
    assert [s.to for s in store.adapters.switches()] == [None, "adapter_one", "adapter_two", "adapter_one"]
    store.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_bad", "the gate rejected it"),
        ("adapter_new", "not been through the gate"),
        ("absent", "no adapter"),
        ("../models/x", "no adapter"),
        ("current", "no adapter"),
    ],
)
def test_only_what_the_gate_accepted(shammah: Shammah, boxed: Home, name: str, words: str) -> None:
    done = shammah("adapters", "promote", name)
    assert done.returncode == 1
    assert words in done.stderr
    assert not boxed.current.is_symlink()


def test_an_adapter_changed_since_it_was_judged(shammah: Shammah, boxed: Home, bundle: Bundle) -> None:
    put_adapter(boxed, bundle, "adapter_one", None, 0.5)
    done = shammah("adapters", "promote", "adapter_one")
    assert done.returncode == 1
    assert "changed after the gate judged it" in done.stderr


def test_nothing_to_roll_back_to(shammah: Shammah, boxed: Home) -> None:
    assert "nothing was before it" in shammah("adapters", "rollback").stderr


def test_not_while_a_daemon_starts(shammah: Shammah, boxed: Home) -> None:
    with (boxed.root / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shammah("adapters", "promote", "adapter_one")
    assert done.returncode == 1
    assert "try again" in done.stderr
    assert not boxed.current.is_symlink()


def test_list(shammah: Shammah, boxed: Home) -> None:
    shammah("adapters", "promote", "adapter_one")
    listed = json.loads(shammah("adapters", "list", "--json").stdout)
    assert listed["current"] == "adapter_one"
    assert {row["name"]: row["state"] for row in listed["data"]} == {
        "adapter_one": "accepted",
        "adapter_two": "accepted",
        "adapter_bad": "rejected",
    }
    lines = shammah("adapters", "list").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["adapter_one"]


def test_validate(shammah: Shammah, boxed: Home) -> None:
    assert "is valid: rank 4" in shammah("adapters", "validate", "adapter_new").stdout
    file = boxed.adapters / "adapter_new.safetensors"
    assert json.loads(shammah("adapters", "validate", str(file), "--json").stdout)["rank"] == 4
    cut = boxed.root / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    done = shammah("adapters", "validate", str(cut))
    assert done.returncode == 1
    assert "cut.safetensors is not a whole" in done.stderr
    assert done.stderr.count("\n") == 1


def test_pin_and_unpin(shammah: Shammah, boxed: Home) -> None:
    assert shammah("adapters", "promote", "adapter_one").returncode == 0
    assert shammah("adapters", "pin").stdout == "Pinned: adapter_one.\n"
    assert "What is in service is pinned" in shammah("adapters", "list").stdout
    assert json.loads(shammah("adapters", "list", "--json").stdout)["pinned"] is True
    assert shammah("adapters", "promote", "base").returncode == 0  # the owner switches all the same
    assert "Not pinned" in shammah("adapters", "unpin").stdout
    assert json.loads(shammah("adapters", "list", "--json").stdout)["pinned"] is False
    store = Store.open(boxed)
    assert {"adapter.pin", "adapter.unpin"} <= {entry.action for entry in store.audit.list()}
    store.close()
