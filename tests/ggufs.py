"""Tiny GGUF models, whole or not, made on the spot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, WIDTH, INNER, HEADS = 2, 64, 96, 4


def tensors_of() -> dict[str, Any]:
    """Random weights by their names in such files."""
    dice = np.random.default_rng(3)

    def some(*shape: int) -> Any:
        return (dice.standard_normal(shape) * 0.1).astype(np.float32)

    tensors = {"token_embd.weight": some(len(words()), WIDTH), "output_norm.weight": some(WIDTH) + 1}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}.weight"] = some(WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"blk.{layer}.{name}.weight"] = some(INNER, WIDTH)
        tensors[f"blk.{layer}.ffn_down.weight"] = some(WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = some(WIDTH) + 1
    return tensors


def words() -> list[str]:
    """A byte-level vocabulary."""
    from appliance.model.vocabulary import _byte_letters

    return ["<|im_start|>", "<|im_end|>", *_byte_letters(), "he"]


def write_gguf(
    path: Path,
    without: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """A whole model; or one without some of its tensors, or with others."""
    tensors = {**tensors_of(), **(extra or {})}
    _write(path, {name: value for name, value in tensors.items() if name not in without}, fields or {})
    return path


def parts_of(whole: Path, folder: Path) -> list[Path]:
    """The model that `write_gguf` makes in two files."""
    tensors = tensors_of()
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    parts = []
    for number, half in enumerate(halves):
        parts.append(folder / f"{whole.stem}-{number + 1:05}-of-00002.gguf")
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        _write(parts[-1], {name: tensors[name] for name in half}, split)
    return parts


def _write(path: Path, tensors: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words()))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words())
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(words()) - 2))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    for name, value in fields.items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint16(name, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
