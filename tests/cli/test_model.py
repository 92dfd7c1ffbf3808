"""`shammah model`: a real import through the command, and choosing what is served."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from daemons import install_bundle

from appliance.config import load_config
from appliance.home import Home
from appliance.model.bundle import Bundle

if TYPE_CHECKING:
    from conftest import Shammah


def test_importing_what_is_there_is_a_no_op(shammah: Shammah, home: Home, bundle: Bundle) -> None:
    install_bundle(home, bundle)
    before = {path: path.stat().st_mtime_ns for path in (home.models / bundle.name).iterdir()}
    done = shammah("model", "import")
    assert done.returncode == 0
    assert done.stdout == f"{bundle.name} is imported.\n"
    assert "Already imported" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (home.models / bundle.name).iterdir()} == before


def test_list_and_use(shammah: Shammah, home: Home, bundle: Bundle) -> None:
    install_bundle(home, bundle)
    home.config.write_text("# mine\n[lora]\nenabled = false  # for now\n[model]\nname = 'other'\n")
    assert [m["in_use"] for m in json.loads(shammah("model", "list", "--json").stdout)] == [False]
    assert shammah("model", "use", bundle.name).returncode == 0
    assert load_config(home.config).model.name == bundle.name
    text = home.config.read_text()
    assert text.startswith("# mine\n")
    assert "# for now" in text
    assert shammah("model", "list").stdout.splitlines()[1].startswith("*  " + bundle.name)


def test_use_of_a_model_that_is_not_here(shammah: Shammah, home: Home) -> None:
    done = shammah("model", "use", "absent")
    assert done.returncode == 1
    assert not home.config.exists()


def test_use_leaves_a_broken_config_alone(shammah: Shammah, home: Home, bundle: Bundle) -> None:
    install_bundle(home, bundle)
    home.config.write_text("[model\n")
    assert shammah("model", "use", bundle.name).returncode == 1
    assert home.config.read_text() == "[model\n"
