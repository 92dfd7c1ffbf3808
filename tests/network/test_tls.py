"""HTTPS: a device that has the box's authority trusts it, the certificate changes under running streams."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from cryptography import x509
from daemons import Daemon, free_port, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle

WAITED = 30.0


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(f'[lora]\nenabled = false\n[tls]\nbind = "127.0.0.1:{port}"\n')
    running = Daemon(home).start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def trust(daemon: Daemon) -> ssl.SSLContext:
    """What a device knows that has installed the authority from the box's page."""
    pem = daemon.get("/trust/ca.pem").text
    return ssl.create_default_context(cadata=pem)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAITED
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def served(port: int, trust: ssl.SSLContext | None = None) -> x509.Certificate:
    """The certificate that a new connection gets."""
    context = trust or ssl._create_unverified_context()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as connection,
    ):
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
        data = connection.getpeercert(binary_form=True)
    assert data is not None
    return x509.load_der_x509_certificate(data)


def client(port: int, trust: ssl.SSLContext) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"https://localhost:{port}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=trust, trust_env=False),
    )


def test_a_device_with_the_authority_is_answered(port: int, trust: ssl.SSLContext) -> None:
    answer = client(port, trust).chat.completions.create(
        model="shammah", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    assert answer.choices[0].message.content
