"""The graph pass: from the model builder's fp32 graph to the one that is served.

Import time only (needs onnx). The builder's graph is fused well but made for another runtime; the
pass gives it the inputs our engine binds, 8-bit weights that keep the quality, and a LoRA port at
every linear layer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
    MatMulNBitsQuantizer,
)

from appliance.errors import BundleError
from appliance.model.bundle import MODEL, WEIGHTS, Port, PortPart

BITS = 8
BLOCK = 32
QUANTIZATION = f"int{BITS}-b{BLOCK}"
_LINEAR = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+_proj)/MatMul")
_SCOPE = {"attn": "self_attn", "mlp": "mlp"}
_HEAD = "/lm_head/MatMul"
_EMBED = "/model/embed_tokens/Gather"


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
    _use_lengths(graph)
    _select_logits(graph)
    ports = _open_ports(graph, config)
    _prune(graph)
    _check_inputs(graph)
    model = _quantize(model)
    onnx.save(
        model,
        out / MODEL,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=1024,
    )
    return ports


def _use_lengths(graph: onnx.GraphProto) -> None:
    """Attention takes the row lengths as inputs instead of deriving them from a mask."""
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if not attention:
        raise BundleError("This model's attention cannot be served: it is no grouped-query attention.")
    for node in attention:
        rotary = {a.name: helper.get_attribute_value(a) for a in node.attribute}.get("do_rotary", 0)
        if not rotary or len(node.input) < 9:
            raise BundleError("This model's attention cannot be served: its positions are not rotary.")
        node.input[5] = "seqlens_k"
        node.input[6] = "total_sequence_length"
    kept = [value for value in graph.input if value.name != "attention_mask"]
    del graph.input[:]
    graph.input.extend(kept)
    graph.input.extend(
        [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
            helper.make_tensor_value_info("logits_index", TensorProto.INT64, ["n_logits"]),
        ]
    )


def _select_logits(graph: onnx.GraphProto) -> None:
    """The head computes only the positions asked for: a prompt needs one, a frozen prefix none."""
    head = _node(graph, _HEAD)
    inits = {tensor.name: tensor for tensor in graph.initializer}
    hidden, vocab = inits[head.input[1]].dims
    graph.initializer.append(numpy_helper.from_array(np.array([-1, hidden], np.int64), "flat_shape"))
    flat = helper.make_node("Reshape", [head.input[0], "flat_shape"], ["hidden_flat"], name="/lm_head/Flat")
    pick = helper.make_node(
        "Gather", ["hidden_flat", "logits_index"], ["hidden_picked"], name="/lm_head/Pick", axis=0
    )
    head.input[0] = "hidden_picked"
    nodes = list(graph.node)
    at = nodes.index(head)
    _replace_nodes(graph, [*nodes[:at], flat, pick, *nodes[at:]])
    outputs = [value for value in graph.output if value.name != "logits"]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n_logits", vocab])
    del graph.output[:]
    graph.output.extend([logits, *outputs])


def _open_ports(graph: onnx.GraphProto, config: dict[str, Any]) -> tuple[Port, ...]:
    inits = {tensor.name: tensor for tensor in graph.initializer}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    query, key = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    ports, nodes = [], []
    for node in graph.node:
        nodes.append(node)
        match = _LINEAR.fullmatch(node.name)
        if node.op_type != "MatMul" or match is None:
            continue
        layer, scope, linear = int(match[1]), _SCOPE[match[2]], match[3]
        inputs, outputs = inits[node.input[1]].dims
        fused = {"q_proj": query, "k_proj": key, "v_proj": key} if linear == "qkv_proj" else {linear: outputs}
        parts = tuple(PortPart(f"model.layers.{layer}.{scope}.{n}", width) for n, width in fused.items())
        port = Port(f"lora.{layer}.{linear}", layer, inputs, parts)
        if port.outputs != outputs:
            raise BundleError(f"{node.name} is {outputs} wide, its config says {port.outputs}.")
        ports.append(port)
        a, b, result = f"{port.name}.A", f"{port.name}.B", node.output[0]
        node.output[0] = f"{result}.base"
        nodes += [
            helper.make_node("MatMul", [node.input[0], a], [f"{result}.a"], name=f"{node.name}.loraA"),
            helper.make_node("MatMul", [f"{result}.a", b], [f"{result}.b"], name=f"{node.name}.loraB"),
            helper.make_node("Add", [f"{result}.base", f"{result}.b"], [result], name=f"{node.name}.lora"),
        ]
        # No adapter is rank 0. A session replaces these when it is built; as constants they are prepacked,
        # which makes every batch size give the same bits (as inputs they do not).
        for name, shape in ((a, (inputs, 0)), (b, (0, outputs))):
            graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    _replace_nodes(graph, nodes)
    if not ports or len({port.layer for port in ports}) != config["num_hidden_layers"]:
        raise BundleError("This model's linear layers were not found where its family has them.")
    return tuple(ports)


def _quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    quant = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=BITS, op_types_to_quantize=("MatMul",)
    )
    adapters = [node.name for node in model.graph.node if ".lora" in node.name]
    embed = _node(model.graph, _EMBED)
    table = _embedding_table(model.graph, embed)
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=BITS,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=4,
        nodes_to_exclude=adapters,
        op_types_to_quantize=("MatMul",),
        algo_config=quant,
    )
    quantizer.process()
    model = quantizer.model.model
    graph = model.graph
    _quantize_embedding(graph, table, quant)
    _prune(graph)
    return model


def _embedding_table(graph: onnx.GraphProto, embed: onnx.NodeProto) -> str | np.ndarray[Any, Any]:
    """The name of the head's weights when they are shared, else the table itself."""
    inits = {tensor.name: tensor for tensor in graph.initializer}
    name = embed.input[0]
    if name in inits:
        return numpy_helper.to_array(inits[name])
    producer = next(node for node in graph.node if name in node.output)
    if producer.op_type != "Transpose" or producer.input[0] != _node(graph, _HEAD).input[1]:
        raise BundleError("This model's embedding cannot be served: it is neither a table nor the head's.")
    return str(producer.input[0])


def _quantize_embedding(
    graph: onnx.GraphProto, table: str | np.ndarray[Any, Any], quant: DefaultWeightOnlyQuantConfig
) -> None:
    embed = _node(graph, _EMBED)
    if isinstance(table, str):
        head = next(node for node in graph.node if "logits" in node.output)
        inits = {tensor.name: tensor for tensor in graph.initializer}
        packed, scales = (numpy_helper.to_array(inits[name]) for name in head.input[1:3])
        vocab = packed.shape[0]
    else:
        vocab = table.shape[0]
        packed, scales, _ = DefaultWeightOnlyQuantizer(quant).qbits_block_quant(np.ascontiguousarray(table.T))
    packed, scales = packed.reshape(vocab, -1), scales.reshape(vocab, -1)
    embed.op_type, embed.domain = "GatherBlockQuantized", "com.microsoft"
    ids = embed.input[1]
    del embed.attribute[:], embed.input[:]
    embed.attribute.extend(
        helper.make_attribute(name, value)
        for name, value in (("bits", BITS), ("block_size", BLOCK), ("gather_axis", 0), ("quantize_axis", 1))
    )
    embed.input.extend(["embed_tokens.weight_Q8", ids, "embed_tokens.weight_scales"])
    graph.initializer.extend(
        [
            numpy_helper.from_array(packed, "embed_tokens.weight_Q8"),
            numpy_helper.from_array(scales, "embed_tokens.weight_scales"),
        ]
    )


def _check_inputs(graph: onnx.GraphProto) -> None:
    known = re.compile(
        r"input_ids|seqlens_k|total_sequence_length|logits_index|past_key_values\.\d+\.(key|value)"
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
