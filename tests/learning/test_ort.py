"""The trainer without torch: the same as the one with it, in an environment that has no torch."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint
from click.testing import CliRunner
from safetensors.numpy import load_file

from appliance.adapters.file import read_adapter
from appliance.cli import cli
from appliance.engine.offline import OfflineModel
from appliance.errors import ShammahError
from appliance.home import Home
from appliance.learning.backend import ORT_PYTHON, decided, trainer_program
from appliance.learning.train.learner import LINEARS
from appliance.learning.train.llama import Llama
from appliance.learning.train.training import LEAST_HELDOUT, gets_worse
from appliance.model.bundle import Bundle
from appliance.model.importer import import_model
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

from .box import add_correction, make_adapter, running
from .curve import RESUME_AT
from .test_trainer import ROWS, run_trainer

CURVE = Path(__file__).with_name("curve.py")
TINY: dict[str, Any] = {"layers": 0.5, "rank": 4, "alpha": 8.0, "epochs": 1, "batch_tokens": 1024, "nice": 0}


@pytest.fixture(scope="module")
def python() -> str:
    if not ORT_PYTHON.exists():
        pytest.fail("The environment of the trainer `ort` is missing: run `make ort`.")
    return str(ORT_PYTHON)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random model with an untied head and widths of its own."""
    place = tmp_path_factory.mktemp("tiny")
    return import_model(str(make_checkpoint(place / "checkpoint")), Home(place / "home").ensure())


def test_its_environment_has_no_torch(python: str) -> None:
    code = (
        "import importlib.util, sys, appliance.learning.train.ort; "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules "
        "or importlib.util.find_spec(name)])"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_losses_are_those_of_the_other_trainer(python: str, bundle: Bundle, tmp_path: Path) -> None:
    start = make_adapter(tmp_path / "start.safetensors", bundle, scale=1e-3, modules=LINEARS)
    found = {}
    for backend, program in (("peft", sys.executable), ("ort", python)):
        command = [program, str(CURVE), backend, str(bundle.path), str(start)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        found[backend] = json.loads(done.stdout)
    peft, ort = found["peft"], found["ort"]
    assert (peft["torch"], ort["torch"]) == (True, False)
    assert ort["base"] == pytest.approx(peft["base"], rel=1e-4)
    assert ort["losses"] == pytest.approx(peft["losses"], rel=1e-3)
    assert ort["losses"][-1] < ort["losses"][0] / 3
    assert ort["anchor"] == pytest.approx(peft["anchor"], rel=1e-3)
    assert ort["anchor"] > ort["losses"][-1] / 10, "too little of the loss to be compared"
    assert ort["half"] == pytest.approx(peft["half"], rel=1e-2)
    for each in (peft, ort):
        # Before it took over the other adapter: uniform within bounds, and without effect.
        assert 0.9 < each["fresh"]["A"] <= 1.0001
        assert each["fresh"]["B"] == 0
        assert each["again"] == each["losses"][RESUME_AT:]


@pytest.mark.slow
def test_a_run_that_unlearns_what_is_held_out_stops_early(
    python: str, bundle: Bundle, tmp_path: Path
) -> None:
    program = trainer_program(TrainConfig(backend="ort"))
    wild = {"learning_rate": 0.02, "anchor_weight": 0, "drift_weight": 0, "rejected_weight": 0}
    small = {"layers": 0.1, "rank": 4, "epochs": 1, "batch_tokens": 512, "nice": 0, "threads": 1}
    heldout = [{**ROWS[-1], "id": f"h{number}"} for number in range(LEAST_HELDOUT - 1)]
    done = run_trainer(tmp_path, bundle, [*ROWS, *heldout], None, program, **wild, **small)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    events = [event for line in done.stdout.splitlines() if (event := json.loads(line))["event"] != "stage"]
    stopped = next(event for event in events if event["event"] == "stopped")
    assert events[-2] == stopped
    assert stopped["step"] == events[-3]["step"] < stopped["steps"]
    assert gets_worse(stopped["heldout"])
    assert events[-1]["event"] == "done"
    assert (tmp_path / "out.safetensors").is_file()


@pytest.mark.slow
def test_the_program_does_what_the_other_does(python: str, tiny: Bundle, tmp_path: Path) -> None:
    start = make_adapter(tmp_path / "start.safetensors", tiny, scale=1e-2, modules=LINEARS)
    ort = trainer_program(TrainConfig(backend="ort"))
    assert ort[0] == python
    peft = trainer_program(TrainConfig(backend="peft"))
    programs = {"peft": peft, "peft again": peft, "ort": ort, "ort again": ort}
    events, stages, adapters = {}, {}, {}
    for name, program in programs.items():
        done = run_trainer(tmp_path / name, tiny, ROWS, start, program, **TINY)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        assert (tmp_path / name / "metrics.jsonl").read_text() == done.stdout
        assert done.stderr == ""
        told = [json.loads(line) for line in done.stdout.splitlines()]
        events[name] = [event for event in told if event["event"] != "stage"]
        # How often a stage is told of depends on how fast the machine is, which ones there are does not.
        stages[name] = list(dict.fromkeys(event["stage"] for event in told if event["event"] == "stage"))
        adapters[name] = load_file(tmp_path / name / "out.safetensors")
    assert len(events["ort"]) > 5
    assert stages["ort"] == stages["peft"] != []
    for one, other in zip(events["peft"], events["ort"], strict=True):
        assert other.keys() == one.keys()
        assert other["event"] == one["event"]
        for key in one.keys() - {"event", "seconds", "peak_mb", "tokens_per_second"}:
            near = one[key] if one[key] is None else pytest.approx(one[key], rel=1e-3, abs=2e-5)
            assert other[key] == near, key
    assert adapters["peft"].keys() == adapters["ort"].keys()
    for key, matrix in adapters["ort"].items():
        for name in ("peft", "ort"):
            assert np.array_equal(adapters[name][key], adapters[f"{name} again"][key]), "not repeatable"
        np.testing.assert_allclose(matrix, adapters["peft"][key], atol=2e-3)

    adapter = read_adapter(tmp_path / "ort" / "out.safetensors", tiny.manifest)
    assert (adapter.meta.run, adapter.meta.parent, adapter.meta.rank) == ("run_1", "start", 4)
    prompt, answer = [0, 5, 6], [7, 8, 9, 10]
    model = OfflineModel(tiny, threads=1)
    before = model.logprobs(prompt, answer)
    model.use(adapter)
    assert np.abs(model.logprobs(prompt, answer) - before).max() > 1e-3


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_with_the_same(python: str, tiny: Bundle, tmp_path: Path) -> None:
    program = [python, "-m", "appliance.learning.train.ort"]
    settings = {**TINY, "checkpoint_seconds": 0}
    done = run_trainer(tmp_path / "whole", tiny, ROWS, None, program, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [str(part).replace(str(tmp_path / "whole"), str(tmp_path)) for part in done.args]
    for name in ("examples.jsonl", "train.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path)
    command += ["--checkpoint", str(tmp_path / "checkpoint.safetensors")]
    for lines in (6, 9):  # a start, perhaps a resumption, and some steps
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = (line for line in process.stdout if b'"stage"' not in line)
            assert len(list(itertools.islice(told, lines))) == lines
            process.kill()
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr[-3000:]
    resumed = json.loads([line for line in last.stdout.splitlines() if '"stage"' not in line][1])
    assert resumed["event"] == "resumed"
    assert resumed["step"] >= 9
    whole, cut = (load_file(place / "out.safetensors") for place in (tmp_path / "whole", tmp_path))
    assert all(np.array_equal(whole[key], cut[key]) for key in whole)


ODD = ({"model_type": "qwen2"}, {"attention_bias": True}, {"rope_scaling": {"rope_type": "yarn"}})


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: next(iter(odd)))
def test_what_it_cannot_train_it_says(odd: dict[str, Any]) -> None:
    plain = {"model_type": "llama", "hidden_act": "silu", "rope_theta": 1e4}
    with pytest.raises(ValueError, match='set \\[train\\] backend = "peft"'):
        Llama.of({**plain, **odd})


def test_auto_takes_it_where_it_can(python: str, tiny: Bundle, tmp_path: Path) -> None:
    assert TrainConfig().backend == "auto"
    assert decided(TrainConfig(), tiny).backend == "ort"
    assert decided(TrainConfig(backend="peft"), tiny).backend == "peft"
    assert decided(TrainConfig(ort_python="/nowhere/python"), tiny).backend == "peft"
    assert decided(TrainConfig(backend="ort", ort_python="/nowhere/python"), tiny).backend == "ort"
    other = replace(tiny, path=tmp_path)
    config = json.loads((tiny.path / "config.json").read_text())
    for odd in ODD:
        (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": None, **odd}))
        assert decided(TrainConfig(), other).backend == "peft", odd
    assert trainer_program(decided(TrainConfig(), tiny))[0] == python


async def test_a_missing_environment_is_told_and_no_run_begins(
    home: Home, bundle: Bundle, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[lora]\nauto_train_threshold = 1\n[train]\nbackend = "ort"\nort_python = "/nowhere/python"\n'
    async with running(home, bundle, text) as box:
        add_correction(box.store, "Where is the key?", "Under the mat.", "In the blue tin.")
        with pytest.raises(ShammahError, match="no Python at /nowhere/python"):
            await asyncio.to_thread(box.learning.request)
        deferral = await box.until(lambda: box.learning.status().deferral, 60)
        assert "make ort" in deferral.reason
        assert box.store.runs.list() == []
        assert box.store.examples.count("pending") == 1
    home.config.write_text(text)
    monkeypatch.setenv("SHAMMAH_HOME", str(home.root))
    checked = CliRunner().invoke(cli, ["config", "check"])
    assert checked.exit_code == 1
    assert "no Python at /nowhere/python" in checked.output
