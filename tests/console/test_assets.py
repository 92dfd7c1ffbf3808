from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from appliance.console.assets import load_assets, web_root

ROOT = Path(__file__).parents[2]
VENDORED = [ROOT / "web" / "static" / "vendor", ROOT / "tests" / "console" / "vendor"]


def test_every_file_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = {
        (f"{target.removeprefix('share/shammah/')}/{path.name}", path)
        for target, patterns in settings["tool"]["setuptools"]["data-files"].items()
        for pattern in patterns
        for path in ROOT.glob(pattern)
    }
    for target, path in installed:
        assert ROOT / target == path
    kept = [path for place in (web_root(), ROOT / "systemd") for path in place.rglob("*") if path.is_file()]
    assert {path for _, path in installed} == set(kept)


def test_the_version_names_the_content() -> None:
    assets = load_assets()
    assert assets.url("console.css") == f"/static/{assets.version}/console.css"
    with pytest.raises(KeyError):
        assets.url("../templates/base.html")


def test_nothing_is_fetched_from_outside() -> None:
    own = [path for path in web_root().rglob("*") if path.is_file() and "vendor" not in path.parts]
    for path in own:
        for address in re.findall(r"https?://[^\s\"'<>]+", path.read_text()):
            assert address in ("http://www.w3.org/2000/svg", "https://{{"), path  # the latter: the box itself


def test_no_inline_script_or_style() -> None:
    for path in (web_root() / "templates").rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|hx-on|javascript:", text), path
        # Whatever is shown goes through the escaping of the environment.
        assert not re.search(r"\|\s*safe\b|autoescape\s+false", text), path


@pytest.mark.parametrize("directory", VENDORED, ids=["web", "tests"])
def test_vendored_files_are_what_their_record_says(directory: Path) -> None:
    record = (directory / "VENDOR").read_text()
    pinned = set(re.findall(r"sha256 ([0-9a-f]{64})", record))
    files = {hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.js")}
    assert files == pinned
