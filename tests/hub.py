"""A hub of models on this machine: as much of its HTTP interface as a download takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


@contextmanager
def serve_hub(files: Path) -> Iterator[str]:
    """Every model has the files of this directory; yields the hub's address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/"):
                listed = [{"type": "file", **_facts(file)} for file in sorted(files.iterdir())]
                model = {
                    "id": "somebody/tiny",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": x["path"]} for x in listed],
                }
                self._answer(json.dumps(listed if "/tree/" in path else model).encode())
            else:
                self._file(path)

        def do_HEAD(self) -> None:
            self._file(self.path)

        def _file(self, path: str) -> None:
            file = files / path.rsplit("/", 1)[1]
            if file.is_file():
                self._answer(file.read_bytes(), ETag=f'"{_facts(file)["oid"]}"')
            else:
                self._answer(b"", 404)

        def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _facts(file: Path) -> dict[str, str | int]:
    data = file.read_bytes()
    return {"path": file.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
