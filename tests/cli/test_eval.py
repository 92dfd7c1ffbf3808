"""`shammah eval`: the gate by hand, beside no daemon and without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemons import install_bundle, keep_measures

from appliance.home import Home
from appliance.learning import gate
from appliance.learning.judge import CACHE
from appliance.model.bundle import Bundle
from appliance.sections import GateConfig

from .test_adapters import put_adapter

if TYPE_CHECKING:
    from conftest import Shammah


@pytest.fixture
def boxed(home: Home, bundle: Bundle) -> Home:
    install_bundle(home, bundle)
    put_adapter(home, bundle, "adapter_one", "accepted", 1e-4)
    put_adapter(home, bundle, "adapter_bad", None, 1.0)
    home.config.write_text("[train]\nnice = 0\n")
    return home


@pytest.fixture
def measured(boxed: Home, bundle: Bundle, tmp_path: Path) -> Home:
    """The box, whose gate has seen base and `adapter_one` before: their figures are kept for all tests."""
    limits = tmp_path / "limits.json"
    limits.write_text(GateConfig().model_dump_json())
    arguments = ["--bundle", bundle.path, "--adapter", boxed.adapters / "adapter_one.safetensors"]
    arguments += ["--limits", limits, "--out", tmp_path / "report.json", "--threads", 0]
    assert gate.main([*map(str, arguments), "--cache", str(boxed.runs / CACHE)]) == 0
    keep_measures(boxed.runs, bundle)
    return boxed


def state(home: Home) -> dict[str, bytes]:
    """All files of a home but the model's, the log and what SQLite keeps beside its own."""
    files = [path for path in home.root.rglob("*") if path.is_file() and home.models not in path.parents]
    return {
        str(path): path.read_bytes() for path in files if path.suffix not in (".log", ".db-shm", ".db-wal")
    }


@pytest.mark.slow
def test_the_verdict_of_a_good_and_a_bad_one(shammah: Shammah, measured: Home, tmp_path: Path) -> None:
    (measured.adapters / "current").symlink_to("adapter_one.safetensors")
    before = state(measured)
    done = shammah("eval", timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "BEFORE", "MEASURED", "LIMIT", "VERDICT"]
    assert lines[1].split() == ["Structure", "of", "the", "file", "-", "-", "-", "passed"]
    assert any(line.startswith("Different answers") for line in lines)
    assert "Compared with the base model" in done.stdout
    assert lines[-1].startswith("Passed all")

    # Another one is compared with the one in service, and a batch adds its own checks.
    row = {
        "id": "1",
        "messages": [{"role": "user", "content": "When is the bin emptied?"}],
        "target": "On Thursday.",
        "rejected": "Every day.",
        "weight": 10,
        "kind": "correction",
    }
    batch = tmp_path / "examples.jsonl"
    batch.write_text(json.dumps(row) + "\n")
    again = tmp_path / "mine.safetensors"
    again.write_bytes((measured.adapters / "adapter_one.safetensors").read_bytes())
    done = shammah("eval", str(again), "--examples", str(batch), "--json", timeout=900)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["reference"] == "adapter_one"
    assert {check["name"] for check in report["checks"] if not check["passed"]} == {"taught", "recall"}

    done = shammah("eval", "adapter_bad", timeout=900)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Rejected. ")
    assert state(measured) == before


def test_a_broken_file_is_a_verdict_too(shammah: Shammah, boxed: Home, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((boxed.adapters / "adapter_one.safetensors").read_bytes()[:-100])
    done = shammah("eval", str(cut))
    assert done.returncode == 1
    assert "cut.safetensors is not a whole safetensors file" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("eval",), 1, "name the adapter to judge"),
        (("eval", "absent"), 1, "no adapter 'absent'"),
        (("eval", "adapter_one", "--examples", "absent.jsonl"), 2, "does not exist"),
    ],
)
def test_what_it_needs(shammah: Shammah, boxed: Home, args: tuple[str, ...], code: int, words: str) -> None:
    done = shammah(*args)
    assert done.returncode == code
    assert words in done.stderr


def test_a_batch_that_is_none_is_named(shammah: Shammah, boxed: Home, tmp_path: Path) -> None:
    batch = tmp_path / "examples.jsonl"
    batch.write_text("junk\n")
    done = shammah("eval", "adapter_one", "--examples", str(batch))
    assert done.returncode == 1
    assert "The gate came to no verdict: examples.jsonl, line 1: not an example" in done.stderr
    assert done.stderr.count("\n") == 1
