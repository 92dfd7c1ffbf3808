"""The served weights as a Hugging Face checkpoint, so that training starts from what is served.

Trainer side only (needs onnx). The weights are de-quantized from the bundle's graph: an adapter
trained on them corrects the very rounding it will be served with.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from appliance.errors import BundleError
from appliance.model.bundle import WEIGHTS, Bundle, Port, Stored
from appliance.model.quantize import dequantize_blocks

Weights = dict[str, npt.NDArray[np.float32]]


def load_checkpoint(bundle: Bundle) -> tuple[dict[str, Any], Weights]:
    """The bundle's `config.json` and its weights in fp32, by their names in the checkpoint.

    A tied head is left out, as the model class makes it from the embedding.

    Raises:
        BundleError: the graph is not one of ours.
    """
    config: dict[str, Any] = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))
    # Its weights are read here and not by onnx, which refuses a file that has hard links: a home
    # kept by a backup program may well consist of them.
    graph = onnx.load(bundle.model_path, load_external_data=False).graph
    inits = {tensor.name: tensor for tensor in graph.initializer}
    ports = {port.name: port for port in bundle.manifest.ports}
    weights: Weights = {}

    def array(name: str) -> npt.NDArray[Any]:
        return _read(bundle, inits[name])

    try:
        for node in graph.node:
            if node.op_type == "MatMulNBits":
                head = "logits" in node.output
                if head and config.get("tie_word_embeddings"):
                    continue
                width = _attribute(node, "K")
                matrix = dequantize_blocks(array(node.input[1]), array(node.input[2]), width)
                if head:
                    weights["lm_head.weight"] = matrix
                else:
                    weights.update(_split(ports[_port_name(node.name)], matrix, "weight"))
            elif node.op_type == "GatherBlockQuantized":
                table = dequantize_blocks(array(node.input[0]), array(node.input[2]), config["hidden_size"])
                weights["model.embed_tokens.weight"] = table
            elif node.op_type == "Add" and node.name.endswith("_proj/Add"):
                bias = next(name for name in node.input if name in inits)
                weights.update(_split(ports[_port_name(node.name)], array(bias), "bias"))
        for name in inits:
            if name.endswith(".final_norm_layernorm.weight"):
                weights["model.norm.weight"] = array(name)
            elif name.endswith("layernorm.weight"):
                weights[name] = array(name)
    except (KeyError, StopIteration, ValueError) as error:
        raise BundleError(f"The weights of {bundle.path} cannot be read back: {error!r}") from error
    return config, {name: np.asarray(value, np.float32) for name, value in weights.items()}


def _read(bundle: Bundle, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    if where["location"] != WEIGHTS:
        raise ValueError(f"{tensor.name} is kept in {where['location']!r}")
    stored = Stored(tensor.name, int(where.get("offset", 0)), tuple(tensor.dims))
    return bundle.read(stored, helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _split(port: Port, value: npt.NDArray[Any], kind: str) -> Weights:
    """The parts of a fused layer, which lie one after the other in its output."""
    if value.shape[0] != port.outputs:
        raise ValueError(f"{port.name} is {value.shape[0]} wide instead of {port.outputs}")
    bounds = np.cumsum([part.out for part in port.parts])[:-1]
    pieces = np.split(value, bounds)
    return {f"{part.module}.{kind}": piece for part, piece in zip(port.parts, pieces, strict=True)}


def _port_name(node: str) -> str:
    """`/model/layers.3/attn/qkv_proj/MatMul_Q8` -> `lora.3.qkv_proj`."""
    _, _, layer, _, linear, _ = node.split("/")
    return f"lora.{layer.removeprefix('layers.')}.{linear}"


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    raise KeyError(name)
