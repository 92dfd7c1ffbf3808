"""Adapter files: LoRA weights in safetensors under PEFT's names, and what makes one fit a bundle.

A file is read by value. A mapped one would take the process down with SIGBUS when somebody
truncates it, and it lies in a directory that people drop files into.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from appliance.errors import AdapterInvalid
from appliance.files import write_atomic
from appliance.model.bundle import Manifest, Port, PortPart

SUFFIX = ".safetensors"
METADATA = "shammah"
"""Key of the safetensors metadata that holds our JSON."""

MAX_RANK = 256
MAX_BYTES = 2 * 1024**3
MAX_HEADER_BYTES = 4_000_000
"""An entry for each of some thousand matrices. Parsed, a header takes many times its size in memory."""
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_DTYPES = ("F32", "F16", "BF16")
_TEXT_LIMIT = 200

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class AdapterMeta:
    """What a file says about itself.

    Attributes:
        base_hash: the bundle it was trained on, the only one it fits.
        rank: columns of every A matrix.
        alpha: the update is scaled by alpha / rank.
        targets: short names of the adapted layers (`q_proj`, ...).
        run: the run that made it.
        parent: the adapter it was trained from.
        created: Unix time.
    """

    base_hash: str
    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    run: str | None = None
    parent: str | None = None
    created: float | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """A validated adapter in the form the graph takes.

    Attributes:
        name: the file's stem.
        sha256: of the whole file; the adapter's identity, for a name can be used again.
        size: of the file in bytes.
        tensors: by graph input, C-contiguous. A port over several layers has their A matrices side
            by side and their B matrices, times alpha / rank, on the diagonal. Ports without an
            adapted layer are left out.
    """

    name: str
    sha256: str
    size: int
    meta: AdapterMeta
    tensors: dict[str, Matrix]


def tensor_key(module: str, side: str) -> str:
    """PEFT's name for matrix `side` ("A" or "B") of a linear layer."""
    return f"base_model.model.{module}.lora_{side}.weight"


def write_adapter(path: Path, tensors: Mapping[str, NDArray[Any]], meta: AdapterMeta) -> None:
    """Write an adapter in one atomic step.

    Args:
        path: final name; an existing file there is replaced, never changed.
        tensors: by PEFT's names; A is [rank, inputs], B is [outputs, rank].
        meta: written into the file.
    """
    payload = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomic(path, save(payload, metadata={METADATA: json.dumps(asdict(meta))}))


def read_adapter(path: Path, manifest: Manifest) -> Adapter:
    """Read and validate the adapter at `path` for the bundle of `manifest`.

    Raises:
        AdapterInvalid: it is damaged, incomplete, not finite, or made for something else; the
            message says which.
    """
    data = _read(path)
    entries, meta = _parse(path, data)
    if meta.base_hash != manifest.base_hash:
        _refuse(
            path,
            f"was trained on another base model ({meta.base_hash[:12]}…) than {manifest.name} "
            f"({manifest.base_hash[:12]}…)",
        )
    layers = _layers(path, entries)
    tensors: dict[str, Matrix] = {}
    for port in manifest.ports:
        parts = [(part, layers.pop(part.module, None)) for part in port.parts]
        if any(pair is not None for _, pair in parts):
            a, b = _assemble(path, port, parts, meta)
            tensors[f"{port.name}.A"], tensors[f"{port.name}.B"] = a, b
    if layers:
        _refuse(path, f"adapts {sorted(layers)[0]!r}, which {manifest.name} does not have")
    return Adapter(path.name.removesuffix(SUFFIX), hashlib.sha256(data).hexdigest(), len(data), meta, tensors)


def _read(path: Path) -> bytes:
    try:
        # Not blocking: a named pipe in the directory must not hang whoever opens it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, "is not a regular file")
            if status.st_size > MAX_BYTES:
                _refuse(path, f"has {status.st_size:,} bytes, more than any adapter")
            with os.fdopen(fd, "rb", closefd=False) as file:
                head = file.read(8)
                if (length := int.from_bytes(head, "little")) > MAX_HEADER_BYTES:
                    _refuse(path, f"is not a whole safetensors file: its header would have {length:,} bytes")
                return head + file.read()
        finally:
            os.close(fd)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}", error)


def _parse(path: Path, data: bytes) -> tuple[dict[str, dict[str, Any]], AdapterMeta]:
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]  # a compiled function
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        _refuse(path, f"is not a whole safetensors file (cut off or damaged?): {error}", error)
    text = (header.get("__metadata__") or {}).get(METADATA)
    if text is None:
        _refuse(
            path,
            f"does not say which base model it was trained on: its metadata lacks {METADATA!r}, a JSON "
            'object with "base_hash", "rank" and "alpha"',
        )
    try:
        return entries, _meta(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        _refuse(path, f"has metadata that cannot be used: {error}", error)


def _meta(raw: Any) -> AdapterMeta:
    if not isinstance(raw, dict):
        raise TypeError("it is not a JSON object")
    for key in ("base_hash", "rank", "alpha"):
        if raw.get(key) is None:
            raise ValueError(f'"{key}" is missing')
    rank, alpha, created = raw["rank"], raw["alpha"], raw.get("created")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ValueError(f'"rank" must be a whole number from 1 to {MAX_RANK}')
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise ValueError('"alpha" must be a positive number')
    if created is not None and (type(created) not in (int, float) or not 0 <= created < 1e12):
        raise ValueError('"created" must be a Unix time')
    targets = raw.get("targets") or []
    if not isinstance(targets, list):
        raise TypeError('"targets" must be a list')
    return AdapterMeta(
        base_hash=_text(raw["base_hash"], "base_hash"),
        rank=rank,
        alpha=float(alpha),
        targets=tuple(_text(target, "targets") for target in targets),
        run=None if raw.get("run") is None else _text(raw["run"], "run"),
        parent=None if raw.get("parent") is None else _text(raw["parent"], "parent"),
        created=None if created is None else float(created),
    )


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _TEXT_LIMIT:
        raise ValueError(f'"{key}" must be plain text')
    return value


def _layers(path: Path, entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Matrix]]:
    """The matrices by module and side, each side once and all finite."""
    found: dict[str, dict[str, Matrix]] = {}
    for name, entry in entries.items():
        match = _KEY.fullmatch(name)
        if match is None:
            _refuse(
                path,
                f"has a tensor {name!r}; expected names like {tensor_key('<layer>', 'A')!r} (PEFT's LoRA)",
            )
        found.setdefault(match["module"], {})[match["side"]] = _matrix(path, name, entry)
    if not found:
        _refuse(path, "has no tensors")
    for module, pair in found.items():
        if len(pair) != 2:
            _refuse(path, f"has only one of the two matrices A and B of {module!r}")
    return found


def _matrix(path: Path, name: str, entry: Mapping[str, Any]) -> Matrix:
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in _DTYPES:
        _refuse(path, f"stores {name!r} as {dtype}; F32, F16 and BF16 are read")
    if len(shape) != 2:
        _refuse(path, f"has {name!r} with {len(shape)} dimensions instead of 2")
    data = entry["data"]
    if dtype == "F32":
        values = np.frombuffer(data, np.float32)
    elif dtype == "F16":
        values = np.frombuffer(data, np.float16).astype(np.float32)
    else:  # bfloat16 is the upper half of a float32
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(values).all():
        _refuse(path, f"has values in {name!r} that are not finite (NaN or infinity)")
    return values.reshape(shape)


def _assemble(
    path: Path, port: Port, parts: list[tuple[PortPart, dict[str, Matrix] | None]], meta: AdapterMeta
) -> tuple[Matrix, Matrix]:
    present = [pair for _, pair in parts if pair is not None]
    a = np.zeros((port.inputs, meta.rank * len(present)), np.float32)
    b = np.zeros((meta.rank * len(present), port.outputs), np.float32)
    row = column = 0
    for part, pair in parts:
        if pair is not None:
            _check_shape(path, part.module, "A", pair["A"], (meta.rank, port.inputs))
            _check_shape(path, part.module, "B", pair["B"], (part.out, meta.rank))
            a[:, row : row + meta.rank] = pair["A"].T
            with np.errstate(over="ignore"):  # checked right below
                b[row : row + meta.rank, column : column + part.out] = pair["B"].T * np.float32(
                    meta.alpha / meta.rank
                )
            row += meta.rank
        column += part.out
    if not np.isfinite(b).all():
        _refuse(path, f"has values at {port.name!r} that overflow when scaled by alpha / rank")
    return a, b


def _check_shape(path: Path, module: str, side: str, matrix: Matrix, expected: tuple[int, int]) -> None:
    if matrix.shape != expected:
        rank = expected[0] if side == "A" else expected[1]
        _refuse(
            path,
            f"has {tensor_key(module, side)!r} with shape {list(matrix.shape)} instead of {list(expected)} "
            f"(rank {rank})",
        )


def _refuse(path: Path, what: str, cause: Exception | None = None) -> NoReturn:
    raise AdapterInvalid(f"{path.name} {what}.") from cause
