"""Heads of requests made to cost or to mislead, sent as bytes: refused or read, they hold nobody up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest
from browsing import opened
from daemons import Daemon, install_bundle
from watching import Watch

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.network.proxies import client_of, networks
from appliance.store.owner import set_password

HELD = 1.5
SPENT = 0.3
"""Seconds of the loop's processor time for a dozen such requests, which need a tenth of that."""
CONFIG = """
[lora]
enabled = false
[server]
trusted_proxies = "127.0.0.1"
[model]
default_max_tokens = 2
"""


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One behind a proxy that it trusts: whoever asks from this machine."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    with opened(home) as store:
        set_password(store, "correct horse battery")
    running = Daemon(home).start()
    yield running
    running.kill()


def send(
    daemon: Daemon, *lines: bytes, path: bytes = b"/v1/models", method: bytes = b"GET"
) -> tuple[int, str]:
    """The status and the body of what these lines of a head are answered with."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        first = b"%b %b HTTP/1.1" % (method, path)
        connection.sendall(b"\r\n".join([first, *lines, b"Connection: close", b"", b""]))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


HOST = b"Host: 127.0.0.1"
COSTLY = {
    "an open quote": b'Forwarded: for="' + b"a" * 3900,
    "quotes": b"Forwarded: " + b'"' * 3900,
    "escapes in an open quote": b'Forwarded: for="' + b'\\"' * 1900,
    "a long name": b"Forwarded: " + b"a" * 3900,
    "commas in quotes": b'Forwarded: for="' + b"," * 3900 + b'"',
    "pairs": b"Forwarded: " + b"a=b;" * 950,
    "white space": b"Forwarded: " + b"a " * 1900,
    "hops": b"X-Forwarded-For: " + b"1.2.3.4," * 480,
    "hops that are none": b"X-Forwarded-For: " + b"1" * 3900,
    "an address of colons": b"X-Forwarded-For: " + b":" * 3900,
    "hosts": b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: " + b"a." * 1900,
    "cookies": b"Cookie: " + b"a=b;" * 1900,
    "escapes in a cookie": b'Cookie: a="' + b"\\a" * 3900 + b'"',
    "octal in a cookie": b'Cookie: shammah_session="' + b"\\101" * 1900 + b'"',
    "an address to come from": b"Referer: http://" + b"[" * 7000,
    "parameters of a type": b"Content-Type: a" + b"; a" * 1300,
    "quotes in a type": b"Content-Type: multipart/form-data" + b'; a="' * 800,
    "types": b"Accept: " + b"a/b;q=1;" * 450,
    "languages": b"Accept-Language: " + b"en;q=0.1," * 400,
    "a key": b"Authorization: Bearer " + b"a" * 4000,
    "an origin": b"Origin: http://" + b"a" * 3900,
    "a range": b"Range: bytes=" + b"0-0," * 950,
    "tags": b"If-None-Match: " + b'"a",' * 950,
    "an id": b"X-Request-ID: " + b"a" * 4000,
    "digits that are none": "Content-Length: \u00b2".encode(),
}


@pytest.mark.parametrize("name", COSTLY)
def test_no_header_holds_the_loop(daemon: Daemon, name: str) -> None:
    with Watch(daemon) as watch:
        for path in (b"/v1/models", b"/login", b"/nothing") * 4:
            status, body = send(daemon, HOST, COSTLY[name], path=path)
            assert status < 500, (path, body)
        status, body = send(daemon, HOST, COSTLY[name], path=b"/login", method=b"POST")
        assert status < 500, body
    print(f"\n{name}: {watch}")
    assert watch.longest < HELD and watch.spent < SPENT


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ([b"X-%d: a" % number for number in range(120)], 431, "header_too_large"),
        ([b"X-A: " + b"a" * 5000], 431, "header_too_large"),
        ([b"Forwarded: " + b"for=1.2.3.4," * 400], 431, "header_too_large"),
        ([b"X-A: " + b"a" * 9000], 431, "header_too_large"),
        ([b"A" * 200 + b": a"], 400, "invalid_header"),
        ([b"X A: a"], 400, "invalid_header"),
        ([b"X-A : a"], 400, "invalid_header"),
        ([b" folded: a"], 400, "invalid_header"),
        ([b": a"], 400, "invalid_header"),
        ([b"X-A: a\nX-B: b"], 400, "invalid_header"),
        ([b"X-A: a\x00b"], 400, "invalid_header"),
        ([b"Host: other"], 400, "invalid_header"),
        ([b"Authorization: Bearer a", b"Authorization: Bearer b"], 400, "invalid_header"),
    ],
)
def test_what_is_no_head_is_refused_by_name(
    daemon: Daemon, lines: list[bytes], status: int, code: str
) -> None:
    found, body = send(daemon, HOST, *lines)
    assert found == status, body
    error = json.loads(body)["error"]
    assert error["code"] == code and error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize("host", [b"a b", b"<script>", b"a/b", b"[::1", b"\xff", b"a:b:c", b"a" * 300])
def test_a_host_that_is_none(daemon: Daemon, host: bytes) -> None:
    status, body = send(daemon, b"Host: " + host)
    assert (status, json.loads(body)["error"]["param"]) == (400, "host")


def test_a_head_without_a_host_is_told_so(daemon: Daemon) -> None:
    """Not that it comes from another machine."""
    for path in (b"/v1/models", b"/login"):
        status, body = send(daemon, path=path)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_header")
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")  # as load balancers ask
        assert connection.recv(65536).split()[1] == b"200"


@pytest.mark.parametrize(
    "line",
    [
        b"Origin: http://[",
        b"Origin: http://\xff",
        "Origin: http://\u2100.example".encode(),
        b"Referer: http://[\xff",
        b"Authorization: Bearer sk-shammah-\xff",
        b"Cookie: shammah_session=\xff; shammah_flash=\xff",
        b"Content-Type: application/x-www-form-urlencoded; charset=\xff",
        b"Accept: \xff",
        b"HX-Request: true\xff",
        b"Last-Event-ID: " + b"9" * 4000,
        b"X-Request-ID: \xff",
    ],
)
@pytest.mark.parametrize("path", [b"/v1/models", b"/login", b"/playground"])
def test_bytes_that_are_no_text_are_no_fault_of_ours(daemon: Daemon, line: bytes, path: bytes) -> None:
    for method in (b"GET", b"POST"):
        status, body = send(daemon, HOST, line, b"Content-Length: 0", path=path, method=method)
        assert status < 500, (method, body)


def test_long_heads_of_browsers_are_read(daemon: Daemon) -> None:
    """Cookies of everything else that runs on this host, and an address with a long search."""
    status, _ = send(daemon, HOST, b"Cookie: " + b"; ".join(b"c%d=%d" % (n, n) for n in range(400)))
    assert status in (200, 401)
    status, _ = send(daemon, HOST, b"Referer: http://127.0.0.1/queue?q=" + b"a" * 6000, path=b"/login")
    assert status in (200, 303)


def test_the_time_grows_with_the_length() -> None:
    """Of the reader alone, where a header is as long as no box lets it become."""
    trusted = networks("10.0.0.1")
    for made in ('for="', "a", 'a="b";', '"\\"', "for=1.2.3.4,", '"', ' ="'):
        value = made * (200_000 // len(made))
        began = time.process_time()
        client_of("10.0.0.1", lambda name, value=value: [value] if name == "forwarded" else [], trusted)  # type: ignore[misc]
        assert time.process_time() - began < 2, made
