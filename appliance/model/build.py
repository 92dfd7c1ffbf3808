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
from appliance.model.bundle import CHAT_TEMPLATE
from appliance.model.chat import check_templates, write_templates
from appliance.model.sampling import read_sampling
from appliance.model.source import read_config
from appliance.model.tryout import compare, read_ids, source_logits
from appliance.model.weights import read_json

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
    notes = check_templates(out)
    report("Asking the original", 0.42)
    ids = read_ids(out, config["vocab_size"])
    wanted = source_logits(checkpoint, ids)
    report("Building graph", 0.45)
    _run_builder(checkpoint, work)
    gc.collect()
    from appliance.model.graph import QUANTIZATION, transform

    report("Quantizing", 0.7)
    ports = transform(work / "graph", out, config)
    shutil.copy(checkpoint / "config.json", out / "config.json")
    report("Comparing it with the original", 0.9)
    compare(out, config, ids, wanted)
    facts = {
        "family": config["model_type"],
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "layers": config["num_hidden_layers"],
        "kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "hidden": config["hidden_size"],
        "eos_ids": _eos_ids(checkpoint, out, config),
        "chat_template": (out / CHAT_TEMPLATE).exists(),
        "sampling": read_sampling(checkpoint),
        "notes": notes,
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
    for key in ("chat_template", "is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for file in out.iterdir():
        if file.is_dir():  # templates by name
            shutil.rmtree(file)
        elif file.name not in ("tokenizer.json", "tokenizer_config.json"):
            file.unlink()
    write_templates(checkpoint, tokenizer.chat_template, out)


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
        sources.append(read_json(generation))
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
