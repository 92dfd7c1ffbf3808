"""From a GGUF file to an ordinary Hugging Face checkpoint (import time only, needs torch)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import BundleError

# What llama.cpp calls these pre-tokenizers splits numbers into digits before anything else; the
# conversion in transformers leaves that step out, so "\n\n2" would become other tokens than the
# model was trained on.
_SPLITS_DIGITS = {"smollm", "starcoder", "refact", "command-r"}


def gguf_to_checkpoint(gguf: Path, out: Path) -> None:
    """De-quantize `gguf` and write it to `out` as config, safetensors and tokenizer files.

    Raises:
        BundleError: the file is no GGUF, or of an architecture that cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fields = gguf_fields(gguf)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise BundleError(f"{gguf} cannot be converted: {error}") from error
    data = model.config.to_dict()
    # The loaded model counts as "quantized with gguf" and refuses to be saved, so the weights move
    # to a fresh one of the same configuration without that mark.
    data.pop("quantization_config", None)
    epsilon = fields.get(f"{fields['general.architecture']}.attention.layer_norm_rms_epsilon")
    if epsilon is not None and "rms_norm_eps" in data:
        # Stored as float32: the shortest decimal that reads back as it is the number that was meant.
        data["rms_norm_eps"] = float(np.format_float_scientific(np.float32(epsilon), unique=True))
    config = type(model.config)(**data)
    config.architectures = [type(model).__name__]
    state = model.state_dict()
    fresh = type(model)(config)
    fresh.load_state_dict(state)
    fresh.tie_weights()
    fresh.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if fields.get("tokenizer.ggml.pre") in _SPLITS_DIGITS:
        _split_digits(out / "tokenizer.json")
    (out / "NOTICE").write_text(_notice(fields, gguf), encoding="utf-8")


def gguf_fields(gguf: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file, plus `parameters`, the number of its weights."""
    from gguf import GGUFReader, GGUFValueType

    try:
        reader = GGUFReader(gguf)
    except (ValueError, OSError, IndexError) as error:
        raise BundleError(f"{gguf} is not a readable GGUF file: {error}") from error
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] != GGUFValueType.ARRAY
    }
    if "general.architecture" not in fields:
        raise BundleError(f"{gguf} names no architecture.")
    fields["parameters"] = sum(int(np.prod(tensor.shape)) for tensor in reader.tensors)
    return fields


def _split_digits(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["pre_tokenizer"]["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, data["pre_tokenizer"]]}
        path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _notice(fields: dict[str, Any], gguf: Path) -> str:
    name = fields.get("general.name", gguf.stem)
    by = fields.get("general.organization")
    return (
        f"Model: {name}{f' by {by}' if by else ''}\n"
        f"License: {fields.get('general.license', 'not stated in the file')}\n"
        f"Converted from {gguf.name}.\n"
    )
