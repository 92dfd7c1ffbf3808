"""Which files hold a model's weights, and whether they are all here and whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from appliance.errors import BundleError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_MOST_PARTS = 1000
_HEADER = 100_000_000  # bytes, as the format's own reader has it
_LARGEST_JSON = 32 * 2**20
_LARGEST_TOKENIZER = 256 * 2**20


def gguf_parts(path: Path) -> list[Path]:
    """The files of a GGUF model, whichever of its parts `path` is.

    Raises:
        BundleError: a part is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MOST_PARTS:
        raise BundleError(f"{path.name} is no part of a model: its numbers do not fit.")
    names = (f"{match['stem']}-{n:05}-of-{match['count']}{match['suffix']}" for n in range(1, count + 1))
    parts = [path.parent / name for name in names]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise BundleError(
            f"{path.name} is one of {count} parts of a model: put {some(missing)} beside it and import again."
        )
    return parts


def model_stem(path: Path) -> str:
    """The name of a GGUF model without the number of its part."""
    match = _PART.fullmatch(path.name)
    return match["stem"] if match else path.stem


def check_shards(path: Path) -> None:
    """See that the safetensors files of a checkpoint are here, whole, and hold what its index says.

    Raises:
        BundleError: naming the file, or the tensor, that is missing.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists():
        _tensors(single)
        return
    if not index.exists():
        found = sorted(file.name for file in path.glob("*.safetensors"))
        raise BundleError(
            f"{path} has neither model.safetensors nor model.safetensors.index.json, which says what "
            f"{some(found)} hold."
        )
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not all(isinstance(name, str) for name in places.values())
        or not places
    ):
        raise BundleError(f"{index} does not say which file holds which weights.")
    held: dict[str, set[str]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise BundleError(f"{index} names a file elsewhere: {name!r}.")
        if not (path / name).is_file():
            raise BundleError(f"{path} is incomplete: {name} is missing.")
        held[name] = _tensors(path / name)
    absent = sorted(tensor for tensor, name in places.items() if tensor not in held[name])
    if absent:
        raise BundleError(f"{path} is incomplete: {places[absent[0]]} lacks {some(absent)}.")


def check_sizes(path: Path) -> None:
    """See that the files that are read whole are of a sane size.

    Raises:
        BundleError: naming one that is not.
    """
    for file in sorted({*path.glob("*.json"), *path.glob("*.jinja"), *path.glob("tokenizer.model")}):
        limit = _LARGEST_TOKENIZER if file.name.startswith("tokenizer.") else _LARGEST_JSON
        if file.stat().st_size > limit:
            raise BundleError(f"{file} is too large: {limit // 2**20} MB are enough for any model.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        BundleError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} is no JSON object.")
    return data


def _tensors(path: Path) -> set[str]:
    """The names of what a safetensors file holds, whose size must be what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= min(_HEADER, size - 8):
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if size != 8 + length + end:
                raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
            return set(header)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise BundleError(f"{path} is damaged or cut off: {error}.") from error


def some(names: list[str]) -> str:
    """The first of some names, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
