from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import BundleError
from appliance.home import Home
from appliance.model.bundle import Bundle, Manifest, list_bundles, load_bundle, verify_bundle

Copies = Callable[[Path], Path]


def test_manifest_survives_the_disk(tiny: Bundle) -> None:
    again = load_bundle(tiny.path, verify=True)
    assert again == tiny
    assert isinstance(again.manifest, Manifest)
    assert [port.layer for port in again.manifest.ports] == [0] * 4 + [1] * 4
    assert set(again.manifest.files) == {path.name for path in tiny.path.iterdir()} - {"manifest.json"}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="shammah model import"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "config.json"])
def test_damage_is_found_and_named(tiny: Bundle, copies: Copies, name: str) -> None:
    path = copies(tiny.path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    bundle = load_bundle(path)
    with pytest.raises(BundleError, match=rf"{name} is damaged"):
        verify_bundle(bundle)
    (path / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"{name} has \d+ bytes"):
        load_bundle(path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        load_bundle(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"base_hash": "0" * 64},
        {"files": {}},
        {"files": {"../model.onnx": {"sha256": "", "size": 1}}},
        {"name": "../x"},
        {"ports": [{"name": "lora"}]},
        {"surprise": 1},
        {"eos_ids": None},
    ],
)
def test_bad_manifest(tiny: Bundle, copies: Copies, change: dict[str, object]) -> None:
    path = copies(tiny.path)
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff", '"x"'])
def test_manifest_that_is_none(tiny: Bundle, copies: Copies, text: str) -> None:
    path = copies(tiny.path)
    (path / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(BundleError):
        load_bundle(path)


def test_list_leaves_out_what_is_broken(tiny: Bundle, home: Home) -> None:
    for name in ("good", ".import-half", "broken"):
        (home.models / name).mkdir()
        for file in tiny.path.iterdir():
            (home.models / name / file.name).write_bytes(file.read_bytes())
    (home.models / "broken" / "model.onnx").unlink()
    assert [bundle.path.name for bundle in list_bundles(home)] == ["good"]
