"""How many bytes of weights one decoded token reads, by the kind of model file.

All weights are read once a token, except a table of which only one row is looked up. This, over the
memory's bandwidth, bounds single-stream decoding from below.
"""

from __future__ import annotations

import math
from pathlib import Path

_LOOKUPS = {"Gather", "GatherBlockQuantized"}


def onnx_bytes(model: Path) -> int:
    """Weights of a graph with external data, those that only a lookup uses left out."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    read = {name for node in graph.node if node.op_type not in _LOOKUPS for name in node.input}
    # An initializer that shares its bytes with another one is read once.
    places: dict[tuple[str, str], int] = {}
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name in read and entries:
            places[entries.get("location", ""), entries.get("offset", "0")] = int(entries["length"])
    return sum(places.values())


def gguf_bytes(model: Path) -> int:
    """Weights of a GGUF file; its embedding counts when it is the head as well."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(model).tensors}
    lookup = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0
    return sum(sizes.values()) - lookup


def checkpoint_bytes(checkpoint: Path) -> int:
    """Weights of a safetensors checkpoint as fp32; its embedding counts when it is the head as well."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            sizes |= {name: 4 * math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    lookup = sizes.get("model.embed_tokens.weight", 0) if "lm_head.weight" in sizes else 0
    return sum(sizes.values()) - lookup
