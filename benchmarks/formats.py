"""What weight formats cost and gain: products of whole models of several sizes, without the models.

    .venv/bin/python benchmarks/formats.py [--threads N] [--models NAME ...] [--json FILE]

For the shapes of real models it times every product of one layer and of the head as the ONNX Runtime node
that would serve it, with random weights, and adds up what all layers take: an upper bound of the speed with
that format, as attention and small operations come on top. Columns: bytes read for a token, tokens/s
of one answer, of eight answers together, and of a prompt of 512. Speed does not depend on the
values of weights; quality does, and is measured on the default model only (`quality.py`).

Formats: MatMulNBits with blocks of 32, 8 bit and 4 bit, symmetric; the same 4 bit with blocks of 128; and
4 bit with the exact offset of Q4_1 blocks as a product of block sums, the lossless form of the default
model's file. A product of few rows is timed over so many copies of its weights that no cache holds them.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from hardware import best_seconds, processor
from onnx import TensorProto, helper, numpy_helper

FEW_ROWS, PROMPT = (1, 8), 512
COLD_BYTES = 256 * 2**20  # more than a cache holds


@dataclass(frozen=True)
class Shape:
    """The products of a Llama-like model.

    Attributes:
        attention: width of queries, and of keys and values.
        inner: width between up and down.
    """

    layers: int
    hidden: int
    attention: tuple[int, int]
    inner: int
    vocabulary: int

    @property
    def layer(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the products of a layer as our graphs have them."""
        queries, keys = self.attention
        return (
            (self.hidden, queries + 2 * keys),
            (queries, self.hidden),
            (self.hidden, 2 * self.inner),
            (self.inner, self.hidden),
        )

    @property
    def weights(self) -> int:
        """Weights that a token is multiplied with."""
        return self.layers * sum(a * b for a, b in self.layer) + self.hidden * self.vocabulary


# Widths from the models' published configurations.
MODELS = {
    "SmolLM2-135M": Shape(30, 576, (576, 192), 1536, 49152),
    "Qwen2.5-0.5B": Shape(24, 896, (896, 128), 4864, 151936),
    "Llama-3.2-1B": Shape(16, 2048, (2048, 512), 8192, 128256),
    "SmolLM2-1.7B": Shape(24, 2048, (2048, 2048), 8192, 49152),
    "Qwen2.5-3B": Shape(36, 2048, (2048, 256), 11008, 151936),
}


@dataclass(frozen=True)
class Format:
    """How weights are stored."""

    name: str
    bits: int
    block: int
    offset: bool = False

    @property
    def bytes_each(self) -> float:
        """Bytes of a weight, with its share of scale and offset."""
        return self.bits / 8 + 4 / self.block * (2 if self.offset else 1)


FORMATS = (
    Format("8 bit, blocks of 32", 8, 32),
    Format("8 bit, blocks of 64", 8, 64),
    Format("8 bit, blocks of 128", 8, 128),
    Format("4 bit, blocks of 32", 4, 32),
    Format("4 bit, blocks of 128", 4, 128),
    Format("4 bit + exact offset, 32", 4, 32, offset=True),
)


@dataclass(frozen=True)
class Row:
    """One format of one model."""

    model: str
    format: str
    megabytes: float
    one: float
    eight: float
    prompt: float


def session(
    inputs: int, outputs: int, kind: Format, copies: int, threads: int
) -> onnxruntime.InferenceSession:
    """Products of one input X with as many weights as there are copies."""
    random = np.random.default_rng(0)
    blocks = -(-inputs // kind.block)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "shape": np.array([-1, blocks, kind.block], np.int64),
        "axis": np.array([2], np.int64),
    }
    facts = {"K": inputs, "N": outputs, "bits": kind.bits, "block_size": kind.block, "accuracy_level": 4}
    nodes = []
    for copy in range(copies):
        constants[f"W{copy}"] = random.integers(
            0, 256, (outputs, blocks, kind.block * kind.bits // 8), np.uint8
        )
        constants[f"S{copy}"] = random.random((outputs, blocks), np.float32)
        result = f"Q{copy}" if kind.offset else f"Y{copy}"
        given = ["X", f"W{copy}", f"S{copy}"]
        nodes.append(helper.make_node("MatMulNBits", given, [result], domain="com.microsoft", **facts))
        if kind.offset:
            constants[f"M{copy}"] = random.random((blocks, outputs), np.float32)
            nodes += [
                helper.make_node("Reshape", ["X", "shape"], [f"B{copy}"]),
                helper.make_node("ReduceSum", [f"B{copy}", "axis"], [f"T{copy}"], keepdims=0),
                helper.make_node("MatMul", [f"T{copy}", f"M{copy}"], [f"O{copy}"]),
                helper.make_node("Add", [result, f"O{copy}"], [f"Y{copy}"]),
            ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", inputs])],
        [
            helper.make_tensor_value_info(f"Y{copy}", TensorProto.FLOAT, ["rows", outputs])
            for copy in range(copies)
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )


def seconds(inputs: int, outputs: int, kind: Format, threads: int) -> list[float]:
    """Of one product: with one row, with eight, and with those of a prompt."""
    random = np.random.default_rng(1)
    copies = max(2, round(COLD_BYTES / (inputs * outputs * kind.bytes_each)))
    found = []
    for rows, count in (*((rows, copies) for rows in FEW_ROWS), (PROMPT, 1)):
        made = session(inputs, outputs, kind, count, threads)
        value = random.standard_normal((rows, inputs), np.float32)
        found.append(best_seconds(lambda made=made, value=value: made.run(None, {"X": value}), 0.5) / count)
    return found


def measure(name: str, kind: Format, threads: int) -> Row:
    shape = MODELS[name]
    layer = np.sum([seconds(*widths, kind, threads) for widths in shape.layer], axis=0) * shape.layers
    head = np.array(seconds(shape.hidden, shape.vocabulary, kind, threads))
    one, eight = (layer + head)[:2]
    prompt = layer[2] + head[0]  # of a prompt only the last token's logits are computed
    size = shape.weights * kind.bytes_each / 1e6
    return Row(name, kind.name, size, 1 / one, 8 / eight, PROMPT / float(prompt))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{processor()}, {options.threads} threads; tokens/s of the products alone")
    print(f"{'model':14}{'format':26}{'MB':>7}{'1 answer':>10}{'8 answers':>11}{'prompt 512':>12}")
    rows = []
    for name in options.models:
        for kind in FORMATS:
            row = measure(name, kind, options.threads)
            rows.append(row)
            print(
                f"{row.model:14}{row.format:26}{row.megabytes:7.0f}{row.one:10.1f}{row.eight:11.1f}"
                f"{row.prompt:12.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
