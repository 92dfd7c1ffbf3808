"""Archives and other files from elsewhere that claim more than they are: refused before they cost anything.

Each goes through the console's upload and the command alike, at a real daemon and a real command.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, install_bundle
from faults.trial import OWN, serving

from appliance.adapters.file import read_adapter
from appliance.backup import archive
from appliance.errors import AdapterInvalid, InvalidRequest
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store

TERABYTE = 10**12
REFUSED = re.compile("This is not a backup of Shammah|This backup is damaged|The manifest of this backup")
SECONDS = 20.0
"""A read to the end of any of these takes minutes to hours."""


def manifest(**files: int) -> bytes:
    """One that tells of files of these sizes."""
    told = {
        name.replace("__", "/").replace("_", "."): {"size": size, "sha256": "0" * 64}
        for name, size in files.items()
    }
    return json.dumps(
        {
            "format": 1, "created": 1.0, "version": "0", "model": "m", "base_hash": "h", "current": None,
            "files": told,
        }
    ).encode()  # fmt: skip


def tar(*entries: tuple[tarfile.TarInfo, bytes], rest: bytes = b"", form: int = tarfile.GNU_FORMAT) -> bytes:
    """Members as they are given, whatever they claim."""
    out = io.BytesIO()
    for entry, content in entries:
        out.write(entry.tobuf(form) + content + bytes(-len(content) % 512))
    return gzip.compress(out.getvalue() + rest + bytes(1024), 1)


def entry(
    name: str, size: int, kind: bytes = tarfile.REGTYPE, records: dict[str, str] | None = None
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.pax_headers = size, kind, records or {}
    return made


def first(**files: int) -> tuple[tarfile.TarInfo, bytes]:
    text = manifest(**files)
    return entry("manifest.json", len(text)), text


def gnu_sparse() -> bytes:
    """The member of the report: nothing in it, a terabyte of hole."""
    block = bytearray(entry("store.db", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"00000000000\0", b"00000000000\0"
    block[483:495] = b"\x80" + (TERABYTE).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar(first(store_db=TERABYTE), rest=bytes(block))


def pax_sparse() -> bytes:
    records = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "store.db",
               "GNU.sparse.realsize": str(TERABYTE), "GNU.sparse.map": "0,0"}  # fmt: skip
    return tar(
        first(store_db=TERABYTE), (entry("store.db", 0, records=records), b""), form=tarfile.PAX_FORMAT
    )


def pax_map_without_end() -> bytes:
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "store.db",
               "GNU.sparse.realsize": "1"}  # fmt: skip
    body = b"99999999\n" + b"1\n" * 20_000_000
    return tar(
        first(store_db=1), (entry("store.db", len(body), records=records), body), form=tarfile.PAX_FORMAT
    )


def pax_size() -> bytes:
    """A record that overrides the size in the header."""
    return tar(
        first(store_db=TERABYTE),
        (entry("store.db", 0, records={"size": str(TERABYTE)}), b""),
        form=tarfile.PAX_FORMAT,
    )


def zeros() -> bytes:
    """A plain member of a terabyte, of which half a gigabyte is there: some hundred kilobytes packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    info, text = first(store_db=TERABYTE)
    parts = [packer.compress(info.tobuf() + text + bytes(-len(text) % 512))]
    parts.append(packer.compress(entry("store.db", TERABYTE).tobuf(tarfile.GNU_FORMAT)))
    nothing = bytes(1 << 20)
    parts += [packer.compress(nothing) for _ in range(512)]
    return b"".join(parts) + packer.flush()


def header_of_a_gigabyte() -> bytes:
    return tar(first(store_db=1), (entry("x", 10**9, tarfile.XHDTYPE), b""))


def headers_without_end() -> bytes:
    name = entry("x", 600, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) + b"a" * 600 + bytes(424)
    return tar(first(store_db=1), rest=name * 100_000)


def members_without_end() -> bytes:
    one = entry("runs/a/b", 0).tobuf()
    return tar(first(store_db=1), rest=one * 500_000)


def name_of_the_packer() -> bytes:
    """The header of gzip has a file's name, which ends at a zero that does not come."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 50_000_000


def nested_manifest() -> bytes:
    text = b"[" * 5_000_000
    return tar((entry("manifest.json", len(text)), text))


def manifest_of_millions() -> bytes:
    text = b'{"format": 1, "files": {' + b",".join(b'"runs/a/%d": 0' % n for n in range(2_000_000)) + b"}}"
    return tar((entry("manifest.json", len(text)), text))


def link() -> bytes:
    made = entry("store.db", 0, tarfile.SYMTYPE)
    made.linkname = "/dev/zero"
    return tar(first(store_db=0), (made, b""))


def device() -> bytes:
    return tar(first(store_db=0), (entry("store.db", 0, tarfile.CHRTYPE), b""))


def negative() -> bytes:
    block = bytearray(entry("store.db", 0).tobuf())
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar(first(store_db=1), rest=bytes(block))


def huge_settings() -> bytes:
    """Small on the wire, read into memory whole."""
    text = b"#" * 100_000_000
    sums = {"config.toml": text, "store.db": b"x"}
    told = {
        name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in sums.items()
    }
    data = json.loads(manifest())
    data["files"] = told
    head = json.dumps(data).encode()
    return tar(
        (entry("manifest.json", len(head)), head),
        (entry("store.db", 1), b"x"),
        (entry("config.toml", len(text)), text),
    )


BOMBS: list[Callable[[], bytes]] = [
    gnu_sparse, pax_sparse, pax_map_without_end, pax_size, zeros, header_of_a_gigabyte, headers_without_end,
    members_without_end, name_of_the_packer, nested_manifest, manifest_of_millions, link, device, negative,
    huge_settings,
]  # fmt: skip


@pytest.fixture(scope="module")
def box(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("archives") / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(serving(small))
    running = Daemon(home).start()
    yield running
    running.kill()


def memory_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_at_both_doors(box: Daemon, tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(bomb())
    before = memory_mb(box.pid)
    began = time.monotonic()
    with path.open("rb") as file:
        answer = box.post("/backup/bring", files={"file": ("b.tar.gz", file)}, headers=OWN)
    assert time.monotonic() - began < SECONDS
    assert answer.status_code == 303
    said = base64.urlsafe_b64decode(next(iter(answer.cookies.values()))).decode()
    assert REFUSED.search(said), said
    assert archive.backups(box.home) == []
    assert memory_mb(box.pid) - before < 400
    elsewhere = Home(tmp_path / "other").ensure()
    done = restored(elsewhere, path)
    assert done.returncode == 1
    assert REFUSED.search(done.stderr), done.stderr
    assert not (elsewhere.root / ".restore").exists()


def restored(home: Home, path: Path) -> subprocess.CompletedProcess[str]:
    """By the command, within a gigabyte of memory and the time a person waits."""
    command = [sys.executable, "-m", "appliance.cli", "restore", str(path), "--yes"]
    return subprocess.run(
        ["bash", "-c", 'ulimit -v 3000000; exec "$@"', "-", *command],
        env={**os.environ, "SHAMMAH_HOME": str(home.root)},
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
        check=False,
    )


def test_what_the_box_writes_itself_is_read(tmp_path: Path) -> None:
    """Long names, an empty file, one that packs very well, and by whatever tar it was packed again."""
    home = Home(tmp_path / "home").ensure()
    home.config.write_text("")
    name = "adapter_" + "x" * 180
    (home.adapters / f"{name}.safetensors").write_bytes(b"\0" * 30_000_000)
    store = Store.open(home)
    made = archive.create(home, store, "m", "h")
    store.close()
    assert made.manifest == archive.verify(made.path)
    assert f"adapters/{name}.safetensors" in archive.verify(made.path).files
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    archive.unpack(made.path, unpacked)
    for form in ("pax", "ustar", "posix"):
        again = tmp_path / f"{form}.tar.gz"
        names = ["manifest.json", *archive.verify(made.path).files]
        with tarfile.open(made.path) as whole:
            whole.extract("manifest.json", unpacked, filter="data")
        if form == "ustar":
            continue  # cannot have such a name
        subprocess.run(
            ["tar", f"--format={form}", "-czf", str(again), "-C", str(unpacked), *names],
            check=True,
            timeout=60,
        )
        assert archive.verify(again).files.keys() == archive.verify(made.path).files.keys()


def test_an_archive_of_more_than_the_disk_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Honest about its size, and dense enough to be true."""
    home = Home(tmp_path / "home").ensure()
    path = tmp_path / "b.tar.gz"
    with path.open("wb") as file:
        file.write(tar(first(store_db=50 * TERABYTE)))
        file.truncate(TERABYTE)  # a hole, too: as if it had come over a network
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="this disk is smaller"):
        archive.adopt(home, path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("length", [2**63, 99_000_000])
def test_a_header_of_an_adapter_that_is_too_long(tmp_path: Path, small: Bundle, length: int) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"a": [' + b"1," * 1000)
        file.truncate(1_900_000_000)
    began = time.monotonic()
    with pytest.raises(AdapterInvalid, match="its header would have"):
        read_adapter(path, small.manifest)
    assert time.monotonic() - began < 2
