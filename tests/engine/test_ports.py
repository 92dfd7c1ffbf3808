"""The graph that an adapter gets, read back with the library that the serving process does without."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from appliance.engine.ports import open_ports
from appliance.model.bundle import Bundle


def test_ports_are_opened_where_the_adapter_has_layers_and_nowhere_else(bundle: Bundle) -> None:
    original = bundle.model_path.read_bytes()
    chosen = [port for port in bundle.manifest.ports if port.layer >= 28]
    random = np.random.default_rng(0)
    matrices = {
        port.node: (
            random.standard_normal((port.inputs, 3)).astype(np.float32),
            random.standard_normal((3, port.outputs)).astype(np.float32),
        )
        for port in chosen
    }
    changed = onnx.load_model_from_string(open_ports(original, matrices)).graph
    before = onnx.load_model_from_string(original).graph
    assert len(changed.node) == len(before.node) + 3 * len(chosen)
    assert [o.name for o in changed.output] == [o.name for o in before.output]
    inits = {tensor.name: tensor for tensor in changed.initializer}
    made = {name: node for node in changed.node for name in node.output}
    for port in chosen:
        base = next(node for node in changed.node if node.name == port.node)
        old = next(node for node in before.node if node.name == port.node)
        assert list(base.input) == list(old.input) and base.attribute == old.attribute
        add = made[old.output[0]]
        assert add.op_type == "Add" and add.input[0] == base.output[0]
        second = made[add.input[1]]
        first = made[second.input[0]]
        assert first.input[0] == base.input[0]
        a, b = (numpy_helper.to_array(inits[node.input[1]]) for node in (first, second))
        assert np.array_equal(a, matrices[port.node][0])
        assert np.array_equal(b, matrices[port.node][1])
    untouched = [node for node in changed.node if ".loraA" in node.name or node.name.endswith(".Add")]
    assert len(untouched) == len(chosen)


def test_without_matrices_the_model_is_the_same(bundle: Bundle) -> None:
    original = bundle.model_path.read_bytes()
    assert onnx.load_model_from_string(open_ports(original, {})) == onnx.load_model_from_string(original)


def test_what_does_not_fit_is_an_error(bundle: Bundle) -> None:
    original = bundle.model_path.read_bytes()
    one = np.zeros((1, 1), np.float32)
    with pytest.raises(KeyError, match="no such node"):
        open_ports(original, {"no such node": (one, one)})
    for bad in (original[:-7], original[: len(original) // 2], b"\x0b" * 5):
        with pytest.raises(ValueError):
            open_ports(bad, {})
