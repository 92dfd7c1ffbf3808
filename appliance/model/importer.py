"""Import a model: from its source to a bundle under `models/`, all or nothing.

The console runs this as a program, whose progress is JSON lines:

    python -m appliance.model.importer SOURCE --home DIR [--name NAME] --out result.json
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from appliance.errors import BundleError, Conflict, ShammahError, StorageFull
from appliance.files import fsync_dir, in_words, storage_errors, write_atomic
from appliance.home import Home
from appliance.model.bundle import (
    MANIFEST,
    NAME,
    Bundle,
    Manifest,
    Port,
    compute_base_hash,
    hash_file,
    load_bundle,
    verify_bundle,
)
from appliance.model.seed import copy_seed, find_seed
from appliance.model.source import (
    DEFAULT,
    DEFAULT_NAME,
    LocalSource,
    Source,
    count_parameters,
    fetch,
    resolve,
)
from appliance.model.weights import gguf_parts

Progress = Callable[[str, float], None]
_TEMP = ".import-"
_LOOK_SECONDS = 0.1
_FETCHED = 0.6
"""Share of the whole that a download counts."""


def import_model(
    source: str, home: Home, name: str | None = None, progress: Progress = lambda stage, fraction: None
) -> Bundle:
    """Import `source` as the bundle `name`; does nothing when that is done already and intact.

    The bundle is built beside the others and appears under its name in one rename, so a kill at any
    moment leaves either no bundle or a whole one. Leftovers of a killed import go at the next one.

    Args:
        source: `default`, a checkpoint directory, a `.gguf` file, or a hub id `OWNER/NAME[@REVISION]`.
        home: where the bundle goes.
        name: the bundle's name; made from the source when not given.
        progress: called with (stage for a person, fraction of the whole from 0 to 1).

    Raises:
        BundleError: the source cannot be imported; the message says why and what to do.
        StorageFull: there is not enough disk.
    """
    if source == DEFAULT and name in (None, DEFAULT_NAME) and (seed := find_seed(DEFAULT_NAME)):
        return _plant(seed, home, progress)
    wanted = resolve(source)
    name = name or wanted.name
    if not NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no name for a bundle: letters, digits, dot, dash, underscore.")
    home.ensure()
    with _lock(home, progress) as lock:
        _clean(home)
        done = _already(home.models / name, wanted, progress)
        if done is not None:
            progress("Already imported", 1.0)
            return done
        if wanted.kind != "hub" and wanted.path is not None and not (home.models / name).exists():
            _check_disk(home, wanted.kind, wanted.path)  # before gigabytes are read to be hashed
        local, progress = _fetch(wanted, progress)
        done = _same_content(home.models / name, wanted, local)
        if done is not None:
            progress("Already imported", 1.0)
            return done
        _check_disk(home, local.kind, local.path)
        work = Path(tempfile.mkdtemp(prefix=_TEMP, dir=home.models))
        try:
            with storage_errors(f"the model {name}"):
                return _build(work, home.models / name, wanted, local, lock, progress)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _plant(seed: Bundle, home: Home, progress: Progress) -> Bundle:
    """Put the bundle that came with the image into the home. One that is there already and intact stays."""
    home.ensure()
    target = home.models / seed.name
    with _lock(home, progress):
        _clean(home)
        if target.exists() and (done := _whole(target)) is not None:
            progress("Already imported", 1.0)
            return done
        progress("Copying the model that came with the image", 0.1)
        work = Path(tempfile.mkdtemp(prefix=_TEMP, dir=home.models))
        try:
            copy_seed(seed, work / "bundle")
            _put_in_place(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    progress("Imported", 1.0)
    return load_bundle(target)


def _whole(path: Path) -> Bundle | None:
    try:
        return load_bundle(path, verify=True)
    except BundleError:
        return None


def _fetch(wanted: Source, progress: Progress) -> tuple[LocalSource, Progress]:
    """The source's files, and how the rest of the import tells its progress."""
    if wanted.kind != "hub":
        progress("Checking the source", 0.0)
        return fetch(wanted), progress
    progress("Asking the hub", 0.0)

    def downloaded(done: int, total: int) -> None:
        progress(f"Downloading: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", _FETCHED * done / total)

    def rest(stage: str, fraction: float) -> None:
        progress(stage, _FETCHED + (1 - _FETCHED) * fraction)

    return fetch(wanted, downloaded), rest


def _build(
    work: Path, target: Path, wanted: Source, local: LocalSource, lock: int, progress: Progress
) -> Bundle:
    (work / "job.json").write_text(
        json.dumps({"kind": local.kind, "path": str(local.path)}), encoding="utf-8"
    )
    _run_child(work, lock, progress)
    out = work / "bundle"
    for license_file in local.licenses:
        if not (out / license_file.name).exists():
            shutil.copy(license_file, out / license_file.name)
    progress("Sealing", 0.93)
    files = {}
    for file in sorted(out.iterdir()):
        file.chmod(0o600)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        files[file.name] = hash_file(file)
    facts: dict[str, Any] = json.loads((work / "facts.json").read_text(encoding="utf-8"))
    facts["eos_ids"] = tuple(facts["eos_ids"])
    facts["notes"] = tuple(facts["notes"])
    facts["ports"] = tuple(Port.from_json(port) for port in facts["ports"])
    manifest = Manifest(
        name=target.name,
        source=wanted.id,
        source_hash=local.hash,
        created=time.time(),
        base_hash=compute_base_hash(files),
        files=files,
        **facts,
    )
    write_atomic(out / MANIFEST, manifest.to_json())
    fsync_dir(out)
    _put_in_place(work, target)
    progress("Imported", 1.0)
    return load_bundle(target)


def _put_in_place(work: Path, target: Path) -> None:
    if target.exists():
        # Only a broken bundle of the same source gets here; it makes room, the good one follows.
        target.rename(work / "broken")
    (work / "bundle").rename(target)
    fsync_dir(target.parent)


def _run_child(work: Path, lock: int, progress: Progress) -> None:
    log = work / "log"
    failure: dict[str, Any] | None = None
    with (
        log.open("wb") as chatter,
        # The child shares the lock, so that none cleans up under it, and dies when its stdin closes.
        subprocess.Popen(
            [sys.executable, "-m", "appliance.model.build", str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=chatter,
            text=True,
            pass_fds=(lock,),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                message = json.loads(line)
                if "error" in message:
                    failure = message
                else:
                    progress(message["stage"], message["fraction"])
            child.wait()
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0:
        return
    if failure is not None:
        if failure["errno"] in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The disk filled up during the import; nothing was left behind.")
        raise BundleError(failure["error"])
    if child.returncode < 0:
        raise BundleError(
            f"The import was stopped by signal {-child.returncode}, most likely for want of memory; "
            "close other programs and import again."
        )
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
    raise BundleError(f"The import failed: {lines[-1]}")


def _already(path: Path, wanted: Source, progress: Progress) -> Bundle | None:
    """The bundle at `path` when it is this source's and intact; None when it must be built.

    A local source is compared by content later; a hub id is taken by its word, so that importing
    again needs no network (name a revision to get another).
    """
    if not path.exists():
        return None
    try:
        bundle = load_bundle(path)
    except BundleError:
        return None
    if bundle.manifest.source != wanted.id:
        raise BundleError(
            f"A model named {path.name} is here already, imported from {bundle.manifest.source}: "
            "choose another name."
        )
    if wanted.kind != "hub":
        return None
    return _intact(bundle)


def _same_content(path: Path, wanted: Source, local: LocalSource) -> Bundle | None:
    if not path.exists():
        return None
    try:
        bundle = load_bundle(path)
    except BundleError:
        return None
    if bundle.manifest.source_hash != local.hash and wanted.kind != "hub":
        raise BundleError(
            f"{wanted.id} has changed since it was imported as {path.name}: choose another name for the new "
            "state (adapters belong to the old one)."
        )
    return _intact(bundle)


def _intact(bundle: Bundle) -> Bundle | None:
    try:
        verify_bundle(bundle)
    except BundleError:
        return None
    return bundle


def _check_disk(home: Home, kind: Literal["gguf", "checkpoint"], path: Path) -> None:
    # fp32 graph, 8-bit bundle, and for a GGUF the fp32 checkpoint between them.
    # One of several parts is put together first, and a weight has two bytes there at the most.
    width = (
        4 + 1.2 + (4 if kind == "gguf" else 0) + (2 if kind == "gguf" and len(gguf_parts(path)) > 1 else 0)
    )
    need = int(count_parameters(kind, path) * width) + 64 * 2**20
    free = shutil.disk_usage(home.models).free
    if free < need:
        raise StorageFull(
            f"The import needs {need / 1e9:.1f} GB of disk for a while; {home.models} has "
            f"{free / 1e9:.1f} GB. Free some space and import again."
        )


@contextmanager
def _lock(home: Home, progress: Progress) -> Iterator[int]:
    """One import at a time: they take gigabytes, and only so leftovers are known to be dead."""
    fd = os.open(home.models / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(fd):
            progress("Waiting for another import", 0.0)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _clean(home: Home) -> None:
    for path in home.models.glob(_TEMP + "*"):
        shutil.rmtree(path, ignore_errors=True)


def clean_leftovers(home: Home, patience: float = 0.0) -> None:
    """Remove what killed imports left. While one is going on nothing is known to be dead, and all stays.

    Args:
        home: where models are.
        patience: seconds to wait for one that has been killed, and has gigabytes to give back first.
    """
    with _free(home, patience) as free:
        if free:
            _clean(home)


def delete_bundle(home: Home, name: str) -> None:
    """Remove the bundle `name`, whole or broken, in one step that a kill cannot halve.

    Raises:
        BundleError: there is none.
        Conflict: an import is going on, which may be of this very bundle.
    """
    path = home.models / name
    if not NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
        raise BundleError(f"There is no model {name!r} on this box.")
    with _free(home) as free:
        if not free:
            raise Conflict("A model is being imported: try again when that has ended.")
        path.rename(home.models / f"{_TEMP}gone-{time.time_ns()}")
        fsync_dir(home.models)
        _clean(home)


@contextmanager
def _free(home: Home, patience: float = 0.0) -> Iterator[bool]:
    """Keep imports out, if none is going on; says whether that is so."""
    fd = os.open(home.models / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + patience
    try:
        while not (mine := _try_lock(fd)) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        yield mine
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="importer", description="Import a model.")
    parser.add_argument("source", help="`default`, a directory, a .gguf file, or a hub id")
    parser.add_argument("--home", type=Path, required=True, help="where models are kept")
    parser.add_argument("--name", help="what to call it; made from the source by default")
    parser.add_argument("--out", type=Path, required=True, help="gets the bundle's name, as JSON")
    args = parser.parse_args(argv)

    def say(**event: object) -> None:
        print(json.dumps(event), flush=True)

    try:
        bundle = import_model(
            args.source,
            Home(args.home),
            args.name or None,
            lambda stage, fraction: say(event="step", stage=stage, fraction=fraction),
        )
        write_atomic(args.out, json.dumps({"name": bundle.name}))
    except (ShammahError, OSError) as error:
        say(event="error", message=in_words(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
