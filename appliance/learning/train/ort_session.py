"""A graph in training: differentiated, with its optimizer, by onnxruntime-training.

Its release 1.19.2 is the last and runs in an environment of its own, `requirements/ort.txt`.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

# These are for training with torch, and would import it.
for _unused in ("optim", "amp", "artifacts"):
    sys.modules.setdefault(f"onnxruntime.training.{_unused}", types.ModuleType(_unused))

import onnxruntime  # noqa: E402
from onnxruntime import OrtValue  # noqa: E402
from onnxruntime.training import onnxblock  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402

from appliance.adapters.file import Matrix  # noqa: E402
from appliance.learning.train.learner import BETAS, CLIP, EPSILON  # noqa: E402

ALIGNMENT = 64
Inputs = Mapping[str, OrtValue]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How all sessions of a trainer run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    # No two rows are alike: what is kept ready for one would only be in the way of the next.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy at an address that is a multiple of `ALIGNMENT`.

    Sums are grouped by where the data lies: elsewhere the last bits would differ from run to run.
    """
    space = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    out = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def value(array: npt.NDArray[Any], *, copy: bool = True) -> OrtValue:
    """An array as an input; without a copy it shares the memory."""
    return OrtValue.ortvalue_from_numpy(aligned(array) if copy else array)


class TrainingSession:
    """The graph's initializers with a name in `trainable` are trained to lower its first output.

    Of its inputs those in `frozen` are the same in every run.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        trainable: set[str],
        frozen: Inputs,
        options: onnxruntime.SessionOptions,
    ) -> None:
        self._frozen = frozen
        self._options = options
        block = _Block()
        for name in trainable:
            block.requires_grad(name)
        with _silence(), onnxblock.base(model):
            block(*(output.name for output in model.graph.output))
        train, judge = block.to_model_proto()
        _clip(train.graph)
        graphs = {"train": train, "judge": judge, "update": _optimizer(block.parameters())}
        self._graphs = {name: graph.SerializeToString() for name, graph in graphs.items()}
        with tempfile.TemporaryDirectory() as place:
            onnxblock.save_checkpoint(block.parameters(), Path(place, "start"))
            self._open(Path(place, "start"))
        self._inputs = [name for name in self._module.input_names() if name not in trainable]

    def judge(self, inputs: Inputs) -> list[npt.NDArray[Any]]:
        """The graph's outputs for the inputs that are not frozen."""
        self._module.eval()
        return self._run(inputs)

    def learn(self, inputs: Inputs, rate: float) -> float:
        """One step; the first output before it.

        Raises:
            ArithmeticError: it is not finite, and no parameter was changed.
        """
        self._module.train()
        loss = float(self._run(inputs)[0])
        self._module.lazy_reset_grad()
        if not math.isfinite(loss):
            raise ArithmeticError("The loss is not finite.")
        self._optimizer.set_learning_rate(rate)
        self._optimizer.step()
        return loss

    def parameters(self) -> dict[str, Matrix]:
        """Copies of what is trained."""
        return {name: parameter.data.copy() for name, parameter in self._state.parameters}

    def set(self, name: str, matrix: Matrix) -> None:
        """Give a parameter another value."""
        self._state.parameters[name] = aligned(matrix)

    def state(self) -> bytes:
        """Parameters and what the optimizer remembers."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "state")
            CheckpointState.save_checkpoint(self._state, path, include_optimizer_state=True)
            return path.read_bytes()

    def restore(self, state: bytes) -> None:
        """Be as when `state` was taken."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "state")
            path.write_bytes(state)
            self._open(path)

    def _run(self, inputs: Inputs) -> list[npt.NDArray[Any]]:
        given = {**self._frozen, **inputs}
        return [output.numpy() for output in self._module(*(given[name] for name in self._inputs))]

    def _open(self, checkpoint: Path) -> None:
        paths = {name: checkpoint.with_name(name) for name in self._graphs}
        for name, path in paths.items():
            path.write_bytes(self._graphs[name])
        self._state = CheckpointState.load_checkpoint(checkpoint)
        self._module = Module(paths["train"], self._state, paths["judge"], session_options=self._options)
        self._optimizer = Optimizer(paths["update"], self._module)


class _Block(onnxblock.TrainingBlock):  # type: ignore[misc]
    """Has the graph's own outputs differentiated, the loss among them."""

    def build(self, *outputs: str) -> tuple[str, ...]:
        return outputs


def _clip(graph: onnx.GraphProto) -> None:
    """Scale all gradients down together when their norm exceeds `CLIP`.

    The library's own `ClipGradNorm` adds them up in an order that changes from process to process.
    """
    ends = [node for node in graph.node if node.op_type == "InPlaceAccumulatorV2"]
    added: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"clip_{len(added)}"
        added.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    for name, number in (("clip_norm", CLIP), ("clip_margin", 1e-6), ("clip_one", 1.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    squares = [add("ReduceSumSquare", node.input[1], keepdims=0) for node in ends]
    norm = add("Add", add("Sqrt", add("Sum", *squares)), "clip_margin")
    factor = add("Min", add("Div", "clip_norm", norm), "clip_one")
    for node in ends:
        node.input[1] = add("Mul", node.input[1], factor)
        graph.node.remove(node)
    graph.node.extend([*added, *ends])


def _optimizer(parameters: Any) -> onnx.ModelProto:
    optimizer = onnxblock.optim.AdamW(betas=BETAS, eps=EPSILON, weight_decay=0.0)
    with onnxblock.empty_base():
        optimizer(parameters)
        model: onnx.ModelProto = optimizer.to_model_proto()
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "adam_mode":
                attribute.i = 0  # bias corrected as in torch, not as in transformers of old
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Differentiating logs every pass on stderr, at whatever level."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
