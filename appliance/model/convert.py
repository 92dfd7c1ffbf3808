"""From a GGUF file to an ordinary Hugging Face checkpoint (import time only, needs torch)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import BundleError
from appliance.model.weights import gguf_parts, some

SAMPLING_HINTS = "sampling.json"
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""How a GGUF file calls what transformers call so."""

# What llama.cpp calls these pre-tokenizers splits numbers into digits before anything else; the
# conversion in transformers leaves that step out, so "\n\n2" would become other tokens than the
# model was trained on.
_SPLITS_DIGITS = {"smollm", "starcoder", "refact", "command-r"}


_GLOBAL = ("token_embd.weight", "output_norm.weight")
_LAYER = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
_BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v")}
_HEAD = "output.weight"  # absent where the embedding is the head
_MOST_LAYERS = 1000
_PARTS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF model says of itself, in all its parts.

    Attributes:
        fields: the scalar metadata.
        tensors: names of its weights.
        parameters: their number.
    """

    path: Path
    fields: dict[str, Any]
    tensors: tuple[str, ...]
    parameters: int

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])


def gguf_to_checkpoint(gguf: Path, out: Path) -> None:
    """De-quantize `gguf` and write it to `out` as config, safetensors and tokenizer files.

    Raises:
        BundleError: the file is no GGUF, of an architecture that cannot be read, or incomplete.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = read_gguf(gguf)
    check_tensors(file)
    fields = file.fields
    parts = gguf_parts(gguf)
    whole = gguf if len(parts) == 1 else _joined(parts, out.parent / "whole.gguf")
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            whole.parent,
            gguf_file=whole.name,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name, local_files_only=True)
    except Exception as error:  # whatever a foreign file provokes
        raise BundleError(f"{gguf} cannot be converted: {error}") from error
    model, loaded = read
    check_loaded(gguf, loaded)
    data = model.config.to_dict()
    # The loaded model counts as "quantized with gguf" and refuses to be saved, so the weights move
    # to a fresh one of the same configuration without that mark.
    data.pop("quantization_config", None)
    epsilon = fields.get(f"{file.architecture}.attention.layer_norm_rms_epsilon")
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
    if sampling := {name: fields[f"general.sampling.{key}"] for key, name in _SAMPLING.items()
                    if f"general.sampling.{key}" in fields}:  # fmt: skip
        (out / SAMPLING_HINTS).write_text(json.dumps(sampling), encoding="utf-8")
    (out / "NOTICE").write_text(_notice(fields, gguf), encoding="utf-8")
    if whole != gguf:
        whole.unlink()


def check_loaded(source: Path, loaded: Any) -> None:
    """See that every weight of a model came from its file, and that every weight of the file is in the model.

    Args:
        source: what was read, for the message.
        loaded: what transformers say of the loading.

    Raises:
        BundleError: naming what did not.
    """
    for key, what in (
        ("missing_keys", "has no weights for"),
        ("mismatched_keys", "has weights of another shape for"),
        ("unexpected_keys", "has weights that its family does not know:"),
    ):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in loaded[key])
        if names:
            raise BundleError(f"{source} {what} {some(names)}.")


def read_gguf(gguf: Path) -> GgufFile:
    """The metadata of a GGUF model, whose parts must be all here.

    Raises:
        BundleError: it cannot be read, or a part is missing.
    """
    from gguf import GGUFValueType

    parts = gguf_parts(gguf)
    readers = [_reader(part) for part in parts]
    fields = {
        name: field.contents()
        for name, field in readers[0].fields.items()
        if field.types and field.types[0] != GGUFValueType.ARRAY
    }
    if not isinstance(fields.get("general.architecture"), str):
        raise BundleError(f"{gguf} names no architecture.")
    count = fields.get("split.count", 1)
    if count not in (0, len(parts)):
        raise BundleError(
            f"{gguf} is one of {count} parts of a model: give all of them the names they had "
            f"(…-00001-of-{count:05}.gguf) and import the first."
        )
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    names = tuple(tensor.name for tensor in tensors)
    parameters = sum(int(np.prod([int(width) for width in tensor.shape])) for tensor in tensors)
    return GgufFile(gguf, fields, names, parameters)


def check_tensors(file: GgufFile) -> None:
    """See that the file holds exactly the weights that its family has.

    Raises:
        BundleError: naming what is missing, or what nothing here would use.
    """
    prefix = file.architecture
    layers = file.fields.get(f"{prefix}.block_count")
    if not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS:
        raise BundleError(f"{file.path} does not say how many layers it has.")
    wanted = {*_GLOBAL}
    for layer in range(layers):
        wanted |= {f"blk.{layer}.{name}.weight" for name in _LAYER}
        wanted |= {f"blk.{layer}.{name}.bias" for name in _BIASES.get(prefix, ())}
    found = set(file.tensors)
    if len(found) < len(file.tensors):
        raise BundleError(f"{file.path} has weights of the same name twice.")
    if missing := sorted(wanted - found):
        raise BundleError(f"{file.path} is incomplete: it has no {some(missing)}.")
    if extra := sorted(found - wanted - {_HEAD}):
        raise BundleError(
            f"{file.path} cannot be served as it is meant: nothing here would use its {some(extra)}. "
            "Import the checkpoint it was made from instead."
        )
    if file.fields.get(f"{prefix}.rope.scaling.type", "none") != "none":
        raise BundleError(
            f"{file.path} stretches its positions ({prefix}.rope.scaling.type), which cannot be read from a "
            "GGUF file. Import the checkpoint it was made from instead."
        )


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # whatever a foreign file provokes
        raise BundleError(f"{path} is not a readable GGUF file: {error}") from error


def _joined(parts: list[Path], out: Path) -> Path:
    """One file of the parts of a model, whose weights are copied as they are."""
    from gguf import GGUFValueType, GGUFWriter

    readers = [_reader(part) for part in parts]
    fields = readers[0].fields
    writer = GGUFWriter(out, fields["general.architecture"].contents())
    for field in fields.values():
        if field.name.startswith("GGUF.") or field.name in (*_PARTS, "general.architecture"):
            continue
        sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
    return out


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
