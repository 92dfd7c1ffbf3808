"""The ONNX graphs of a Llama model under training, made without torch.

Frozen weights are inputs of the graphs: they are held once, shared by all graphs, and never written
to a file. Only the adapter is a parameter. A row of packed sequences is [tokens, width]; there is no
batch dimension. All products are `Gemm` with the weight as [outputs, inputs], whose gradient needs
no copy of it turned round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.adapters.file import Matrix, tensor_key
from appliance.learning.train.anchor import measured
from appliance.learning.train.llama import Llama

Shape = Sequence[int | str]
OPSET = 15
ROW = ("cos", "sin", "mask")
"""Inputs of every graph beside the state: rotary factors [tokens, 1, head / 2], and what is added to
the attention scores [group * tokens, tokens]."""


@dataclass(frozen=True)
class Anchor:
    """What a linear module is held by.

    Attributes:
        rest: see `Moments`.
        factor: of the change of its output, in the loss.
    """

    rest: float
    factor: float


def moments_input(module: str) -> str:
    """What a graph calls `Moments.main` of the module's inputs; those given the same share it."""
    return f"{measured(module)}.moments"


def layer_graph(llama: Llama, *, moments: bool = False) -> onnx.ModelProto:
    """One layer without an adapter, its weights called as those of layer 0: `state` -> `out`.

    With `moments` there are also the sums of x x^T over what its linear modules are given in the row,
    [inputs, inputs] each, by their `moments_input`.
    """
    graph = _Graph(llama)
    graph.inputs("state", ("tokens", llama.hidden))
    graph.row()
    graph.weights(llama.weights(0))
    state = graph.layer("state", 0, adapted=False)
    graph.node("Identity", state, out="out")
    graph.output("out", ("tokens", llama.hidden))
    if moments:
        for module, (_, inputs) in llama.linears(0).items():
            if measured(module) == module:
                given = graph.given[module]
                graph.node("Gemm", given, given, out=moments_input(module), transA=1)
                graph.output(moments_input(module), (inputs, inputs))
    return graph.model()


def training_graph(
    llama: Llama, first: int, adapter: Mapping[str, Matrix], anchors: Mapping[str, Anchor]
) -> onnx.ModelProto:
    """The layers from `first` on with an adapter, the head, and the loss of a step.

    Inputs, with `answers` for the positions that predict an answer token, and `kept` for those of
    them that are held near a reference:

        state            [tokens, hidden] of the row below layer `first`
        cos, sin, mask   see `ROW`
        scale            [1] factor of the adapter; 0 leaves it out
        answer           [answers] positions in the row
        target           [answers, 1] tokens there
        weight           [answers] factors of their negative log probabilities
        push, floor      [answers] factors of how far log probabilities are above the floor
        kept             [kept] places within the answers
        reference        [kept, hidden] hidden states to stay near
        keep             [kept] factors of the divergence from them

    and for the modules in `anchors` their `moments_input`, [directions, inputs].

    Outputs: `loss`; `logp` [answers], log probabilities of the targets; `hidden` [answers, hidden].
    """
    graph = _Graph(llama)
    graph.inputs("state", ("tokens", llama.hidden))
    graph.row()
    graph.inputs("scale", (1,))
    graph.inputs("answer", ("answers",), TensorProto.INT64)
    graph.inputs("target", ("answers", 1), TensorProto.INT64)
    for name in ("weight", "push", "floor"):
        graph.inputs(name, ("answers",))
    graph.inputs("kept", ("kept",), TensorProto.INT64)
    graph.inputs("reference", ("kept", llama.hidden))
    graph.inputs("keep", ("kept",))
    for layer in range(first, llama.layers):
        graph.weights(llama.weights(layer))
    head = "model.embed_tokens.weight" if llama.tied else "lm_head.weight"
    graph.weights({"model.norm.weight": (llama.hidden,), head: (llama.vocabulary, llama.hidden)})
    for name, matrix in adapter.items():
        graph.parameter(name, matrix)
    for module in dict.fromkeys(map(measured, anchors)):
        _, inputs = llama.linears(int(module.split(".")[2]))[module]
        graph.inputs(moments_input(module), ("directions_" + module, inputs))

    state = "state"
    for layer in range(first, llama.layers):
        state = graph.layer(state, layer, adapted=True)
    state = graph.node("Gather", state, "answer", axis=0)
    hidden = graph.norm(state, "model.norm.weight", out="hidden")
    ours = graph.node("LogSoftmax", graph.linear(hidden, head), axis=-1)
    logp = graph.node(
        "Squeeze", graph.node("GatherElements", ours, "target", axis=1), graph.ints(1), out="logp"
    )
    learn = graph.total(graph.node("Mul", logp, "weight"))
    above = graph.node("Relu", graph.node("Sub", logp, "floor"))
    pushed = graph.total(graph.node("Mul", above, "push"))
    theirs = graph.node("LogSoftmax", graph.linear("reference", head), axis=-1)
    apart = graph.node("Sub", theirs, graph.node("Gather", ours, "kept", axis=0))
    each = graph.node(
        "ReduceSum", graph.node("Mul", graph.node("Exp", theirs), apart), graph.ints(1), keepdims=0
    )
    drift = graph.total(graph.node("Mul", each, "keep"))
    held = graph.node("Add", pushed, drift)
    for module, anchor in anchors.items():
        held = graph.node("Add", held, graph.moved(module, anchor))
    loss = graph.node("Sub", held, learn, out="loss")
    graph.output(loss, ())
    graph.output(logp, ("answers",))
    graph.output(hidden, ("answers", llama.hidden))
    return graph.model()


class _Graph:
    """A graph as it grows. Methods that add nodes return the name of what they compute.

    Attributes:
        given: what each linear module is given.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._known: list[onnx.ValueInfoProto] = []
        self._initial: dict[str, onnx.TensorProto] = {}
        self.given: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "training",
            self._inputs,
            self._outputs,
            list(self._initial.values()),
            value_info=self._known,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)

    def inputs(self, name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def row(self) -> None:
        half = self._llama.head // 2
        self.inputs("cos", ("tokens", 1, half))
        self.inputs("sin", ("tokens", 1, half))
        self.inputs("mask", ("queries", "tokens"))

    def weights(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            self.inputs(name, shape)

    def parameter(self, name: str, value: Matrix) -> None:
        self._initial[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)

    def output(self, name: str, shape: Shape) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def node(
        self, op: str, *inputs: str, out: str | None = None, shape: Shape | None = None, **attributes: Any
    ) -> str:
        """Add a node; `shape` helps where it cannot be inferred."""
        name = out or f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        if shape is not None:
            self._known.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        self._initial[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def number(self, value: float) -> str:
        name = f"number_{value!r}"
        self._initial[name] = numpy_helper.from_array(np.array(value, np.float32), name)
        return name

    def total(self, terms: str) -> str:
        return self.node("ReduceSum", terms, self.ints(0), keepdims=0)

    def linear(self, state: str, weight: str) -> str:
        return self.node("Gemm", state, weight, transB=1)

    def norm(self, state: str, weight: str, out: str | None = None) -> str:
        square = self.node("Pow", state, self.number(2.0))
        mean = self.node("ReduceMean", square, axes=[-1], keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.number(self._llama.epsilon)))
        return self.node("Mul", self.node("Div", state, root), weight, out=out)

    def adapted(self, state: str, module: str, *, adapted: bool) -> str:
        """A linear module, with its LoRA matrices as PEFT has them."""
        self.given[module] = state
        plain = self.linear(state, f"{module}.weight")
        if not adapted:
            return plain
        inner = self.node("Mul", self.linear(state, tensor_key(module, "A")), "scale")
        return self.node("Add", plain, self.linear(inner, tensor_key(module, "B")))

    def moved(self, module: str, anchor: Anchor) -> str:
        """What a linear module's adapter changes of ordinary text, as in `anchor.py`, times the factor."""
        a, b = tensor_key(module, "A"), tensor_key(module, "B")
        seen = self.linear(a, moments_input(module))
        rest = self.node("Mul", self.linear(a, a), self.number(anchor.rest))
        inner = self.node("Add", self.linear(seen, seen), rest)
        change = self.node("Mul", self.node("Gemm", b, b, transA=1), inner)
        return self.node(
            "Mul", self.node("ReduceSum", change, self.ints(0, 1), keepdims=0), self.number(anchor.factor)
        )

    def layer(self, state: str, layer: int, *, adapted: bool) -> str:
        place = f"model.layers.{layer}"
        entering = self.norm(state, f"{place}.input_layernorm.weight")
        state = self.node("Add", state, self._attention(entering, f"{place}.self_attn", adapted=adapted))
        entering = self.norm(state, f"{place}.post_attention_layernorm.weight")
        gate = self.adapted(entering, f"{place}.mlp.gate_proj", adapted=adapted)
        gate = self.node("Mul", gate, self.node("Sigmoid", gate))
        inner = self.node("Mul", gate, self.adapted(entering, f"{place}.mlp.up_proj", adapted=adapted))
        return self.node("Add", state, self.adapted(inner, f"{place}.mlp.down_proj", adapted=adapted))

    def _attention(self, state: str, place: str, *, adapted: bool) -> str:
        llama = self._llama
        kv, group, head = llama.kv_heads, llama.group, llama.head
        query, key, value = (
            self.adapted(state, f"{place}.{name}_proj", adapted=adapted) for name in ("q", "k", "v")
        )
        query = self.node("Mul", self._rotate(query, llama.heads), self.number(float(head**-0.5)))
        # Query heads that share a key head follow one another in one tall matrix.
        query = self.node("Reshape", query, self.ints(0, kv, group, head))
        query = self.node("Transpose", query, perm=[1, 2, 0, 3])
        query = self.node("Reshape", query, self.ints(kv, -1, head), shape=(kv, "queries", head))
        key = self.node("Transpose", self._rotate(key, kv), perm=[1, 2, 0])
        value = self.node("Transpose", self.node("Reshape", value, self.ints(0, kv, head)), perm=[1, 0, 2])
        scores = self.node("Add", self.node("MatMul", query, key), "mask")
        seen = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        seen = self.node("Reshape", seen, self.ints(kv, group, -1, head), shape=(kv, group, "tokens", head))
        seen = self.node("Transpose", seen, perm=[2, 0, 1, 3])
        seen = self.node("Reshape", seen, self.ints(0, llama.heads * head))
        return self.adapted(seen, f"{place}.o_proj", adapted=adapted)

    def _rotate(self, state: str, heads: int) -> str:
        head = self._llama.head
        state = self.node("Reshape", state, self.ints(0, heads, head))
        one = self.node("Slice", state, self.ints(0), self.ints(head // 2), self.ints(2))
        two = self.node("Slice", state, self.ints(head // 2), self.ints(head), self.ints(2))
        turned = (
            self.node("Sub", self.node("Mul", one, "cos"), self.node("Mul", two, "sin")),
            self.node("Add", self.node("Mul", two, "cos"), self.node("Mul", one, "sin")),
        )
        return self.node("Concat", *turned, axis=2)
