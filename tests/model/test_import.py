from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import serve_hub
from safetensors.numpy import load_file

from appliance.errors import BundleError, StorageFull
from appliance.home import Home
from appliance.model.bundle import Bundle, list_bundles, load_bundle
from appliance.model.importer import import_model
from appliance.model.source import resolve

Copies = Callable[[Path], Path]
KILLS = 8
IMPORT = (
    "import sys; from pathlib import Path; from appliance.home import Home; "
    "from appliance.model.importer import import_model; "
    "import_model(sys.argv[1], Home(Path(sys.argv[2])), progress=lambda s, f: print(s, flush=True))"
)


def residents(home: Home) -> set[str]:
    return {path.name for path in home.models.iterdir()} - {".lock"}


def test_the_facts_come_from_the_model(tiny: Bundle) -> None:
    manifest = tiny.manifest
    assert (manifest.name, manifest.family, manifest.quantization) == ("tiny-llama", "llama", "int8-b32")
    assert (manifest.layers, manifest.hidden, manifest.head_dim, manifest.kv_heads) == (2, 40, 16, 2)
    assert (manifest.context_length, manifest.eos_ids, manifest.chat_template) == (256, (1,), True)
    qkv = manifest.ports[0]
    assert (qkv.name, qkv.inputs, qkv.outputs) == ("lora.0.qkv_proj", 40, 128)
    assert [(part.module, part.out) for part in qkv.parts] == [
        ("model.layers.0.self_attn.q_proj", 64),
        ("model.layers.0.self_attn.k_proj", 32),
        ("model.layers.0.self_attn.v_proj", 32),
    ]
    assert "random numbers" in (tiny.path / "LICENSE").read_text()


def test_default_model(bundle: Bundle) -> None:
    load_bundle(bundle.path, verify=True)
    manifest = bundle.manifest
    assert (manifest.name, manifest.source) == ("smollm2-135m-instruct", "default")
    assert (manifest.context_length, manifest.vocab_size, manifest.eos_ids) == (8192, 49152, (2,))
    assert len(manifest.ports) == 120
    assert "Apache License" in (bundle.path / "LICENSE").read_text()
    assert "HuggingFaceTB" in (bundle.path / "NOTICE").read_text()
    config = json.loads((bundle.path / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert "quantization_config" not in config


def test_twice_is_a_no_op_and_the_result_reproducible(checkpoint: Path, tiny: Bundle, home: Home) -> None:
    stages: list[tuple[str, float]] = []
    first = import_model(str(checkpoint), home, progress=lambda *stage: stages.append(stage))
    assert first.manifest.base_hash == tiny.manifest.base_hash
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    before = (first.path / "manifest.json").stat()
    stages.clear()
    again = import_model(str(checkpoint), home, progress=lambda *stage: stages.append(stage))
    assert again == first
    assert (first.path / "manifest.json").stat() == before
    assert stages[-1] == ("Already imported", 1.0)
    assert residents(home) == {"tiny-llama"}

    # Damage is mended by importing again.
    (first.path / "model.onnx.data").write_bytes(b"x" * first.manifest.files["model.onnx.data"].size)
    assert import_model(str(checkpoint), home).manifest.base_hash == first.manifest.base_hash
    load_bundle(first.path, verify=True)
    assert residents(home) == {"tiny-llama"}


def test_a_name_belongs_to_one_source(tiny: Bundle, checkpoint: Path, copies: Copies) -> None:
    home = Home(tiny.path.parents[1])
    other = copies(checkpoint)
    with pytest.raises(BundleError, match=r"here already.*choose another name"):
        import_model(str(other), home, name="tiny-llama")
    load_bundle(tiny.path, verify=True)


def test_a_source_that_changed_is_not_passed_off_as_the_old(checkpoint: Path, tiny: Bundle) -> None:
    license_file = checkpoint / "LICENSE"
    text = license_file.read_text()
    license_file.write_text("Nobody may do anything.")
    try:
        with pytest.raises(BundleError, match="has changed since"):
            import_model(str(checkpoint), Home(tiny.path.parents[1]))
    finally:
        license_file.write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "'gemma3' are not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"rope_parameters": {"rope_type": "nonsense"}}, "."),
        ({"num_attention_heads": 3}, "."),
        ({"hidden_size": 48}, "."),
    ],
)
def test_what_cannot_be_served_is_refused(
    checkpoint: Path, copies: Copies, home: Home, change: dict[str, object], message: str
) -> None:
    path = copies(checkpoint)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BundleError, match=message):
        import_model(str(path), home)
    assert residents(home) == set()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_incomplete_checkpoints(
    checkpoint: Path, copies: Copies, home: Home, missing: str, message: str
) -> None:
    path = copies(checkpoint)
    (path / missing).unlink()
    with pytest.raises(BundleError, match=message):
        import_model(str(path), home)
    assert residents(home) == set()


def test_broken_weights(checkpoint: Path, copies: Copies, home: Home) -> None:
    path = copies(checkpoint)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BundleError):
        import_model(str(path), home)
    assert residents(home) == set()


def test_weights_that_are_not_numbers(checkpoint: Path, copies: Copies, home: Home) -> None:
    from safetensors.numpy import save_file

    path = copies(checkpoint)
    tensors = {name: value.copy() for name, value in load_file(path / "model.safetensors").items()}
    tensors["model.layers.0.mlp.up_proj.weight"][:] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"finite|NaN"):
        import_model(str(path), home)
    assert residents(home) == set()


@pytest.mark.parametrize("source", ["", "no such thing", "../x/y/z", "a/b/c", "/nowhere/at/all"])
def test_nonsense_is_no_source(source: str, home: Home) -> None:
    with pytest.raises(BundleError, match="is no model"):
        import_model(source, home)


def test_a_file_that_is_no_gguf(tmp_path: Path, home: Home) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(BundleError, match="not a readable GGUF"):
        import_model(str(tmp_path / "model.gguf"), home)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match="is no model"):
        import_model(str(tmp_path / "model.bin"), home)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 200, "ä"])
def test_bad_names(checkpoint: Path, home: Home, name: str) -> None:
    with pytest.raises(BundleError, match="is no name"):
        import_model(str(checkpoint), home, name=name)


def test_no_room(checkpoint: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.root)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFull, match="Free some space"):
        import_model(str(checkpoint), home)
    assert residents(home) == set()


def hub_environment(tmp_path: Path, endpoint: str) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_ETAG_TIMEOUT": "2",
    }


@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_hub_out_of_reach(tmp_path: Path, home: Home, offline: str) -> None:
    """In a process of its own: the hub's client reads its settings once."""
    code = (
        "import sys; from pathlib import Path; from appliance.home import Home; "
        "from appliance.errors import BundleError; from appliance.model.importer import import_model\n"
        "try: import_model('somebody/some-model', Home(Path(sys.argv[1])))\n"
        "except BundleError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.root)],
        env={**hub_environment(tmp_path, "http://127.0.0.1:9"), "HF_HUB_OFFLINE": offline},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "out of reach or this machine is offline" in done.stdout, done.stdout + done.stderr
    assert "import its directory" in done.stdout
    assert residents(home) == set()


def test_a_download_is_told_byte_by_byte(checkpoint: Path, tiny: Bundle, tmp_path: Path, home: Home) -> None:
    """As the console imports: by the program, whose lines are JSON."""
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "appliance.model.importer", "--home", str(home.root), "--out", str(out)]
    with serve_hub(checkpoint) as address:
        done = subprocess.run(
            [*command, "--", "somebody/tiny"],
            env=hub_environment(tmp_path, address),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    fractions = [step["fraction"] for step in steps]
    assert fractions == sorted(fractions)
    told = [step["stage"] for step in steps if step["stage"].startswith("Downloading")]
    total = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert told[-1] == f"Downloading: {total / 1e6:.1f} of {total / 1e6:.1f} MB"
    assert 0 < steps[1]["fraction"] < 0.6 < steps[-2]["fraction"]
    made = load_bundle(home.models / json.loads(out.read_text())["name"])
    assert made.manifest.source == "somebody/tiny"
    assert made.manifest.base_hash == tiny.manifest.base_hash


def test_hub_ids_are_understood() -> None:
    source = resolve("HuggingFaceTB/SmolLM2-360M-Instruct@main")
    assert (source.kind, source.name) == ("hub", "smollm2-360m-instruct")


def test_two_at_once_make_one(checkpoint: Path, home: Home) -> None:
    found: list[Bundle] = []
    threads = [
        threading.Thread(target=lambda: found.append(import_model(str(checkpoint), home))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert residents(home) == {"tiny-llama"}


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_nothing_half_made(checkpoint: Path, home: Home) -> None:
    command = [sys.executable, "-c", IMPORT, str(checkpoint), str(home.root)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - start
    dice = random.Random(7)
    for number in range(KILLS):
        shutil.rmtree(home.models / "tiny-llama", ignore_errors=True)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
            # The first ones anywhere, the rest near the end, where the bundle is sealed and named.
            share = dice.random() if number < KILLS / 2 else 1 - 0.15 * dice.random()
            time.sleep(whole * share)
            victim.send_signal(signal.SIGKILL)
        for left in list_bundles(home):
            load_bundle(left.path, verify=True)
        assert {name for name in residents(home) if not name.startswith(".import-")} <= {"tiny-llama"}
    assert import_model(str(checkpoint), home).name == "tiny-llama"
    assert residents(home) == {"tiny-llama"}
