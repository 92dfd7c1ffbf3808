"""A model bundle on disk: what the manifest says, and whether the files still are what it says.

Serving reads bundles and nothing else of a model, so this module needs neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import BundleError
from appliance.home import Home

MANIFEST = "manifest.json"
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CHAT_TEMPLATE = "chat_template.jinja"
TOOL_TEMPLATE = "tool_template.jinja"  # of the few models that have one of its own for tools
FORMAT = 3
Scalar = TypeVar("Scalar", bound=np.generic)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class PortPart:
    """One linear layer behind a port: its module path in the checkpoint and its output width."""

    module: str
    out: int


@dataclass(frozen=True)
class Stored:
    """An initializer of the graph: its name there, and where it lies in the file of weights."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """Where an adapter can enter the model: `y = x (W + A B)` instead of `y = x W`.

    An adapter's matrices are called `<name>.A` [inputs, r] and `<name>.B` [r, sum of the parts' widths]. A
    port over a fused layer has several parts.

    Attributes:
        values: W in 8 bits, as `quantize_blocks` gives it.
        scales: of its blocks.
    """

    name: str
    layer: int
    inputs: int
    parts: tuple[PortPart, ...]
    values: Stored
    scales: Stored

    @property
    def outputs(self) -> int:
        return sum(part.out for part in self.parts)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Port:
        """What `asdict` made of a port."""
        stored = {
            key: Stored(**{**data[key], "shape": tuple(data[key]["shape"])}) for key in ("values", "scales")
        }
        return cls(**{**data, **stored, "parts": tuple(PortPart(**part) for part in data["parts"])})


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, written last by the import.

    Attributes:
        source: what was imported (`default`, a path, a hub id).
        source_hash: identity of the source's content (hash of its files, or the hub's commit).
        base_hash: identity of the graph and weights; an adapter belongs to exactly one.
        eos_ids: tokens that end an answer.
        chat_template: whether the model can chat.
        sampling: how it wants to be sampled, by its own files; empty when they do not say.
        notes: what it cannot do, a sentence each.
    """

    name: str
    family: str
    source: str
    source_hash: str
    created: float
    context_length: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    eos_ids: tuple[int, ...]
    chat_template: bool
    quantization: str
    base_hash: str
    files: Mapping[str, FileEntry]
    ports: tuple[Port, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Bundle:
    """An imported model."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    def read(self, stored: Stored, dtype: type[Scalar] | np.dtype[Scalar]) -> NDArray[Scalar]:
        """An initializer, by value.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is cut off.
        """
        count = math.prod(stored.shape)
        array = np.fromfile(self.path / WEIGHTS, dtype, count, offset=stored.offset)
        if len(array) != count:
            raise ValueError(f"{stored.name} is cut off")
        return array.reshape(stored.shape)


def compute_base_hash(files: Mapping[str, FileEntry]) -> str:
    """Identity of graph and weights, from the hashes of their two files."""
    both = f"{files[MODEL].sha256}\n{files[WEIGHTS].sha256}\n"
    return hashlib.sha256(both.encode()).hexdigest()


def hash_file(path: Path) -> FileEntry:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.tell())


def load_bundle(path: Path, verify: bool = False) -> Bundle:
    """Read the bundle at `path`.

    Every file must be there with its recorded size; `verify` also compares all hashes.

    Raises:
        BundleError: saying which file is at fault and what to do.
    """
    manifest_path = path / MANIFEST
    try:
        manifest = _parse(json.loads(manifest_path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"There is no model bundle at {path}. Import one with `shammah model import`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{manifest_path} cannot be read ({error}). Import the model again with `shammah model import`."
        ) from error
    bundle = Bundle(path, manifest)
    for name, entry in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise _broken(bundle, name, "is missing") from error
        if size != entry.size:
            raise _broken(bundle, name, f"has {size} bytes instead of {entry.size}")
    if verify:
        verify_bundle(bundle)
    return bundle


def verify_bundle(bundle: Bundle, progress: Callable[[float], None] | None = None) -> None:
    """Compare every file with its recorded hash.

    Raises:
        BundleError: naming the file that differs.
    """
    total = sum(entry.size for entry in bundle.manifest.files.values()) or 1
    done = 0
    for name, entry in bundle.manifest.files.items():
        try:
            found = hash_file(bundle.path / name)
        except OSError as error:
            raise _broken(bundle, name, f"cannot be read ({error.strerror})") from error
        if found != entry:
            raise _broken(bundle, name, "is damaged (its hash differs)")
        done += entry.size
        if progress is not None:
            progress(done / total)


def list_bundles(home: Home) -> list[Bundle]:
    """The usable bundles of a home, by name. Broken ones and half-made imports are left out."""
    found = []
    for path in sorted(home.models.glob("*/" + MANIFEST)):
        if NAME.fullmatch(path.parent.name):
            try:
                found.append(load_bundle(path.parent))
            except BundleError:
                continue
    return found


def _broken(bundle: Bundle, name: str, what: str) -> BundleError:
    return BundleError(
        f"{bundle.path / name} {what}. Import the model again with `shammah model import`.",
    )


def _parse(data: Any) -> Manifest:
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
    for name in data["files"]:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"bad file name {name!r}")
    files = {str(name): FileEntry(**entry) for name, entry in data["files"].items()}
    manifest = Manifest(
        **{
            **data,
            "files": files,
            "eos_ids": tuple(data["eos_ids"]),
            "ports": tuple(Port.from_json(port) for port in data["ports"]),
            "sampling": {str(key): float(value) for key, value in data.get("sampling", {}).items()},
            "notes": tuple(str(note) for note in data.get("notes", ())),
        }
    )
    if not NAME.fullmatch(manifest.name):
        raise ValueError(f"bad name {manifest.name!r}")
    if manifest.base_hash != compute_base_hash(files):
        raise ValueError("its base_hash does not fit its files")
    return manifest
