"""The child program of an import: source files in, the files of a bundle out.

`python -m appliance.model.build WORK` runs in a process of its own, so that the gigabytes torch and
the model builder take are given back, and their chatter stays out of the terminal. It reads
`WORK/job.json`, writes `WORK/bundle/`, reports JSON lines on stdout, and dies with its parent (stdin
closes).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import runpy
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from appliance.errors import BundleError
from appliance.model.source import read_config

FACTS = "facts.json"


def build(work: Path, report: Any) -> None:
    """Do the job in `work/job.json`.

    Args:
        work: scratch directory; the result is `work/bundle` and `work/facts.json`.
        report: called with (stage, fraction of the whole).
    """
    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    out = work / "bundle"
    out.mkdir()
    checkpoint = Path(job["path"])
    if job["kind"] == "gguf":
        from appliance.model.convert import gguf_to_checkpoint

        report("Reading weights", 0.05)
        gguf_to_checkpoint(Path(job["path"]), work / "checkpoint")
        checkpoint = work / "checkpoint"
        gc.collect()
    config = read_config(checkpoint)
    report("Reading tokenizer", 0.4)
    _write_tokenizer(checkpoint, out)
    report("Building graph", 0.45)
    _run_builder(checkpoint, work)
    from appliance.model.graph import QUANTIZATION, transform

    report("Quantizing", 0.7)
    ports = transform(work / "graph", out, config)
    shutil.copy(checkpoint / "config.json", out / "config.json")
    report("Trying it out", 0.9)
    _try_out(out, config)
    facts = {
        "family": config["model_type"],
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "layers": config["num_hidden_layers"],
        "kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "hidden": config["hidden_size"],
        "eos_ids": _eos_ids(checkpoint, out, config),
        "chat_template": (out / "chat_template.jinja").exists(),
        "quantization": QUANTIZATION,
        "ports": [asdict(port) for port in ports],
    }
    notice = checkpoint / "NOTICE"
    if job["kind"] == "gguf" and notice.exists():
        shutil.copy(notice, out / "NOTICE")
    (work / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _write_tokenizer(checkpoint: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:  # whatever a foreign tokenizer file provokes
        raise BundleError(f"The tokenizer of {checkpoint} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise BundleError(f"The tokenizer of {checkpoint} has no tokenizer.json form.")
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    wanted = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for file in out.iterdir():
        if file.name not in wanted:
            file.unlink()


def _run_builder(checkpoint: Path, work: Path) -> None:
    """Run the model builder's command line in this process."""
    before = sys.argv
    sys.argv = [
        "builder", "-m", "", "-i", str(checkpoint), "-o", str(work / "graph"), "-p", "fp32", "-e", "cpu",
        "-c", str(work / "cache"),
    ]  # fmt: skip
    try:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise BundleError(f"The model builder refused this model: {error.code}") from error
    finally:
        sys.argv = before


def _eos_ids(checkpoint: Path, out: Path, config: dict[str, Any]) -> list[int]:
    """Every token that ends an answer, by any of the files that may say so."""
    from tokenizers import Tokenizer as Tokens

    found: set[int] = set()
    sources = [config]
    generation = checkpoint / "generation_config.json"
    if generation.exists():
        sources.append(json.loads(generation.read_text(encoding="utf-8")))
    for source in sources:
        value = source.get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    token = settings.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    tokens = Tokens.from_file(str(out / "tokenizer.json"))
    if isinstance(token, str) and (ident := tokens.token_to_id(token)) is not None:
        found.add(ident)
    if not found:
        raise BundleError("Neither the config nor the tokenizer says which token ends an answer.")
    return sorted(int(ident) for ident in found)


def _try_out(out: Path, config: dict[str, Any]) -> None:
    """The graph loads in the runtime that will serve it, and answers with finite numbers."""
    import numpy as np
    import onnxruntime as ort

    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
        places = np.arange(4, dtype=np.int64)
        feed = {
            "input_ids": places % config["vocab_size"],
            "unpack_index": places[None],
            "pack_index": np.stack([np.zeros_like(places), places], axis=1),
            "seqlens_k": np.array([3], np.int32),
            "query_seqlens": np.array([4], np.int32),
            "total_sequence_length": np.array(4, np.int32),
            "logits_index": np.array([3], np.int64),
        }
        past = np.zeros((1, kv_heads, 0, head_dim), np.float32)
        for layer in range(config["num_hidden_layers"]):
            feed[f"past_key_values.{layer}.key"] = feed[f"past_key_values.{layer}.value"] = past
        (logits,) = session.run(["logits"], feed)
    except Exception as error:  # the runtime's own exception types are not part of its interface
        raise BundleError(f"The imported graph does not run: {error}") from error
    if logits.shape != (1, config["vocab_size"]) or not np.isfinite(logits).all():
        raise BundleError("The imported graph runs but its answers are not finite numbers.")


def _die_with_parent() -> None:
    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the job named on the command line."""
    parser = argparse.ArgumentParser(description="Build a bundle's files (child program of an import).")
    parser.add_argument("work", type=Path)
    work: Path = parser.parse_args().work
    _die_with_parent()
    # The protocol keeps the real stdout; everything else that prints goes to stderr, a log file.
    protocol: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(stage: str, fraction: float) -> None:
        print(json.dumps({"stage": stage, "fraction": fraction}), file=protocol)

    try:
        build(work, report)
    except (BundleError, MemoryError, OSError) as error:
        text = error.message if isinstance(error, BundleError) else f"{type(error).__name__}: {error}"
        number = error.errno if isinstance(error, OSError) else None
        print(json.dumps({"error": text, "errno": number}), file=protocol)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
