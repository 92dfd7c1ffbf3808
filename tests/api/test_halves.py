"""Half a surrogate pair, as JavaScript cuts them off: U+FFFD wherever it comes in, and so found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx
import pytest
from browsing import opened
from daemons import Daemon

CUT = "cut \ud83d"
READ = "cut \ufffd"
OWN = {"Sec-Fetch-Site": "same-origin"}


def posted(daemon: Daemon, path: str, body: object, raw: bool = False) -> httpx.Response:
    """Sent as an escape, or as the three bytes that are no UTF-8."""
    content = json.dumps(body, ensure_ascii=not raw).encode(errors="surrogatepass")
    return httpx.post(daemon.url + path, content=content, timeout=60)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("content", [CUT, [{"type": "text", "text": CUT}]])
def test_what_is_answered_is_stored_and_found_by_its_id_and_its_text(
    daemon: Daemon, content: object, raw: bool
) -> None:
    body = {"model": "shammah", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    answer = posted(daemon, "/v1/chat/completions", body, raw)
    assert answer.status_code == 200, answer.text
    named = posted(daemon, "/v1/feedback", {"completion_id": answer.json()["id"], "rating": "up"})
    assert named.status_code == 200, named.text
    with opened(daemon.home) as store:
        assert store.examples.get(named.json()["id"]).query == READ
    said = answer.json()["choices"][0]["message"]["content"]
    written = posted(daemon, "/v1/feedback", {"query": CUT, "response": said, "correction": CUT}, raw)
    assert written.status_code == 200, written.text
    with opened(daemon.home) as store:
        example = store.examples.get(written.json()["id"])
        assert (example.query, example.target) == (READ, READ)
        assert example.completion_id is not None


def test_other_fields_and_keys(daemon: Daemon) -> None:
    body = {"model": "shammah", "messages": [{"role": "user", "content": "Hi", "name": CUT}], "max_tokens": 2}
    more = {"stop": [CUT], "user": CUT, "metadata": {CUT: CUT}}
    assert posted(daemon, "/v1/chat/completions", body | more).status_code == 200
    tools = [{"type": "function", "function": {"name": "time", "description": CUT}}]
    assert posted(daemon, "/v1/chat/completions", body | {"tools": tools}).status_code == 200
    missing = posted(daemon, "/v1/chat/completions", body | {"model": CUT})
    assert missing.status_code == 404 and READ in missing.json()["error"]["message"]
    # A whole pair, escaped, is one character.
    whole = {"query": "smile \U0001f600", "response": "A smile."}
    found = posted(daemon, "/v1/feedback", whole)
    with opened(daemon.home) as store:
        assert store.examples.get(found.json()["id"]).query == whole["query"]


def test_forms_and_addresses(daemon: Daemon) -> None:
    half = "%ED%A0%BD"
    with httpx.Client(base_url=daemon.url, headers=OWN, timeout=60) as client:
        urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
        made = client.post("/devices", content=f"name=cut+{half}+one", headers=urlencoded)
        assert made.status_code in (200, 303), made.text
        parts = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\ncut \xed\xa0\xbd two\r\n--x--\r\n'
        multipart = {"Content-Type": "multipart/form-data; boundary=x"}
        made = client.post("/devices", content=parts, headers=multipart)
        assert made.status_code in (200, 303), made.text
        assert client.get(f"/queue?search=cut+{half}").status_code == 200
    with opened(daemon.home) as store:
        names = {device.name for device in store.keys.list()}
    assert {"cut \ufffd\ufffd\ufffd one", "cut \ufffd\ufffd\ufffd two"} <= names


def test_imported_lines(daemon: Daemon) -> None:
    line = json.dumps({"kind": "automatic", "query": f"Imported {CUT}", "response": "A."})
    file = {"file": ("x.jsonl", line.encode(), "application/jsonl")}
    answer = httpx.post(f"{daemon.url}/queue/import", files=file, headers=OWN, timeout=60)
    assert answer.status_code == 303, answer.text
    with opened(daemon.home) as store:
        assert f"Imported {READ}" in {example.query for example in store.examples.list(limit=5)}


def test_names_on_the_command_line(daemon: Daemon) -> None:
    def shammah(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli", *words],
            env={**os.environ, "SHAMMAH_HOME": str(daemon.home.root)},
            capture_output=True,
            check=False,
        )

    assert shammah("keys", "create", b"shed \xff").returncode == 0
    assert b"is revoked" in shammah("keys", "revoke", "shed \ufffd").stdout
    gone = shammah("adapters", "promote", b"none \xff")
    assert gone.returncode == 1 and b"bug" not in gone.stderr
