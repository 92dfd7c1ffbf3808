"""A small model's manifest and adapters that fit it: file checks need no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.adapters.file import AdapterMeta, tensor_key, write_adapter
from appliance.adapters.registry import Registry
from appliance.home import Home
from appliance.model.bundle import FileEntry, Manifest, Port, PortPart, Stored

Q, K, V, OUT, DOWN = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.1.mlp.down_proj",
)
WIDTHS = {Q: (8, 8), K: (8, 4), V: (8, 4), OUT: (8, 8), DOWN: (12, 8)}  # inputs, outputs
NOWHERE = Stored("", 0, ())
META = AdapterMeta(base_hash="b" * 64, rank=2, alpha=4.0, targets=("q_proj",), run="run_1", created=1.0)


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return Manifest(
        name="tiny",
        family="llama",
        source="test",
        source_hash="",
        created=0.0,
        context_length=64,
        vocab_size=16,
        layers=2,
        kv_heads=1,
        head_dim=4,
        hidden=8,
        eos_ids=(2,),
        chat_template=True,
        quantization="int8-b32",
        base_hash=META.base_hash,
        files={"model.onnx": FileEntry("", 0)},
        ports=(
            Port("lora.0.qkv_proj", 0, 8, (PortPart(Q, 8), PortPart(K, 4), PortPart(V, 4)), NOWHERE, NOWHERE),
            Port("lora.0.o_proj", 0, 8, (PortPart(OUT, 8),), NOWHERE, NOWHERE),
            Port("lora.1.down_proj", 1, 12, (PortPart(DOWN, 8),), NOWHERE, NOWHERE),
        ),
    )


def tensors(*modules: str, rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    out = {}
    for module in modules or WIDTHS:
        inputs, outputs = WIDTHS[module]
        out[tensor_key(module, "A")] = random.standard_normal((rank, inputs)).astype(np.float32)
        out[tensor_key(module, "B")] = random.standard_normal((outputs, rank)).astype(np.float32)
    return out


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def registry(home: Home, manifest: Manifest) -> Registry:
    return Registry(home, manifest)


@pytest.fixture
def drop(home: Home) -> Callable[..., Path]:
    """Put a good adapter into the directory."""

    def put(name: str, seed: int = 0) -> Path:
        path = home.adapters / f"{name}.safetensors"
        write_adapter(path, tensors(seed=seed), META)
        return path

    return put
