"""A box that serves HTTPS on loopback, and a device that has installed its authority."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import openai
import pytest
from daemons import Daemon, free_port, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle


@pytest.fixture(scope="module")
def port() -> int:
    """Of HTTPS."""
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
    return ssl.create_default_context(cadata=daemon.get("/trust/ca.pem").text)


@pytest.fixture
def client(daemon: Daemon, port: int, trust: ssl.SSLContext) -> Iterator[openai.OpenAI]:
    """OpenAI's own client on HTTPS, as the page tells to make one."""
    with (
        openai.DefaultHttpxClient(verify=trust, trust_env=False) as http,
        openai.OpenAI(
            base_url=f"https://localhost:{port}/v1", api_key="none", max_retries=0, http_client=http
        ) as made,
    ):
        yield made
