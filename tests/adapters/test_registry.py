"""Names, the link `current`, and what is served when it is broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.adapters.file import write_adapter
from appliance.adapters.registry import Registry
from appliance.errors import AdapterInvalid, Conflict, NotFound
from appliance.home import Home

from .conftest import META, tensors

Drop = Callable[..., Path]


def yes(_: object) -> bool:
    return True


def test_nothing_there_means_base(registry: Registry) -> None:
    assert registry.current() is None
    assert registry.list() == []
    assert registry.load_at_start(yes) == (None, [])


def test_current_follows_the_link(registry: Registry, drop: Drop, home: Home) -> None:
    drop("adapter_1")
    drop("adapter_2")
    registry.set_current("adapter_1")
    assert home.current.readlink() == Path("adapter_1.safetensors")
    registry.set_current("adapter_2")
    assert registry.current() == "adapter_2"
    adapter, notes = registry.load_at_start(yes)
    assert adapter is not None
    assert (adapter.name, notes) == ("adapter_2", [])
    registry.set_current(None)
    assert registry.current() is None
    assert not os.path.lexists(home.current)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "",
        "a/b",
        "/etc/passwd",
        ".hidden",
        "a\0b",
        "a\n",
        "x" * 200,
        "ä",
        "base",
        "current",
    ],
)
def test_names_cannot_lead_elsewhere(registry: Registry, home: Home, name: str) -> None:
    write_adapter(home.root / "x.safetensors", tensors(), META)
    for call in (registry.path, registry.load, registry.set_current):
        with pytest.raises(NotFound):
            call(name)
    (home.runs / "candidate").write_bytes(b"x")
    with pytest.raises(NotFound):
        registry.add(home.runs / "candidate", name)
    assert not os.path.lexists(home.current)


def test_links_and_temporary_files_are_no_adapters(registry: Registry, drop: Drop, home: Home) -> None:
    drop("good")
    outside = home.root / "outside.safetensors"
    write_adapter(outside, tensors(), META)
    (home.adapters / "link.safetensors").symlink_to(outside)
    (home.adapters / ".good.safetensors.tmp").write_bytes(b"x")
    (home.adapters / "readme.txt").write_bytes(b"x")
    (home.adapters / "dir.safetensors").mkdir()
    registry.set_current("good")
    assert registry.list() == ["good"]
    with pytest.raises(NotFound):
        registry.path("link")


@pytest.mark.parametrize(
    "target", ["gone.safetensors", "../outside.safetensors", "/etc/passwd", "good", "current"]
)
def test_a_link_that_leads_astray_falls_back_and_says_so(
    registry: Registry, drop: Drop, home: Home, target: str
) -> None:
    write_adapter(home.root / "outside.safetensors", tensors(), META)
    home.current.symlink_to(target)
    assert registry.current() is None
    adapter, notes = registry.load_at_start(yes)
    assert adapter is None
    assert "Serving with the base model instead." in notes
    assert not os.path.lexists(home.current)


def test_a_broken_adapter_falls_back_to_the_newest_that_passes(
    registry: Registry, drop: Drop, home: Home
) -> None:
    for age, name in enumerate(["adapter_5", "adapter_4", "adapter_3", "adapter_2"]):
        os.utime(drop(name), (1000 - age, 1000 - age))
    broken = home.adapters / "adapter_5.safetensors"
    broken.write_bytes(broken.read_bytes()[:-5])
    (home.adapters / "adapter_4.safetensors").write_bytes(b"")
    registry.set_current("adapter_5")
    adapter, notes = registry.load_at_start(lambda adapter: adapter.name != "adapter_3")
    assert adapter is not None
    assert adapter.name == "adapter_2"
    assert registry.current() == "adapter_2"
    assert "cut off or damaged" in notes[0]
    assert notes[1] == "Serving with adapter_2 instead, the newest adapter that passes."


def test_an_adapter_the_gate_did_not_pass_is_not_served(registry: Registry, drop: Drop) -> None:
    drop("adapter_1")
    registry.set_current("adapter_1")
    adapter, notes = registry.load_at_start(lambda _: False)
    assert adapter is None
    assert "has not passed the gate" in notes[0]
    assert registry.current() is None


def test_current_can_even_be_a_directory(registry: Registry, home: Home) -> None:
    home.current.mkdir()
    adapter, notes = registry.load_at_start(yes)
    assert adapter is None
    assert "is not a symbolic link" in notes[0]


def test_a_file_is_never_overwritten(registry: Registry, drop: Drop, home: Home) -> None:
    before = drop("adapter_1").read_bytes()
    temp = home.runs / "candidate.safetensors"
    write_adapter(temp, tensors(seed=1), META)
    with pytest.raises(Conflict):
        registry.add(temp, "adapter_1")
    assert (home.adapters / "adapter_1.safetensors").read_bytes() == before
    assert temp.exists()
    registry.add(temp, "adapter_2")
    assert not temp.exists()
    assert registry.load("adapter_2").name == "adapter_2"


def test_new_names_are_new(registry: Registry, drop: Drop) -> None:
    names = [registry.new_name()]
    for _ in range(3):
        drop(names[-1])
        names.append(registry.new_name())
    assert len(set(names)) == 4
    assert all(name.startswith("adapter_2") for name in names)


def test_loading_refuses_what_does_not_read_well(registry: Registry, home: Home) -> None:
    (home.adapters / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(AdapterInvalid):
        registry.load("bad")


def test_a_file_that_has_not_changed_is_not_read_again(registry: Registry, drop: Drop, home: Home) -> None:
    """What lists the models a box serves is asked by everybody, at any time."""
    drop("adapter_1")
    path = home.adapters / "adapter_1.safetensors"
    identity, good, stat = registry.load("adapter_1").sha256, path.read_bytes(), path.stat()
    assert registry.identity("adapter_1") == identity
    path.write_bytes(b"x" * len(good))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert registry.identity("adapter_1") == identity  # nothing told it to look
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(AdapterInvalid, match="adapter_1"):
            registry.identity("adapter_1")
    path.unlink()
    with pytest.raises(NotFound):
        registry.identity("adapter_1")
    drop("adapter_1")
    assert registry.identity("adapter_1") == identity
