"""The files under `web/`: where they are, and how static ones are served.

Static files live in memory and are named by a digest of them all, so that a browser may keep them
for ever, relative imports between scripts stay true, and no path of a request reaches the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_COMPRESSIBLE = ("text/", "application/json", "image/svg+xml")
_TYPES = {".js": "text/javascript", ".webmanifest": "application/manifest+json"}


@dataclass(frozen=True)
class Asset:
    """One static file, ready to send."""

    body: bytes
    gzipped: bytes | None
    content_type: str


@dataclass(frozen=True)
class Assets:
    """All static files, by their path under `web/static/`."""

    version: str
    files: dict[str, Asset]

    def url(self, path: str) -> str:
        """The address of a static file.

        Raises:
            KeyError: there is no such file (a template names a wrong one).
        """
        if path not in self.files:
            raise KeyError(f"web/static/{path} does not exist")
        return f"/static/{self.version}/{path}"


def web_root() -> Path:
    """The `web` directory: beside the package in a checkout, under the data prefix when installed."""
    checkout = Path(__file__).parents[2] / "web"
    installed = Path(sysconfig.get_path("data")) / "share" / "shammah" / "web"
    for root in (checkout, installed):
        if (root / "templates").is_dir():
            return root
    raise FileNotFoundError(f"The console's templates are neither in {checkout} nor in {installed}.")


@cache
def load_assets() -> Assets:
    """Read `web/static/` once."""
    root = web_root() / "static"
    files: dict[str, Asset] = {}
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        body = path.read_bytes()
        digest.update(f"{name}\0{len(body)}\0".encode() + body)
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "text/plain"
        small = gzip.compress(body, mtime=0) if kind.startswith(_COMPRESSIBLE) else None
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        files[name] = Asset(body, small, kind + charset)
    return Assets(digest.hexdigest()[:12], files)
