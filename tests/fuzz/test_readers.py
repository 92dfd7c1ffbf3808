"""Damaged and made-up files: each reader takes them or refuses them in its own words, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import JSON, altered, bounded, damaged, many, often
from ggufs import tensors_of, write_gguf
from hypothesis import strategies as st

from appliance.adapters.file import METADATA, AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.adapters.registry import Registry
from appliance.backup import archive, restore
from appliance.config import Config, parse_config
from appliance.errors import AdapterInvalid, BundleError, ConfigError, InvalidRequest, ShammahError
from appliance.home import Home
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.convert import check_tensors, read_gguf
from appliance.served import Served, read_served
from appliance.store import Store


def small_adapter(bundle: Bundle, path: Path) -> bytes:
    port = bundle.manifest.ports[-1]
    part = port.parts[0]
    tensors = {
        tensor_key(part.module, "A"): np.ones((2, port.inputs), np.float32),
        tensor_key(part.module, "B"): np.ones((part.out, 2), np.float32),
    }
    write_adapter(path, tensors, AdapterMeta(bundle.manifest.base_hash, 2, 2.0))
    read_adapter(path, bundle.manifest)
    return path.read_bytes()


@often
def test_adapters(bundle: Bundle, tmp_path: Path, examples: int) -> None:
    path = tmp_path / "a.safetensors"
    whole = small_adapter(bundle, path)
    size = 8 + int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8:size]), whole[size:]
    header["__metadata__"][METADATA] = json.loads(header["__metadata__"][METADATA])

    def packed(header: Any) -> bytes:
        if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
            meta = header["__metadata__"]
            if METADATA in meta:
                meta[METADATA] = json.dumps(meta[METADATA])
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read_adapter(path, bundle.manifest)
        except AdapterInvalid as error:
            assert error.message.startswith(path.name)

    many(examples, damaged(whole[: size + 400]) | altered(header).map(packed) | damaged(whole), check)


@often
def test_settings(examples: int) -> None:
    lines = [
        f"[{name}]\n" + "".join(f"{key} = 1\n" for key in type(section).model_fields)
        for name in Config.model_fields
        for section in [getattr(Config(), name)]
    ]
    values = st.sampled_from(
        ("1", "-1", "nan", "inf", "1e999", "9" * 5000, '"x"', "[]", "{a=1}", "true", "1979-05-27")
    )
    line = st.builds(
        lambda key, value: f"{key} = {value}\n",
        st.sampled_from(
            [key for name in Config.model_fields for key in type(getattr(Config(), name)).model_fields]
        ),
        values | st.text(max_size=20),
    )
    table = st.sampled_from(
        [f"[{name}]\n" for name in Config.model_fields] + ["[[server]]\n", "[x]\n", "[" * 3000]
    )
    text = st.lists(table | line | st.text(max_size=30), max_size=8).map("".join) | damaged(
        "".join(lines).encode()
    ).map(lambda data: data.decode(errors="surrogateescape"))

    def check(text: str) -> None:
        try:
            parse_config(text)
        except ConfigError as error:
            assert error.problems

    many(examples, text, check)


@often
def test_manifests_of_bundles(bundle: Bundle, tmp_path: Path, examples: int) -> None:
    place = tmp_path / "model"
    place.mkdir()
    whole = json.loads(bundle.manifest.to_json())
    whole["ports"] = whole["ports"][:2]

    def check(content: Any) -> None:
        (place / "manifest.json").write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )
        try:
            load_bundle(place)
        except BundleError as error:
            assert "manifest.json" in error.message or "is missing" in error.message

    many(examples, altered(whole) | JSON | damaged(json.dumps(whole).encode()), check)


@often
def test_imported_examples(tmp_path: Path, examples: int) -> None:
    store = Store.open(Home(tmp_path / "home").ensure())
    line = {
        "id": "ex_" + "0" * 24,
        "created": 1.0,
        "kind": "praise",
        "state": "pending",
        "query": "2+2?",
        "response": "4",
        "target": "4",
        "weight": 1.0,
        "messages": [{"role": "user", "content": "2+2?"}],
        "rating": "up",
        "masked": {"email": 1},
    }

    def check(content: Any) -> None:
        before = store.examples.count("pending")
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            store.transfer.add(text.splitlines())
        except InvalidRequest as error:
            assert error.message.startswith("Line ")
            assert store.examples.count("pending") == before  # all or none

    try:
        many(examples, altered(line) | JSON | damaged(json.dumps(line).encode() * 2), check)
        list(store.transfer.export())
    finally:
        store.close()


def backup(members: list[tuple[str, bytes, bytes]], manifest: Any) -> bytes:
    """An archive of (name, type, content), with any manifest."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        text = json.dumps(manifest).encode()
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@often
def test_backups(tmp_path: Path, examples: int) -> None:
    home = Home(tmp_path / "home").ensure()
    store = Store.open(home)
    home.config.write_text("[lora]\nenabled = false\n")
    made = archive.create(home, store, "m", "h")
    store.close()
    whole = made.path.read_bytes()
    plain = gzip.decompress(whole)
    manifest = {
        "format": 1,
        "created": 1.0,
        "version": "0",
        "model": "m",
        "base_hash": "h",
        "current": None,
        "files": {"store.db": {"size": 1, "sha256": "0" * 64}, "config.toml": {"size": 0, "sha256": ""}},
    }
    names = st.sampled_from(
        (
            "store.db",
            "config.toml",
            "../x",
            "/etc/x",
            "adapters/current",
            "adapters/../../x",
            "runs/a/b",
            "a" * 300,
        )
    )
    kinds = st.sampled_from(
        (
            tarfile.REGTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
        )
    )
    members = st.lists(st.tuples(names, kinds, st.binary(max_size=30)), max_size=4)
    contents = (
        damaged(whole)
        | damaged(plain).map(lambda data: gzip.compress(data, 1))
        | st.builds(backup, members, altered(manifest))
    )
    path, place = tmp_path / "b.tar.gz", tmp_path / "place"
    outside = sorted(tmp_path.iterdir())

    def check(content: bytes) -> None:
        path.write_bytes(content)
        (place).mkdir(exist_ok=True)
        for read in (archive.verify, archive.read_manifest, lambda path: archive.unpack(path, place)):
            try:
                read(path)
            except ShammahError as error:
                assert "backup" in error.message or "disk" in error.message
        for found in place.rglob("*"):
            assert not found.is_symlink()
        assert sorted({*tmp_path.iterdir()} - {path, place}) == outside

    many(examples, contents, check)


def test_a_backup_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """Its manifest lies about the size, and so does the archive."""
    path = tmp_path / "b.tar.gz"
    entry = tarfile.TarInfo("manifest.json")
    entry.size = 3_000_000_000
    path.write_bytes(gzip.compress(entry.tobuf() + b"\0" * 50_000_000, 1))
    with bounded(), pytest.raises(InvalidRequest):
        archive.verify(path)


@often
def test_notes_at_the_start(tmp_path: Path, bundle: Bundle, examples: int) -> None:
    """Whatever is in these files, the box starts."""
    home = Home(tmp_path / "home").ensure()
    served = {"good": "a", "base": "b", "trial": None, "adapters": {"x": "y"}, "fallback": None}
    served["fallback"] = {"model": "m", "instead": "a", "reason": "r", "at": 1.0}
    note = {"from": ".restore", "old": "before-restore_20260101T000000Z", "phase": "aside"}

    def check(pair: tuple[Any, Any]) -> None:
        for name, content in zip(("served.json", ".restore.json"), pair, strict=True):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (home.root / name).write_bytes(data)
        known = read_served(home)
        assert isinstance(known, Served)
        replace(known, trial="t")
        restore.finish_restore(home)
        assert not restore.pending(home)
        assert home.root.parent == tmp_path and list(tmp_path.iterdir()) == [home.root]

    ways = st.tuples(
        altered(served) | JSON | damaged(json.dumps(served).encode()),
        altered(note) | JSON | damaged(json.dumps(note).encode()),
    )
    many(examples, ways, check)


@often
def test_links_to_the_adapter_in_service(tmp_path: Path, bundle: Bundle, examples: int) -> None:
    home = Home(tmp_path / "home").ensure()
    registry = Registry(home, bundle.manifest)
    odd = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
    names = st.sampled_from(("current", "..", "/etc/passwd", "a.safetensors", "current.safetensors", "../a"))

    def check(target: str) -> None:
        home.current.unlink(missing_ok=True)
        home.current.symlink_to(target)
        adapter, notes = registry.load_at_start(lambda adapter: True)
        assert adapter is None and notes
        assert not home.current.is_symlink()

    many(examples, odd | names, check)


@often
def test_gguf_models(tmp_path: Path, examples: int) -> None:
    """Random tensors missing, or the file damaged: whole or refused, and what is missing is named."""
    path = tmp_path / "m.gguf"
    names = sorted(tensors_of())
    whole = write_gguf(path).read_bytes()
    check_tensors(read_gguf(path))

    def check(what: bytes | set[str]) -> None:
        if isinstance(what, bytes):
            path.write_bytes(what)
        else:
            write_gguf(path, without=what)
        try:
            check_tensors(read_gguf(path))
        except BundleError as error:
            assert path.name in error.message
            assert isinstance(what, bytes) or min(what) in error.message
        else:
            assert isinstance(what, bytes) or not what

    many(examples, st.sets(st.sampled_from(names)) | damaged(whole[:6000]) | damaged(whole), check)
