"""Opens a graph's LoRA ports: `y = W x` becomes `y = W x + (x A) B` for the layers that an adapter has.

The base graph on disk has no ports, and so costs nothing. An adapter's session gets a graph of its
own, with the matrices as constants: they are prepacked, which makes every batch size give the same
bits, and their shapes are known, so that buffers can be shared.

A serialized ONNX model is a protocol buffer: fields one after the other, each with its number, its
length and its content. That is all this module knows of the format, whose library has no place in a
serving process. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP = 1, 2, 3, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_FLOAT = 1
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


@dataclass(frozen=True)
class _Field:
    """A field: its number, its content, and both as they stand in the message."""

    number: int
    content: memoryview
    whole: memoryview


def open_ports(model: bytes, matrices: Mapping[str, tuple[Matrix, Matrix]]) -> bytes:
    """A model with ports at the nodes named.

    Args:
        model: a serialized ONNX model.
        matrices: by the name of a node with one input that counts and one output, A [inputs, rank] and
            B [rank, outputs].

    Raises:
        KeyError: there is no such node.
        ValueError: the model is not a protocol buffer.
    """
    done: set[str] = set()

    def graph(message: memoryview) -> Iterator[bytes | memoryview]:
        for field in _fields(message):
            if field.number == _GRAPH_NODE and (name := _text(field.content, _NODE_NAME)) in matrices:
                done.add(name)
                yield from _open(field.content, name)
            else:
                yield field.whole
        for name, (a, b) in matrices.items():
            yield _field(_GRAPH_INITIALIZER, _tensor(f"{name}.A", a))
            yield _field(_GRAPH_INITIALIZER, _tensor(f"{name}.B", b))

    parts: list[bytes | memoryview] = []
    for field in _fields(memoryview(model)):
        if field.number == _MODEL_GRAPH:
            parts.append(_field(_MODEL_GRAPH, b"".join(graph(field.content))))
        else:
            parts.append(field.whole)
    if missing := matrices.keys() - done:
        raise KeyError(sorted(missing)[0])
    return b"".join(parts)


def _open(node: memoryview, name: str) -> Iterator[bytes]:
    """The node with its result set aside, and those that add the adapter's part to it."""
    source, result = _text(node, _NODE_INPUT), _text(node, _NODE_OUTPUT)
    inner = [
        _field(_NODE_OUTPUT, f"{result}.base".encode())
        if field.number == _NODE_OUTPUT
        else bytes(field.whole)
        for field in _fields(node)
    ]
    yield _field(_GRAPH_NODE, b"".join(inner))
    for op, inputs, output in (
        ("MatMul", (source, f"{name}.A"), f"{result}.a"),
        ("MatMul", (f"{result}.a", f"{name}.B"), f"{result}.b"),
        ("Add", (f"{result}.base", f"{result}.b"), result),
    ):
        added = b"".join(_field(_NODE_INPUT, item.encode()) for item in inputs)
        added += _field(_NODE_OUTPUT, output.encode()) + _field(_NODE_NAME, f"{output}.{op}".encode())
        yield _field(_GRAPH_NODE, added + _field(_NODE_OP, op.encode()))


def _tensor(name: str, matrix: Matrix) -> bytes:
    dims = b"".join(_varint(_TENSOR_DIMS << 3 | _VARINT) + _varint(size) for size in matrix.shape)
    kind = _varint(_TENSOR_TYPE << 3 | _VARINT) + _varint(_FLOAT)
    raw = np.ascontiguousarray(matrix, "<f4").tobytes()
    return dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_TENSOR_RAW, raw)


def _text(message: memoryview, number: int) -> str:
    """The first field of that number, as text; empty when there is none."""
    return next((bytes(field.content).decode() for field in _fields(message) if field.number == number), "")


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            length, begin = _read_varint(message, at)
            at = begin + length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"field {number} is of kind {kind}")
        if at > len(message):
            raise ValueError(f"field {number} is cut off")
        yield _Field(number, message[begin:at], message[start:at])


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("a number is cut off")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content
