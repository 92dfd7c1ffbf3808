"""Made-up bodies and heads, cheap to send and meant to cost: the loop turns, nothing fails."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from browsing import opened
from daemons import Daemon, install_bundle
from fuzzing import JSON, many, often
from hypothesis import strategies as st
from watching import Watch

from appliance.errors import InvalidRequest
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.reading import read_json, tidy_json
from appliance.store.owner import set_password

CONFIG = """
[lora]
enabled = false
[server]
trusted_proxies = "127.0.0.1"
[model]
default_max_tokens = 2
"""
SEED = 20261201
LARGEST = 7_900_000
HELD, MEMORY = 2.0, 800_000_000
JSON_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/feedback",
    "/v1/adapters/promote",
    "/v1/adapters/pin",
)
FORM_PATHS = (
    "/login",
    "/playground",
    "/settings/save",
    "/settings/text",
    "/queue/act",
    "/queue/import",
    "/devices",
)
FIELDS = (
    b"content", b"tool_calls", b"stop", b"logit_bias", b"tools", b"metadata", b"response_format",
    b"messages", b"prompt", b"query", b"feedback", b"name", b"model", b"x",
)  # fmt: skip
ATOMS = (
    b"0,", b"{},", b"[],", b'"",', b"[", b"{", b'{"a":', b"]", b'"', b"\\", b'\\"', b"\\u0000", b"\\ud83d",
    b"a", b" ", b"1", b"-", b"1e9,", b'"a":0,', b"\xff", b"\xed\xa0\xbd", "\u0315\u0300".encode(), b"null,",
    b"\n", b'{"type":"text","text":"a"},', b'{"role":"user","content":"a"},', b"<|im_start|>", b"&", b"%00",
    b"a=&", b";",
)  # fmt: skip
HEADS = (
    b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"Cookie", b"Host",
    b"Origin", b"Referer", b"Accept", b"Accept-Encoding", b"Content-Type", b"Authorization",
    b"X-Request-ID", b"Range", b"If-None-Match", b"Last-Event-ID", b"Content-Length", b"Transfer-Encoding",
    b"Connection", b"Expect", b"Upgrade",
)  # fmt: skip
SIGNS = (
    b"a", b'"', b"\\", b'\\"', b";", b",", b"=", b" ", b":", b"[", b"]", b"for=", b"1.2.3.4", b"%", b"\xff",
    b"\t", b"q=0.1", b"/", b".", b"-", b'a="', b"http://", b"\\101", "\u00b2".encode(), b"\x00", b"9",
)  # fmt: skip


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    running = Daemon(home).start()
    yield running
    running.kill()


def made(rng: random.Random, atoms: tuple[bytes, ...], size: int) -> bytes:
    """A few pieces, each over and over."""
    pieces = []
    for _ in range(rng.randint(1, 3)):
        unit = b"".join(rng.choices(atoms, k=rng.randint(1, 3)))
        pieces.append(unit * max(1, size // 3 // len(unit)))
    return b"".join(pieces)[:size]


def body(rng: random.Random, size: int) -> bytes:
    """Such pieces as they are, or as the value of a field in a body that is otherwise good."""
    inner = made(rng, ATOMS, size)
    form = rng.randint(0, 3)
    if form == 0:
        return inner
    value = (b'"' + inner + b'"', b"[" + inner + b"0]", b"{" + inner + b'"z":0}')[form - 1]
    field = rng.choice(FIELDS)
    if field in (b"content", b"tool_calls"):
        return b'{"model":"shammah","messages":[{"role":"user","' + field + b'":' + value + b"}]}"
    return (
        b'{"model":"shammah","messages":[{"role":"user","content":"Hi"}],"query":"Q","response":"A","'
        + field + b'":' + value + b"}"
    )  # fmt: skip


def well(daemon: Daemon, watch: Watch, what: str) -> None:
    print(f"\n{what}: {watch}")
    assert watch.longest < HELD and watch.grown < MEMORY
    assert "Traceback" not in daemon.log, daemon.log[daemon.log.index("Traceback") - 300 :][:3000]


@pytest.mark.parametrize("examples", [15, pytest.param(600, marks=pytest.mark.fuzz)])
def test_bodies(daemon: Daemon, examples: int) -> None:
    rng = random.Random(SEED)
    with Watch(daemon) as watch, httpx.Client(base_url=daemon.url, timeout=120) as client:
        for _ in range(examples):
            content = body(rng, rng.choice((1000, 60_000, 1_000_000, LARGEST)))
            path = rng.choice(JSON_PATHS)
            answer = client.post(path, content=content)
            assert answer.status_code < 500 and len(answer.content) < 5000, (path, content[:200])
            kind = rng.choice(("application/x-www-form-urlencoded", "multipart/form-data; boundary=a"))
            headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"}
            path = rng.choice(FORM_PATHS)
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code < 500, (path, kind, content[:200])
    well(daemon, watch, f"{2 * examples} bodies")


@pytest.mark.parametrize("examples", [60, pytest.param(4000, marks=pytest.mark.fuzz)])
def test_heads(daemon: Daemon, examples: int) -> None:
    with opened(daemon.home) as store:
        set_password(store, "correct horse battery")
    rng = random.Random(SEED)
    with Watch(daemon) as watch:
        for _ in range(examples):
            path = rng.choice((b"/v1/models", b"/login", b"/", b"/nothing"))
            lines = [b"%b %b HTTP/1.1" % (rng.choice((b"GET", b"POST")), path)]
            for _ in range(rng.choice((1, 2, 5, 150))):
                size = rng.choice((10, 300, 4000))
                lines.append(rng.choice(HEADS) + b": " + made(rng, SIGNS, size))
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
                answer = b""
                with suppress(OSError):  # it may have answered, and closed, before all was sent
                    connection.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
                    connection.shutdown(socket.SHUT_WR)
                    while piece := connection.recv(65536):
                        answer += piece
            assert b" 500 " not in answer.partition(b"\r\n")[0], (lines, answer[-500:])
    well(daemon, watch, f"{examples} heads")


@often
def test_json_is_read_as_it_was_written(examples: int) -> None:
    """And any bytes are read or refused."""

    def check(case: tuple[object, bytes]) -> None:
        value, noise = case
        text = json.dumps(value, ensure_ascii=False, allow_nan=True)
        try:
            again = read_json(text.encode(errors="surrogatepass"))
        except InvalidRequest as error:
            assert "NaN" in text or "Infinity" in text, error
        else:
            assert again == json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        with suppress(InvalidRequest):
            read_json(noise)
            tidy_json(noise, "It")

    noise = st.lists(st.sampled_from(ATOMS), max_size=40).map(b"".join) | st.binary(max_size=200)
    many(examples, st.tuples(JSON, noise), check)
