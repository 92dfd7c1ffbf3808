"""Every weight comes from the file, or the import ends and names what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint
from ggufs import parts_of, write_gguf
from safetensors.numpy import load_file, save_file

from appliance.errors import BundleError
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.importer import import_model

Copies = Callable[[Path], Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def refused(source: Path, home: Home) -> str:
    with pytest.raises(BundleError) as caught:
        import_model(str(source), home)
    assert {path.name for path in home.models.iterdir()} <= {".lock"}
    return caught.value.message


def save_with(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = {name: value.copy() for name, value in load_file(path / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def test_the_parts_of_a_gguf_model_are_one_model(gguf: Path, home: Home, tmp_path: Path) -> None:
    first, second = parts_of(gguf, tmp_path)
    whole = import_model(str(gguf), home, name="whole")
    for part in (second, first):  # whichever is named
        assert import_model(str(part), home).name == "small"
    joined = load_bundle(home.models / "small", verify=True)
    assert joined.manifest.base_hash == whole.manifest.base_hash
    assert joined.manifest.source_hash != whole.manifest.source_hash


@pytest.mark.parametrize("left", [0, 1])
def test_a_part_of_a_gguf_model_alone(gguf: Path, home: Home, tmp_path: Path, left: int) -> None:
    parts = parts_of(gguf, tmp_path)
    parts[1 - left].unlink()
    assert f"put {parts[1 - left].name} beside it" in refused(parts[left], home)
    renamed = parts[left].rename(tmp_path / "model.gguf")
    assert "one of 2 parts" in refused(renamed, home)


@pytest.mark.parametrize(
    "missing", ["blk.1.ffn_up.weight", "blk.0.attn_norm.weight", "token_embd.weight", "output_norm.weight"]
)
def test_a_gguf_without_a_tensor(home: Home, tmp_path: Path, missing: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", without={missing})
    assert f"it has no {missing}" in refused(path, home)


def test_a_gguf_with_what_nothing_would_use(home: Home, tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert "rope_freqs.weight" in refused(write_gguf(tmp_path / "m.gguf", extra=extra), home)


def test_a_gguf_of_another_shape(home: Home, tmp_path: Path) -> None:
    extra = {"blk.0.ffn_up.weight": np.ones((50, 64), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", extra=extra)
    assert "size mismatch" in refused(path, home) or "shape" in refused(path, home)


def test_a_checkpoint_without_a_tensor(checkpoint: Path, copies: Copies, home: Home) -> None:
    path = copies(checkpoint)
    save_with(path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "has no weights for model.layers.1.mlp.up_proj.weight" in refused(path, home)


def test_a_checkpoint_with_what_its_family_does_not_know(
    checkpoint: Path, copies: Copies, home: Home
) -> None:
    path = copies(checkpoint)
    odd = {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    save_with(path, lambda tensors: tensors.update(odd))
    assert "q_norm" in refused(path, home)


def test_an_untied_head_that_is_missing(checkpoint: Path, copies: Copies, home: Home) -> None:
    path = copies(checkpoint)
    save_with(path, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in refused(path, home)


def sharded(path: Path) -> dict[str, Any]:
    """The checkpoint in two files with an index."""
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, path / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, held in files.items() for name in held},
    }
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return index


def test_shards_that_are_missing_cut_off_or_hold_less_than_the_index_says(
    checkpoint: Path, copies: Copies, home: Home
) -> None:
    path = copies(checkpoint)
    index = sharded(path)
    shard = path / "b.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    assert "b.safetensors is missing" in refused(path, home)
    shard.write_bytes(content[:-100])
    assert "b.safetensors is damaged or cut off" in refused(path, home)
    shard.write_bytes(content)
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = "b.safetensors"
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "b.safetensors lacks model.layers.7.mlp.up_proj.weight" in refused(path, home)
    index["weight_map"]["x"] = "../b.safetensors"
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "file elsewhere" in refused(path, home)
    (path / f"{WEIGHTS}.index.json").unlink()
    assert "neither model.safetensors nor" in refused(path, home)


def test_shards_are_one_model(checkpoint: Path, tiny: Any, copies: Copies, home: Home) -> None:
    path = copies(checkpoint)
    sharded(path)
    assert import_model(str(path), home).manifest.base_hash == tiny.manifest.base_hash


def test_a_graph_that_says_something_else_than_its_source(tiny: Any, checkpoint: Path) -> None:
    """As if a layer had come from elsewhere: the graph of one model against the logits of another."""
    from appliance.model.tryout import compare, read_ids, source_logits

    config = json.loads((tiny.path / "config.json").read_text())
    ids = read_ids(tiny.path, config["vocab_size"])
    wanted = source_logits(checkpoint, ids)
    compare(tiny.path, config, ids, wanted)
    with pytest.raises(BundleError, match="nats"):
        compare(tiny.path, config, ids, np.roll(wanted, 1, axis=1))


def test_files_of_absurd_size(checkpoint: Path, copies: Copies, home: Home) -> None:
    path = copies(checkpoint)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        file = path / name
        kept = file.read_bytes()
        with file.open("r+b") as opened:
            opened.truncate(300 * 2**20)  # sparse
        assert f"{name} is too large" in refused(path, home)
        file.write_bytes(kept)


def test_a_models_own_sampling(checkpoint: Path, copies: Copies, home: Home, tmp_path: Path) -> None:
    path = copies(checkpoint)
    said = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": "x", "repetition_penalty": 1.05}
    (path / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": [1, 3]}))
    manifest = import_model(str(path), home, name="hints").manifest
    assert manifest.sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert manifest.eos_ids == (1, 3)
    assert load_bundle(home.models / "hints").manifest.sampling == manifest.sampling
    hints = {"general.sampling.temp": 0.6, "general.sampling.top_k": 40}
    gguf = write_gguf(tmp_path / "hinted.gguf", fields=hints)
    assert import_model(str(gguf), home).manifest.sampling == {"temperature": 0.6, "top_k": 40}


def test_greedy_is_a_temperature_of_zero() -> None:
    from appliance.model.sampling import choose

    assert choose({"do_sample": False, "temperature": 0.9, "top_k": True}) == {"temperature": 0.0}
    assert choose({"temperature": -1, "top_p": 7, "min_p": float("nan")}) == {}


@pytest.mark.parametrize("where", ["config", "json", "folder"])
def test_a_list_of_chat_templates(
    checkpoint: Path, tiny: Bundle, copies: Copies, home: Home, where: str, tmp_path: Path
) -> None:
    from appliance.model.build import _write_tokenizer

    path = copies(checkpoint)
    (path / "chat_template.jinja").unlink()
    plain = "{% for m in messages %}[user]{{ m.content }}</s>{% endfor %}"
    tooled = (
        "TOOLS {{ tools | tojson }}{% for m in messages %}{% for call in m.tool_calls or [] %}<tool_call>"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
        "{% endfor %}[user]{{ m.content }}</s>{% endfor %}"
    )
    listed = [{"name": "tool_use", "template": tooled}, {"name": "default", "template": plain}]
    if where == "config":
        settings = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": listed}))
    elif where == "json":
        (path / "chat_template.json").write_text(json.dumps({"chat_template": listed}))
    else:
        (path / "chat_template.jinja").write_text(plain)
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / "tool_use.jinja").write_text(tooled)
    from appliance.model.tokenizer import Tokenizer

    if where == "config":
        made = import_model(str(path), home)
    else:  # what the import does with a tokenizer
        made = Bundle(tmp_path / "made", tiny.manifest)
        made.path.mkdir()
        _write_tokenizer(path, made.path)
    tokenizer = Tokenizer(made)
    assert tokenizer.writes_calls
    question = [{"role": "user", "content": "Hi"}]
    assert tokenizer.decode(tokenizer.encode_chat(question)) == "Hi"
    assert tokenizer.decode(tokenizer.encode_chat(question, tools=[{"a": 1}])) == 'TOOLS [{"a": 1}]Hi'


def test_a_template_is_tried_at_the_import(tiny: Any, checkpoint: Path, copies: Copies, home: Home) -> None:
    from appliance.model.chat import check_templates

    path = copies(tiny.path)
    talk = "{% for m in messages %}[user]{{ m.content }}</s>{% endfor %}"
    for bad, why in (
        ("{% if %}", "cannot be used"),
        ("{{ x | nonsense }}", "nonsense"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too many steps"),
        ("{{ 'x' * 10**9 }}", "too long"),
        ("x" * 600_000, "longer than"),
    ):
        (path / "chat_template.jinja").write_text(bad)
        with pytest.raises(BundleError, match=why):
            check_templates(path)
    picky = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
    )
    (path / "chat_template.jinja").write_text(picky + talk)
    notes = check_templates(path)
    assert [("system" in note, "tools" in note) for note in notes] == [(True, False), (False, True)]
    source = Path(shutil.copytree(checkpoint, path / "source"))
    (source / "chat_template.jinja").write_text("{% if %}")
    assert "chat template cannot be used" in refused(source, home)


def test_a_tied_head(home: Home, tmp_path: Path) -> None:
    """It is in no file, and is not missing."""
    assert import_model(str(make_checkpoint(tmp_path / "tied", "qwen2")), home).manifest.family == "qwen2"
