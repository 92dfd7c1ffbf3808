"""An adapter merged into 8-bit weights is the adapter, up to the rounding that the weights have anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from appliance.adapters.file import Adapter
from appliance.engine.cache import KVCache
from appliance.engine.merge import merge
from appliance.engine.session import Session
from appliance.model.bundle import Bundle, Stored
from appliance.model.quantize import dequantize_blocks


@pytest.fixture
def adapter(make_adapter: Callable[[int], Adapter]) -> Adapter:
    return make_adapter(3)


def whole(values: NDArray[np.uint8], scales: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return dequantize_blocks(values, scales, width)


def test_the_weights_are_those_of_base_plus_the_product_of_the_adapter(
    bundle: Bundle, adapter: Adapter
) -> None:
    merged = dict(merge(bundle, adapter))
    adapted = [port for port in bundle.manifest.ports if f"{port.name}.A" in adapter.tensors]
    assert adapted
    assert merged.keys() == {stored.name for port in adapted for stored in (port.values, port.scales)}
    for port in adapted:
        old = (bundle.read(port.values, np.uint8), bundle.read(port.scales, np.float32))
        new = (merged[port.values.name], merged[port.scales.name])
        assert [array.shape for array in old] == [array.shape for array in new]
        update = (adapter.tensors[f"{port.name}.A"] @ adapter.tensors[f"{port.name}.B"]).T
        before, after = whole(*old, port.inputs), whole(*new, port.inputs)
        step = np.repeat(new[1].reshape(port.outputs, -1), 32, axis=1)[:, : port.inputs]
        assert (np.abs(after - before - update) <= step * 0.501).all()
        # Steps are coarse beside an update, but what rounding adds must not lean against it.
        assert ((after - before) * update).sum() / (update**2).sum() == pytest.approx(1, abs=0.02)
        same = ~update.any(axis=1)
        assert (new[0][same] == old[0][same]).all() and (new[1][same] == old[1][same]).all()


def test_the_names_and_places_are_those_of_the_graph(bundle: Bundle) -> None:
    """Read with the library that the serving process does without."""
    graph = onnx.load(bundle.model_path, load_external_data=False).graph
    found = {}
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            assert where["location"] == "model.onnx.data"
            stored = Stored(tensor.name, int(where["offset"]), tuple(tensor.dims))
            found[tensor.name] = (stored, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    for port in bundle.manifest.ports:
        assert found[port.values.name] == (port.values, np.uint8)
        assert found[port.scales.name] == (port.scales, np.float32)
        assert port.values.shape[0] == port.outputs


def test_an_adapter_that_changes_nothing_equals_base_to_the_bit(bundle: Bundle, adapter: Adapter) -> None:
    nothing = {
        name: np.zeros_like(matrix) if name.endswith(".B") else matrix
        for name, matrix in adapter.tensors.items()
    }
    cache = KVCache(bundle.manifest, 1, 64)
    tokens = np.arange(100, 120, dtype=np.int64)
    start, count = np.zeros(1, np.int32), np.array([len(tokens)], np.int32)
    logits = [
        Session(bundle, one, cache, threads=2).step(tokens, 0, start, count, np.arange(20))
        for one in (None, replace(adapter, tensors=nothing), adapter)
    ]
    assert np.array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


def test_weights_that_are_cut_off_are_an_error(bundle: Bundle) -> None:
    port = bundle.manifest.ports[-1]
    beyond = replace(port.values, offset=(bundle.path / "model.onnx.data").stat().st_size - 5)
    with pytest.raises(ValueError, match="cut off"):
        bundle.read(beyond, np.uint8)
