"""The default model as an image brings it: copied by hash, never over one that is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from appliance.errors import BundleError
from appliance.home import Home
from appliance.model.bundle import MANIFEST, Bundle, hash_file, load_bundle
from appliance.model.importer import import_model
from appliance.model.seed import VARIABLE


@pytest.fixture
def seeds(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "seed"
    shutil.copytree(bundle.path, root / bundle.name)
    monkeypatch.setenv(VARIABLE, str(root))
    return root


def spoil(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(1000)
        byte = opened.read(1)
        opened.seek(1000)
        opened.write(bytes([byte[0] ^ 1]))


def test_it_is_copied_and_a_damaged_copy_is_replaced(seeds: Path, bundle: Bundle, home: Home) -> None:
    stages: list[str] = []
    first = import_model("default", home, progress=lambda stage, _: stages.append(stage))
    assert first.manifest.base_hash == bundle.manifest.base_hash
    assert [stage for stage in stages if "came with the image" in stage]
    weights = first.path / "tokenizer.json"
    assert weights.stat().st_ino != (seeds / bundle.name / "tokenizer.json").stat().st_ino
    assert weights.stat().st_mode & 0o777 == 0o600

    stages.clear()
    import_model("default", home, progress=lambda stage, _: stages.append(stage))
    assert stages == ["Already imported"]

    spoil(weights)
    again = import_model("default", home)
    load_bundle(again.path, verify=True)
    assert [path.name for path in home.models.iterdir() if path.name != ".lock"] == [bundle.name]


def test_a_damaged_seed_leaves_nothing(seeds: Path, bundle: Bundle, home: Home) -> None:
    spoil(seeds / bundle.name / "tokenizer.json")
    with pytest.raises(BundleError, match="damaged"):
        import_model("default", home)
    assert [path.name for path in home.models.iterdir()] == [".lock"]


def test_a_home_keeps_the_base_it_has(seeds: Path, bundle: Bundle, home: Home) -> None:
    mine = home.models / bundle.name
    shutil.copytree(bundle.path, mine)
    with (mine / "tokenizer.json").open("a") as file:
        file.write("\n")
    manifest = json.loads((mine / MANIFEST).read_text())
    entry = hash_file(mine / "tokenizer.json")
    manifest["files"]["tokenizer.json"] = {"sha256": entry.sha256, "size": entry.size}
    (mine / MANIFEST).write_text(json.dumps(manifest))
    kept = import_model("default", home)
    assert kept.manifest.files["tokenizer.json"] == entry
