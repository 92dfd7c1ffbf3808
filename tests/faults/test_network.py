"""Clients that are slow, silent, many, or gone: others are served all the same, and nothing stays behind."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest
from browsing import opened
from daemons import Daemon, StartDaemon

from appliance.store.owner import set_password

CONFIG = "[lora]\nenabled = false\n[model]\nslots = 4\nqueue = 300\n"
ASK = [{"role": "user", "content": "Count to a thousand."}]
ELSEWHERE = "X-Forwarded-For: 192.0.2.7\r\n"


def dial(daemon: Daemon, start: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    link = socket.create_connection(("127.0.0.1", daemon.port), timeout=60, source_address=(source, 0))
    link.sendall(start)
    return link


def head(path: str, size: int, more: str = "", method: str = "POST") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{lines}{more}Content-Length: {size}\r\n\r\n".encode()


def streamed(tokens: int, **more: Any) -> bytes:
    body = {"model": "shammah", "messages": ASK, "stream": True, "max_tokens": tokens, "temperature": 1.5}
    body |= {"logprobs": True, "top_logprobs": 20, **more}
    text = json.dumps(body).encode()
    return head("/v1/chat/completions", len(text)) + text


@contextmanager
def honest(daemon: Daemon) -> Iterator[None]:
    """Somebody else is served in the middle of it and afterwards, and nothing of it stays."""
    process = psutil.Process(daemon.pid)
    daemon.ask("Name three colours.", max_tokens=4)
    files, threads, memory = process.num_fds(), process.num_threads(), process.memory_info().rss
    yield
    daemon.ask("Name three colours.", max_tokens=4)
    until(lambda: "shammah_active_requests 0.0" in daemon.get("/metrics").text, "slots are still taken")
    until(lambda: "shammah_waiting_requests 0.0" in daemon.get("/metrics").text, "some still wait")
    until(lambda: process.num_fds() <= files + 8, f"files stay open: {files} before")
    assert process.num_threads() <= threads + 32  # those that wait for the disk, and they are kept
    assert process.memory_info().rss < memory + 300_000_000
    assert daemon.get("/health").status_code == 200
    assert "Traceback" not in daemon.log


def until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def close(links: list[socket.socket]) -> None:
    for link in links:
        link.close()


def leave_in_the_middle(daemon: Daemon, count: int) -> None:
    links = [dial(daemon, streamed(4000), f"127.0.0.{2 + n % 50}") for n in range(count)]
    assert links[0].recv(1000).startswith(b"HTTP/1.1 200")
    daemon.get("/health")
    close(links)


def send_junk(daemon: Daemon) -> int:
    """What is no request of HTTP at all; says how many kinds."""
    hello = ssl.MemoryBIO()
    with suppress(ssl.SSLError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="box").do_handshake()
    many = "".join(f"X-{n}: {n}\r\n" for n in range(900)).encode()
    kinds = [
        hello.read(),
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n",
        b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\n\r\n",
        b"\x00" * 5000 + b"\r\n\r\n",
        b"GET  /  HTTP/9.9\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        b"POST /v1/feedback HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + b"x" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    for kind in kinds:
        with dial(daemon) as link, suppress(OSError):
            link.settimeout(2)
            link.sendall(kind)
            link.shutdown(socket.SHUT_WR)  # half closed: an answer may still come
            while link.recv(65536):
                pass
    return len(kinds)


def pipeline(daemon: Daemon, count: int) -> None:
    with dial(daemon, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * count) as link:
        seen = b""
        while seen.count(b"HTTP/1.1 200") < count:
            more = link.recv(65536)
            assert more, "the connection ended"
            seen += more


def test_a_few_of_each(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    with honest(daemon):
        idle = [dial(daemon, b"GET /he"[: n % 8]) for n in range(100)]
        leave_in_the_middle(daemon, 20)
        kinds = send_junk(daemon)
        pipeline(daemon, 100)
        close(idle)
    print(f"\nnetwork faults: tried {120 + kinds + 1}, survived {120 + kinds + 1}")


def test_large_bodies_of_strangers_are_not_read(start_daemon: StartDaemon) -> None:
    """The refusal comes before the body does."""
    daemon = start_daemon(CONFIG)
    with opened(daemon.home) as store:
        set_password(store, "correct horse battery")
    for path, said in (
        ("/v1/chat/completions", b" 401 "),
        ("/v1/adapters/promote", b" 401 "),
        ("/login", b" 400 "),
        ("/adapters/upload", b" 401 "),
    ):
        with dial(daemon, head(path, 8_000_000, ELSEWHERE + "Origin: http://127.0.0.1\r\n")) as link:
            assert said in link.recv(4096), path
    with dial(daemon, head("/v1/feedback", 8_000_000, "Authorization: Bearer sk-shammah-no\r\n")) as link:
        assert b" 401 " in link.recv(4096)
    daemon.ask("Name three colours.", max_tokens=2)


@pytest.mark.faults
def test_a_thousand_idle_connections(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    with honest(daemon):
        links = [dial(daemon, source=f"127.0.1.{1 + n % 10}") for n in range(1000)]
        for _ in range(3):
            assert daemon.ask("Name three colours.", max_tokens=4)
        # As many again from one address, which push out each other and not the rest.
        links += [dial(daemon, source="127.0.2.1") for _ in range(1000)]
        assert daemon.ask("Name three colours.", max_tokens=4)
        assert psutil.Process(daemon.pid).num_fds() < 1100
        close(links)
    print("\nidle connections: tried 2000, survived 2000")


@pytest.mark.faults
def test_200_clients_leave_in_the_middle(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    with honest(daemon):
        leave_in_the_middle(daemon, 200)
    print("\nclients that left in the middle: tried 200, survived 200")


@pytest.mark.faults
def test_slow_senders_are_cut_off(start_daemon: StartDaemon) -> None:
    """Byte by byte is not forever; whoever asks meanwhile is served."""
    daemon = start_daemon(CONFIG)
    with honest(daemon):
        header = [dial(daemon, b"GET /health HTTP/1.1\r\nX: ") for _ in range(50)]
        body = [dial(daemon, head("/v1/feedback", 5000)) for _ in range(50)]
        open_ = set(header + body)
        deadline = time.monotonic() + 150
        while open_ and time.monotonic() < deadline:
            for link in list(open_):
                try:
                    link.sendall(b"a")
                except OSError:
                    open_.discard(link)
            assert daemon.get("/health").status_code == 200
            time.sleep(2)
        assert not open_, f"{len(open_)} go on"
        assert b" 408 " in body[0].recv(4096)
        close(header + body)
    print("\nslow senders: tried 100, survived 100")


def silent(daemon: Daemon, readers: int, tokens: int) -> list[socket.socket]:
    """Clients that ask for a stream and read nothing of it, while little fits on the way to them."""
    links = []
    for n in range(readers):
        link = socket.socket()
        link.settimeout(60)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # or the sender's buffer takes megabytes
        link.bind((f"127.0.0.{2 + n}", 0))
        link.connect(("127.0.0.1", daemon.port))
        link.sendall(streamed(tokens, logit_bias={"0": -100, "2": -100}))  # no end before the last token
        links.append(link)
    return links


def test_who_does_not_read_holds_no_slot(start_daemon: StartDaemon) -> None:
    """As many as there are slots: their answers are computed and wait for them, and others are served."""
    daemon = start_daemon("[lora]\nenabled = false\n[model]\nslots = 2\n")
    with honest(daemon):
        links = silent(daemon, 2, 100)
        assert [link.recv(4) for link in links] == [b"HTTP"] * 2  # they have their slots
        until(lambda: "shammah_active_requests 0.0" in daemon.get("/metrics").text, "slots are held")
        assert daemon.ask("Name three colours.", max_tokens=4)
        assert "client=127.0.0.2" not in daemon.log and "client=127.0.0.3" not in daemon.log  # not over yet
        for link in links:
            whole = b""
            while not whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                more = link.recv(65536)
                assert more, whole[-200:]
                whole += more
            assert len(whole) > 150_000  # more than fits on the way
        until(lambda: "client=127.0.0.2" in daemon.log and "client=127.0.0.3" in daemon.log, "not over")
        close(links)


@pytest.mark.faults
def test_who_does_not_read_is_cut_off(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    with honest(daemon):
        links = silent(daemon, 8, 100)  # twice as many as there are slots
        for _ in range(3):
            assert daemon.ask("Name three colours.", max_tokens=4)
        process = psutil.Process(daemon.pid)
        until(
            lambda: not [c for c in process.net_connections() if c.raddr and c.raddr.ip != "127.0.0.1"],
            "those who do not read stay",
            400,
        )
        assert daemon.log.count("does not read its answer: cut off") == 8
        close(links)
    print("\nslow readers: tried 8, survived 8")


@pytest.mark.faults
def test_junk_and_pipelines(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    tried = 0
    with honest(daemon):
        for _ in range(20):
            tried += send_junk(daemon)
        pipeline(daemon, 2000)
        with pytest.raises(httpx.HTTPStatusError):
            daemon.post("/v1/feedback", content=b"x" * 8_000_001).raise_for_status()
    print(f"\njunk: tried {tried + 2}, survived {tried + 2}")
