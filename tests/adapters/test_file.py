"""What is read from an adapter file, and what is refused with which words."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from appliance.adapters.file import Adapter, read_adapter, tensor_key, write_adapter
from appliance.errors import AdapterInvalid
from appliance.model.bundle import Manifest

from .conftest import DOWN, META, OUT, K, Q, V, tensors


def test_matrices_are_laid_out_as_the_graph_takes_them(tmp_path: Path, manifest: Manifest) -> None:
    given_tensors = tensors()
    write_adapter(tmp_path / "a.safetensors", given_tensors, META)
    adapter = read_adapter(tmp_path / "a.safetensors", manifest)
    assert adapter.name == "a"
    assert adapter.meta == META
    assert adapter.size == (tmp_path / "a.safetensors").stat().st_size
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    fused = (x @ adapter.tensors["lora.0.qkv_proj.A"]) @ adapter.tensors["lora.0.qkv_proj.B"]
    apart = [
        (x @ given_tensors[tensor_key(m, "A")].T) @ given_tensors[tensor_key(m, "B")].T * 2.0
        for m in (Q, K, V)
    ]
    np.testing.assert_allclose(fused, np.concatenate(apart, axis=1), rtol=1e-5, atol=1e-5)
    for tensor in adapter.tensors.values():
        assert tensor.flags.c_contiguous
        assert tensor.dtype == np.float32


def test_layers_without_an_adapter_are_left_out(tmp_path: Path, manifest: Manifest) -> None:
    write_adapter(tmp_path / "a.safetensors", tensors(K, DOWN), META)
    adapter = read_adapter(tmp_path / "a.safetensors", manifest)
    assert set(adapter.tensors) == {
        "lora.0.qkv_proj.A",
        "lora.0.qkv_proj.B",
        "lora.1.down_proj.A",
        "lora.1.down_proj.B",
    }
    assert adapter.tensors["lora.0.qkv_proj.A"].shape == (8, 2)
    assert not adapter.tensors["lora.0.qkv_proj.B"][:, :8].any()
    assert adapter.tensors["lora.0.qkv_proj.B"][:, 8:12].all()
    assert not adapter.tensors["lora.0.qkv_proj.B"][:, 12:].any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(tmp_path: Path, manifest: Manifest, dtype: type) -> None:
    half = {name: tensor.astype(dtype) for name, tensor in tensors(OUT).items()}
    write_adapter(tmp_path / "a.safetensors", half, META)
    adapter = read_adapter(tmp_path / "a.safetensors", manifest)
    expected = half[tensor_key(OUT, "A")].astype(np.float32).T
    np.testing.assert_array_equal(adapter.tensors["lora.0.o_proj.A"], expected)


def _with(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {**tensors(OUT), **{tensor_key(OUT, side): tensor for side, tensor in changes.items()}}


def _spoilt(value: float) -> np.ndarray:
    tensor = tensors(OUT)[tensor_key(OUT, "A")]
    tensor[1, 3] = value
    return tensor


BAD = {
    "nan": (_with(A=_spoilt(np.nan)), "not finite"),
    "infinite": (_with(A=_spoilt(np.inf)), "not finite"),
    "overflow": (_with(B=np.full((8, 2), 3e38, np.float32)), "overflow"),
    "wrong inputs": (_with(A=np.zeros((2, 9), np.float32)), r"shape \[2, 9\] instead of \[2, 8\]"),
    "wrong outputs": (_with(B=np.zeros((7, 2), np.float32)), r"shape \[7, 2\] instead of \[8, 2\]"),
    "wrong rank": (_with(A=np.zeros((3, 8), np.float32)), r"shape \[3, 8\].*rank 2"),
    "ranks differ": (_with(B=np.zeros((8, 3), np.float32)), "rank 2"),
    "one dimension": (_with(A=np.zeros(16, np.float32)), "1 dimensions"),
    "integers": (_with(A=np.zeros((2, 8), np.int32)), "stores .* as I32"),
    "double": (_with(A=np.zeros((2, 8), np.float64)), "stores .* as F64"),
    "no partner": ({tensor_key(OUT, "A"): np.zeros((2, 8), np.float32)}, "only one of the two"),
    "unknown layer": (
        {tensor_key("model.layers.9.mlp.up_proj", s): np.zeros((2, 2), np.float32) for s in "AB"},
        "which tiny does not have",
    ),
    "another kind of name": (
        {"lm_head.weight": np.zeros((2, 2), np.float32)},
        "has a tensor 'lm_head.weight'",
    ),
    "nothing": ({}, "has no tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors_are_refused(tmp_path: Path, manifest: Manifest, case: str) -> None:
    bad, message = BAD[case]
    write_adapter(tmp_path / "a.safetensors", bad, META)
    with pytest.raises(AdapterInvalid, match=message) as caught:
        read_adapter(tmp_path / "a.safetensors", manifest)
    assert caught.value.message.startswith("a.safetensors ")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    write_adapter(tmp_path / "a.safetensors", tensors(), replace(META, base_hash="c" * 64))
    with pytest.raises(AdapterInvalid, match="was trained on another base model"):
        read_adapter(tmp_path / "a.safetensors", manifest)


def test_a_foreign_file_without_our_metadata_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterInvalid, match="does not say which base model"):
        read_adapter(tmp_path / "a.safetensors", manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": 2.5},
        {"rank": True},
        {"rank": 10**9},
        {"rank": None},
        {"alpha": 0},
        {"alpha": "x"},
        {"alpha": None},
        {"base_hash": 7},
        {"base_hash": None},
        {"parent": "a\nb"},
        {"run": "x" * 1000},
        {"targets": "q_proj"},
        {"created": -1},
    ],
)
def test_bad_metadata_is_refused(tmp_path: Path, manifest: Manifest, change: dict[str, object]) -> None:
    text = json.dumps({**asdict(META), **change})
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"shammah": text})
    with pytest.raises(AdapterInvalid, match="metadata that cannot be used"):
        read_adapter(tmp_path / "a.safetensors", manifest)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "NaN", "[" * 100_000])
def test_metadata_that_is_no_object_is_refused(tmp_path: Path, manifest: Manifest, text: str) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"shammah": text})
    with pytest.raises(AdapterInvalid, match="metadata that cannot be used"):
        read_adapter(tmp_path / "a.safetensors", manifest)


def test_what_is_no_file_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "dir.safetensors").mkdir()
    for name in ("pipe", "dir"):
        with pytest.raises(AdapterInvalid, match="not a regular file"):
            read_adapter(tmp_path / f"{name}.safetensors", manifest)
    with pytest.raises(AdapterInvalid, match="cannot be read: No such file"):
        read_adapter(tmp_path / "absent.safetensors", manifest)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_harmless(
    tmp_path: Path, manifest: Manifest, data: st.DataObject
) -> None:
    """Truncation is always noticed; a flipped bit gives a clear error or a finite adapter."""
    path = tmp_path / "a.safetensors"
    write_adapter(path, tensors(), META)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(AdapterInvalid):
            read_adapter(path, manifest)
        return
    spoilt = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) * 8 - 1), min_size=1, max_size=20)):
        spoilt[at // 8] ^= 1 << at % 8
    path.write_bytes(spoilt)
    try:
        adapter = read_adapter(path, manifest)
    except AdapterInvalid:
        return
    assert isinstance(adapter, Adapter)
    assert all(np.isfinite(tensor).all() for tensor in adapter.tensors.values())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=400))
def test_junk_is_refused(tmp_path: Path, manifest: Manifest, junk: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(junk)
    with pytest.raises(AdapterInvalid):
        read_adapter(path, manifest)
