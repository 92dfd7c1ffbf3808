"""The graph pass: from the model builder's fp32 graph to the one that is served.

Import time only (needs onnx). The builder's graph is fused well but made for another runtime; the
pass gives it the inputs our engine binds and 8-bit weights that keep the quality, and notes where an
adapter can enter: at every linear layer.

The graph computes on a flat list of tokens, those of all sequences of a step one after the other.
Only attention wants them by sequence: before it they are laid out in padded rows, after it they are
gathered again. So one run mixes prompts and answers of any lengths, and no product is computed
on padding.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.errors import BundleError
from appliance.model.bundle import MODEL, WEIGHTS, Port, PortPart, Stored
from appliance.model.quantize import BITS, BLOCK, quantize_blocks

QUANTIZATION = f"int{BITS}-b{BLOCK}"
_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+_proj)/MatMul")
_GATE = re.compile(r"(/model/layers\.\d+/mlp)/gate_proj/MatMul")
_SCOPE = {"attn": "self_attn", "mlp": "mlp"}
_HEAD = "/lm_head/MatMul"
_EMBED = "/model/embed_tokens/Gather"
_DOMAIN = "com.microsoft"
_QUANTIZED = "_Q8"  # what a quantized node's name ends with
_INLINE = 128  # bytes; smaller tensors, such as shapes, stay in the graph, and no weights do
_QUERY_SEQLENS = 16  # place of that input of GroupQueryAttention


def transform(source: Path, out: Path, config: dict[str, Any]) -> tuple[Port, ...]:
    """Rewrite the builder's `model.onnx` in `source` into `out`; returns the ports in graph order.

    Args:
        source: directory of the builder's fp32 output.
        out: directory that gets `model.onnx` and `model.onnx.data`.
        config: the checkpoint's `config.json`, for the widths of fused layers.

    Raises:
        BundleError: the graph is not of the shape this pass knows.
    """
    model = onnx.load(source / "model.onnx")
    graph = model.graph
    _use_rows(graph)
    _select_logits(graph)
    _join_gate_up(graph)
    _prune(graph)
    _check_inputs(graph)
    _quantize(graph)
    _prune(graph)
    # The builder writes the time of day here; the same source must give the same bytes, because an
    # adapter is bound to their hash.
    model.producer_version = ""
    onnx.save(
        model,
        out / MODEL,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=_INLINE,
    )
    return _find_ports(graph, config)


def _use_rows(graph: onnx.GraphProto) -> None:
    """Tokens come flat, and attention takes rows of them with their lengths instead of a mask."""
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            nodes.append(node)
            continue
        found = True
        rotary = {a.name: helper.get_attribute_value(a) for a in node.attribute}.get("do_rotary", 0)
        if not rotary or len(node.input) < 9:
            raise BundleError("This model's attention cannot be served: its positions are not rotary.")
        for at in range(3):  # query, key, value; or only the first, which then holds all three
            if node.input[at]:
                flat, rows = node.input[at], f"{node.input[at]}.rows"
                nodes.append(
                    helper.make_node(
                        "Gather", [flat, "unpack_index"], [rows], name=f"{node.name}/unpack{at}", axis=0
                    )
                )
                node.input[at] = rows
        node.input[5] = "seqlens_k"
        node.input[6] = "total_sequence_length"
        node.input.extend([""] * (_QUERY_SEQLENS - len(node.input)))
        node.input.append("query_seqlens")
        result = node.output[0]
        node.output[0] = f"{result}.rows"
        name = f"{node.name}/pack"
        nodes += [node, helper.make_node("GatherND", [node.output[0], "pack_index"], [result], name=name)]
    if not found:
        raise BundleError("This model's attention cannot be served: it is no grouped-query attention.")
    _replace_nodes(graph, nodes)
    kept = [value for value in graph.input if value.name not in ("input_ids", "attention_mask")]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"]))
    graph.input.extend(kept)
    wanted: tuple[tuple[str, int, list[str | int]], ...] = (
        ("seqlens_k", TensorProto.INT32, ["batch_size"]),
        ("query_seqlens", TensorProto.INT32, ["batch_size"]),
        ("total_sequence_length", TensorProto.INT32, []),
        ("unpack_index", TensorProto.INT64, ["batch_size", "padded"]),
        ("pack_index", TensorProto.INT64, ["tokens", 2]),
        ("logits_index", TensorProto.INT64, ["n_logits"]),
    )
    for name, kind, shape in wanted:
        graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def _select_logits(graph: onnx.GraphProto) -> None:
    """The head computes only the positions asked for: a prompt needs one, a frozen prefix none."""
    head = _node(graph, _HEAD)
    vocab = next(tensor.dims[1] for tensor in graph.initializer if tensor.name == head.input[1])
    pick = helper.make_node(
        "Gather", [head.input[0], "logits_index"], ["hidden_picked"], name="/lm_head/Pick", axis=0
    )
    head.input[0] = "hidden_picked"
    nodes = list(graph.node)
    at = nodes.index(head)
    _replace_nodes(graph, [*nodes[:at], pick, *nodes[at:]])
    outputs = [value for value in graph.output if value.name != "logits"]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n_logits", vocab])
    del graph.output[:]
    graph.output.extend([logits, *outputs])


def _join_gate_up(graph: onnx.GraphProto) -> None:
    """Two products of the same input become one: half the nodes, and one A for both in their port."""
    inits = {tensor.name: tensor for tensor in graph.initializer}
    by_name = {node.name: node for node in graph.node}
    nodes, joined = [], set()
    for node in graph.node:
        match = _GATE.fullmatch(node.name)
        up = by_name.get(f"{match[1]}/up_proj/MatMul") if match else None
        if match is None or up is None or up.input[0] != node.input[0]:
            if node.name not in joined:
                nodes.append(node)
            continue
        pair = [numpy_helper.to_array(inits[one.input[1]]) for one in (node, up)]
        name, both = f"{match[1]}/gate_up_proj/MatMul", f"{match[1]}/gate_up_proj/output_0"
        graph.initializer.append(numpy_helper.from_array(np.concatenate(pair, axis=1), f"{name}.weight"))
        outputs = [node.output[0], up.output[0]]
        widths = np.array([matrix.shape[1] for matrix in pair], np.int64)
        graph.initializer.append(numpy_helper.from_array(widths, f"{name}.widths"))
        nodes += [
            helper.make_node("MatMul", [node.input[0], f"{name}.weight"], [both], name=name),
            helper.make_node("Split", [both, f"{name}.widths"], outputs, name=f"{name}/Split", axis=-1),
        ]
        joined.add(up.name)
    _replace_nodes(graph, nodes)


def _find_ports(graph: onnx.GraphProto, config: dict[str, Any]) -> tuple[Port, ...]:
    """The ports of the graph as it was saved."""
    inits = {tensor.name: tensor for tensor in graph.initializer}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    query, key = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    ports = []
    for node in graph.node:
        match = _LINEAR.fullmatch(node.name.removesuffix(_QUANTIZED))
        if node.op_type != "MatMulNBits" or match is None:
            continue
        layer, scope, linear = int(match[1]), _SCOPE[match[2]], match[3]
        shape = {a.name: a.i for a in node.attribute}
        inputs, outputs = shape["K"], shape["N"]
        fused = {linear: outputs}
        if linear == "qkv_proj":
            fused = {"q_proj": query, "k_proj": key, "v_proj": key}
        elif linear == "gate_up_proj":
            fused = {"gate_proj": outputs // 2, "up_proj": outputs // 2}
        parts = tuple(PortPart(f"model.layers.{layer}.{scope}.{n}", width) for n, width in fused.items())
        stored = [_stored(inits[name]) for name in node.input[1:3]]
        port = Port(f"lora.{layer}.{linear}", layer, inputs, parts, *stored)
        if port.outputs != outputs:
            raise BundleError(f"{node.name} is {outputs} wide, its config says {port.outputs}.")
        ports.append(port)
    if not ports or len({port.layer for port in ports}) != config["num_hidden_layers"]:
        raise BundleError("This model's linear layers were not found where its family has them.")
    return tuple(ports)


def _stored(tensor: onnx.TensorProto) -> Stored:
    where = {entry.key: entry.value for entry in tensor.external_data}
    return Stored(tensor.name, int(where["offset"]), tuple(tensor.dims))


def _quantize(graph: onnx.GraphProto) -> None:
    """Linear layers and embedding to 8 bits; a table shared by head and embedding stays shared in value."""
    inits = {tensor.name: tensor for tensor in graph.initializer}
    head, embed = _node(graph, _HEAD), _node(graph, _EMBED)
    tied = embed.input[0] not in inits
    if tied and not any(
        node.op_type == "Transpose" and node.input[0] == head.input[1] and embed.input[0] in node.output
        for node in graph.node
    ):
        raise BundleError("This model's embedding cannot be served: it is neither a table nor the head's.")
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in inits:
            weights = numpy_helper.to_array(inits[node.input[1]])
            packed, scales = quantize_blocks(np.ascontiguousarray(weights.T))
            _make_matmul(graph, node, weights.shape, packed, scales)
            if tied and node.name == f"{_HEAD}{_QUANTIZED}":
                _make_embedding(graph, embed, weights.shape[0], packed, scales)
    if not tied:
        table = numpy_helper.to_array(inits[embed.input[0]])
        _make_embedding(graph, embed, table.shape[1], *quantize_blocks(table))


def _make_matmul(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
) -> None:
    names = [f"{node.input[1]}_Q8", f"{node.input[1]}_scales"]
    node.name += _QUANTIZED
    node.op_type, node.domain = "MatMulNBits", _DOMAIN
    node.input[1:] = names
    # Level 4: the product is computed on 8-bit activations, which is what makes it fast.
    facts = {"K": shape[0], "N": shape[1], "bits": BITS, "block_size": BLOCK, "accuracy_level": 4}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in facts.items())
    _add(graph, names, packed, scales)


def _make_embedding(
    graph: onnx.GraphProto,
    embed: onnx.NodeProto,
    width: int,
    packed: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
) -> None:
    names = ["embed_tokens.weight_Q8", "embed_tokens.weight_scales"]
    embed.op_type, embed.domain = "GatherBlockQuantized", _DOMAIN
    embed.input[:] = [names[0], embed.input[1], names[1]]
    facts = {"bits": BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    del embed.attribute[:]
    embed.attribute.extend(helper.make_attribute(name, value) for name, value in facts.items())
    # This op wants the table's own width: the padding of the last block goes.
    table = np.ascontiguousarray(packed.reshape(packed.shape[0], -1)[:, :width])
    _add(graph, names, table, scales)


def _add(graph: onnx.GraphProto, names: list[str], *arrays: npt.NDArray[Any]) -> None:
    tensors = (numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True))
    graph.initializer.extend(tensors)


def _check_inputs(graph: onnx.GraphProto) -> None:
    known = re.compile(
        r"input_ids|seqlens_k|query_seqlens|total_sequence_length|(unpack|pack|logits)_index"
        r"|past_key_values\.\d+\.(key|value)"
    )
    used = {name for node in graph.node for name in node.input}
    odd = [value.name for value in graph.input if value.name in used and not known.fullmatch(value.name)]
    if odd or any(node.op_type in ("If", "Loop", "Scan") for node in graph.node):
        raise BundleError(
            f"This model's graph cannot be served (unexpected inputs: {odd or 'control flow'})."
        )
    kept = [value for value in graph.input if known.fullmatch(value.name)]
    del graph.input[:]
    graph.input.extend(kept)


def _prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and weights that no output needs."""
    nodes = list(graph.node)
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    names: set[str] = set()
    pending = [value.name for value in graph.output]
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            if name in producers:
                pending += [item for item in nodes[producers[name]].input if item]
    inits = [tensor for tensor in graph.initializer if tensor.name in names]
    _replace_nodes(graph, [node for node in nodes if names.intersection(node.output)])
    del graph.initializer[:]
    graph.initializer.extend(inits)
    del graph.value_info[:]


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    node: onnx.NodeProto
    for node in graph.node:
        if node.name == name:
            return node
    raise BundleError(f"This model's graph cannot be served: it has no {name}.")
