"""HTTP as programs speak it: encoded addresses, HEAD, version 1.0, wrong base URLs, clients that leave.

By sockets where a client library would put right what is to be tried.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from daemons import Daemon, StartDaemon

CHAT = "/v1/chat/completions"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
WORDS = {"messages": [{"role": "user", "content": "Count to ten."}], "model": "shammah", "max_tokens": 8}
GETS = ("/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/training/status", "/v1/adapters")
PAGES = ("/", "/queue", "/devices", "/settings/server", "/playground", "/trust")


def say(daemon: Daemon, data: bytes, seconds: float = 60) -> bytes:
    """All that comes back for these bytes until the box ends the connection."""
    got = b""
    with socket.create_connection(("127.0.0.1", daemon.port), seconds) as sock:
        sock.sendall(data)
        with suppress(TimeoutError):
            while part := sock.recv(65_536):
                got += part
    return got


def post(version: str, body: dict[str, object], *headers: str, path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


# --- addresses


@pytest.mark.parametrize("path", ["shammah%3Abase", "shammah%3abase", "shammah:base", "%73hammah%3A%62ase"])
def test_an_address_may_be_encoded(daemon: Daemon, path: str) -> None:
    status, _, body = split(
        say(daemon, f"GET /v1/models/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    )
    assert status == 200
    assert json.loads(body)["id"] == "shammah:base"


def test_an_address_is_decoded_once(daemon: Daemon) -> None:
    """What is asked for comes back in the error: letters of any script, slashes, and no second decoding."""
    for sent, meant in (
        ("K%C3%BCche", "Küche"),
        ("a%2Fb", "a/b"),
        ("shammah%253Abase", "shammah%3Abase"),
        ("%2561", "%61"),
        ("a%20b+c", "a b+c"),
    ):
        answer = split(say(daemon, f"GET /v1/models/{sent} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()))
        assert answer[0] == 404, sent
        assert repr(meant) in json.loads(answer[2])["error"]["message"]
    answer = split(say(daemon, b"GET /v1/training/runs/run%3A%C3%A9 HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    assert "'run:é'" in json.loads(answer[2])["error"]["message"]


@pytest.mark.parametrize("path", ["%", "%zz", "%f", "a%2", "%ff", "%c3%28", "%ed%a0%80", "a%00b", "%%361"])
def test_an_address_that_is_badly_encoded_is_refused(daemon: Daemon, path: str) -> None:
    for place in ("/v1/models", "/v1/training/runs", "/adapters"):
        head = f"GET {place}/{path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"
        assert split(say(daemon, head.encode()))[0] == 400, place


def test_names_in_addresses_of_the_console_are_decoded_too(daemon: Daemon) -> None:
    answer = daemon.get("/adapters/K%C3%BCche%3A1", headers=PAGE)
    assert answer.status_code == 404
    assert "Küche:1" in answer.text
    assert daemon.get("/adapters/..%2f..%2fconfig.toml/file", headers=PAGE).status_code == 404
    assert daemon.get("/backup/file/..%2fstore.db", headers=PAGE).status_code == 404
    assert daemon.get("/settings/%73erver", headers=PAGE).status_code == 200


def test_what_is_checked_is_what_is_routed(daemon: Daemon) -> None:
    """Rules that go by an address hold for every way to write it: no key, no answer."""
    for path in ("/%761/models", "//v1/models", "/v1//models", "/%76%31/%6dodels", "/v1/models/"):
        head = f"GET {path} HTTP/1.0\r\nHost: elsewhere.example\r\n\r\n"
        status, _, body = split(say(daemon, head.encode()))
        assert status == 403, path
        assert json.loads(body)["error"]["code"] == "not_set_up"
        good = split(say(daemon, head.replace("elsewhere.example", "localhost").encode()))
        assert good[0] == 200, path
        assert json.loads(good[2])["object"] == "list"


# --- methods


@pytest.mark.parametrize("path", [*GETS, *PAGES])
def test_head_is_get_without_the_body(daemon: Daemon, path: str) -> None:
    """Figures that count up may have another length a moment later; all else is the same."""
    got = daemon.get(path, headers=PAGE)
    status, headers, body = split(say(daemon, _head(path)))
    assert (status, body) == (got.status_code, b"")
    assert status == 200
    shifts = {"server-timing", "x-request-id", "connection"}
    assert set(headers) - shifts == set(got.headers) - shifts - {"vary", "content-encoding"} | (
        {"vary"} & set(headers)
    )
    assert headers["content-type"] == got.headers["content-type"]
    assert int(headers["content-length"]) > 0
    if path in ("/v1/models", "/openapi.json", "/v1/adapters"):
        assert headers["content-length"] == got.headers["content-length"]


def test_head_of_an_asset_an_error_and_a_form(daemon: Daemon) -> None:
    asset = re.search(r'/static/[^"]+\.css', daemon.get("/", headers=PAGE).text)
    assert asset is not None
    with httpx.Client(base_url=daemon.url) as client:
        got, head = client.get(asset[0]), client.head(asset[0])
        assert head.status_code == 200
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.content == b""
        missing = client.head("/v1/models/nobody")
        assert (missing.status_code, missing.content) == (404, b"")
        assert missing.headers["content-length"] == client.get("/v1/models/nobody").headers["content-length"]
        assert client.get("/health").status_code == 200  # on the same connection, in step


def test_head_of_a_stream_without_end_ends(daemon: Daemon) -> None:
    for path in ("/console/events", "/logs/follow"):
        status, headers, body = split(say(daemon, _head(path, version="1.1"), seconds=10))
        assert (status, body) == (200, b""), path
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["connection"] == "close"
    assert daemon.get("/health").status_code == 200


def test_who_uses_another_method_is_told_which_ones_would_do(daemon: Daemon) -> None:
    for method, path, allowed in (
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("PUT", CHAT, "POST, OPTIONS"),
        ("HEAD", CHAT, "POST, OPTIONS"),
        ("DELETE", "/v1/training/runs/x", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/training/devices/K%C3%BC/examples", "DELETE, OPTIONS"),
        ("PATCH", "/health", "GET, HEAD, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/static/1/app.css", "GET, HEAD, OPTIONS"),
    ):
        status, headers, body = split(
            say(daemon, f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        )
        assert (status, headers.get("allow")) == (405, allowed), (method, path)
        assert (body == b"") == (method == "HEAD")


def test_options_says_what_can_be_done(daemon: Daemon) -> None:
    for path, allowed in (
        (CHAT, "POST, OPTIONS"),
        ("/login", "GET, HEAD, POST, OPTIONS"),
        ("/v1/models/a%2Fb", "GET, HEAD, OPTIONS"),
    ):
        answer = httpx.options(daemon.url + path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
    assert httpx.options(daemon.url + "/nowhere").status_code == 404


# --- version 1.0


@pytest.mark.parametrize("headers", [[], ["Connection: keep-alive"]])
def test_a_client_of_version_one_gets_a_stream_without_chunks(daemon: Daemon, headers: list[str]) -> None:
    answer = say(daemon, post("1.0", {**WORDS, "stream": True}, *headers))
    status, told, body = split(answer)
    assert status == 200
    assert "transfer-encoding" not in told
    assert told["connection"] == "close"
    events = body.decode().split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["id"] for event in events[:-2])


def test_the_consoles_streams_suit_version_one_as_well(daemon: Daemon) -> None:
    for path, first in (
        ("/console/events?seen=-1", b": connected\n\nevent: box-all\n"),
        ("/logs/follow", b":"),
    ):
        with socket.create_connection(("127.0.0.1", daemon.port), 10) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            got = b""
            while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < len(first):
                got += sock.recv(4096)
        assert got.partition(b"\r\n\r\n")[2].startswith(first), path
        assert b"chunked" not in got


def test_later_versions_still_get_chunks_and_keep_the_connection(daemon: Daemon) -> None:
    twice = (
        post("1.1", {**WORDS, "stream": True})
        + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    got = say(daemon, twice)
    assert b"transfer-encoding: chunked" in got
    assert b"0\r\n\r\nHTTP/1.1 200 OK" in got


def test_an_address_may_be_absolute(daemon: Daemon) -> None:
    for target, kind in (
        ("http://localhost/v1/models", "application/json"),
        ("http://localhost", "text/html"),
    ):
        head = f"GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"
        status, headers, _ = split(say(daemon, head.encode()))
        assert status == 200
        assert headers["content-type"].startswith(kind)


def test_version_one_is_told_nothing_that_it_does_not_know(daemon: Daemon) -> None:
    assert say(daemon, post("1.0", WORDS, "Expect: 100-continue")).startswith(b"HTTP/1.1 200 OK")
    ask = post("1.1", WORDS, "Expect: 100-continue", "Connection: close")
    assert say(daemon, ask).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_version_one_keeps_a_connection_that_it_asks_to_keep(daemon: Daemon) -> None:
    ask = b"GET /health HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"
    got = say(daemon, ask + ask.replace(b"keep-alive", b"close"))
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert got.count(b"connection: keep-alive") == 1


# --- base URLs


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/completions"),
        ("POST", "/completions"),
        ("GET", "/models"),
        ("GET", "/models/"),
        ("GET", "/models/shammah"),
        ("GET", "/adapters"),
        ("HEAD", "/models"),
        ("POST", "/feedback"),
        ("POST", "/api/v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("POST", "/v1"),
        ("POST", "/api/chat"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "*/*", None])
def test_a_wrong_base_url_is_named(daemon: Daemon, method: str, path: str, accept: str | None) -> None:
    headers = {"Authorization": "Bearer none"} | ({} if accept is None else {"Accept": accept})
    with httpx.Client(base_url=daemon.url, headers=headers) as client:
        if accept is None:
            del client.headers["accept"]
        answer = client.request(method, path, json=WORDS if method == "POST" else None)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        error = answer.json()["error"]
        assert error["code"] == "unknown_url"
        assert "ends in /v1" in error["message"]


def test_people_still_get_pages(daemon: Daemon) -> None:
    assert "<h1" in daemon.get("/models", headers=PAGE).text
    lost = daemon.get("/nowhere", headers=PAGE)
    assert lost.status_code == 404
    assert "There is no such page" in lost.text
    assert "There is no such page" in daemon.get("/v1", headers=PAGE).text
    assert "<h1" in daemon.get("/models").text  # who takes anything may be one
    part = daemon.get("/models", headers={"HX-Request": "true"})
    assert part.status_code == 200


# --- what cannot be read


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / SMTP/1.1\r\n\r\n", 400),
        (b"GET v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: tea\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_before_set_up_a_malformed_head_is_what_is_wrong(daemon: Daemon, head: bytes, status: int) -> None:
    got, _, body = split(say(daemon, head))
    assert got == status
    assert json.loads(body)["error"]["code"] != "not_set_up"


def test_a_malformed_head_is_logged_with_its_sender(daemon: Daemon) -> None:
    said = re.findall(r"\? none 400 .*client=(\S+)", _waited(daemon, lambda: "? none 400" in daemon.log))
    assert said
    assert set(said) == {"127.0.0.1"}


# --- clients that leave


def _statuses(daemon: Daemon) -> dict[tuple[str, str], float]:
    found = re.findall(
        r"^shammah_http_responses_total\{([^}]*)\} (\S+)$", daemon.get("/metrics").text, re.MULTILINE
    )
    counted: dict[tuple[str, str], float] = {}
    for labels, value in found:
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = (said["endpoint"], said["status"])
        counted[key] = counted.get(key, 0) + float(value)
    return counted


def _leave(daemon: Daemon, data: bytes, until: bytes = b"", wait: float = 0.3) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), 30) as sock:
        sock.sendall(data)
        got = b""
        while until and until not in got:
            got += sock.recv(4096)
        time.sleep(wait)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


LONG = {**WORDS, "max_tokens": 900, "logit_bias": {"0": -100, "2": -100}}  # it does not end its turn


@pytest.mark.parametrize(
    ("name", "data", "until", "route", "status"),
    [
        ("waiting for the whole", post("1.1", LONG), b"", CHAT, "499"),
        ("while the body is sent", post("1.1", LONG)[:-20], b"", CHAT, "499"),
        ("a large body", post("1.1", {**LONG, "x": "y" * 90_000})[:-20], b"", CHAT, "499"),
        ("in a stream", post("1.1", {**LONG, "stream": True}), b"content", CHAT, "200"),
        ("in a stream of 1.0", post("1.0", {**LONG, "stream": True}), b"content", CHAT, "200"),
        ("in the head", b"GET /health HTTP/1.1\r\nHost: loc", b"", "none", "499"),
        (
            "in a form",
            post("1.1", {}, "Sec-Fetch-Site: same-origin", path="/login")[:-1],
            b"",
            "/login",
            "499",
        ),
        (
            "a page that follows",
            b"GET /console/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"connected",
            "/console/events",
            "200",
        ),
    ],
)
def test_who_leaves_is_counted_as_having_left(
    daemon: Daemon, name: str, data: bytes, until: bytes, route: str, status: str
) -> None:
    before = _statuses(daemon)
    _leave(daemon, data, until)
    key = (route, status)
    _waited(daemon, lambda: _statuses(daemon).get(key, 0) == before.get(key, 0) + 1)
    after = _statuses(daemon)
    assert {at for at, count in after.items() if count > before.get(at, 0)} <= {key, ("/metrics", "200")}
    assert not [at for at in after if at[1] in ("500", "0")]


def test_who_leaves_the_queue_is_counted_as_having_left(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[model]\nslots = 1\n[lora]\nenabled = false\n[server]\nlog_level = 'DEBUG'\n")
    with socket.create_connection(("127.0.0.1", daemon.port), 30) as first:
        first.sendall(post("1.1", {**LONG, "stream": True}))
        while b"content" not in first.recv(4096):
            pass
        _leave(daemon, post("1.1", WORDS))
        _leave(daemon, post("1.1", {**WORDS, "stream": True}))
        _waited(daemon, lambda: sum(count for at, count in _statuses(daemon).items() if at[0] == CHAT) == 2)
    _waited(daemon, lambda: _statuses(daemon).get((CHAT, "200"), 0) >= 1)
    assert not [at for at in _statuses(daemon) if at[1] in ("500", "0")]
    assert " POST /v1/chat/completions 499 " in daemon.log
    assert "Traceback" not in daemon.log


def _waited(daemon: Daemon, come: Callable[[], bool]) -> str:
    deadline = time.monotonic() + 20
    while not come():
        assert time.monotonic() < deadline, daemon.log[-3000:]
        time.sleep(0.05)
    return daemon.log


def _head(path: str, version: str = "1.0") -> bytes:
    return f"HEAD {path} HTTP/{version}\r\nHost: localhost\r\nAccept: {PAGE['Accept']}\r\n\r\n".encode()
