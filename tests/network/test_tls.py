"""HTTPS: a device that has the box's authority trusts it, the certificate changes under running streams."""

from __future__ import annotations

import plistlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from daemons import Daemon, StartDaemon, free_port

from appliance.home import Home
from appliance.network.authority import (
    issue,
    make_authority,
    names_of,
    own_certificate,
    present,
    read_authority,
)
from appliance.store.owner import set_password

WAITED = 30.0
LONG: dict[str, Any] = {
    "model": "shammah",
    "messages": [{"role": "user", "content": "Tell me a long tale of the sea."}],
    "max_tokens": 400,
    "temperature": 1,
    "stream": True,
}


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAITED
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def served(port: int, *, least: bool = False) -> x509.Certificate:
    """The certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if least:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as connection,
    ):
        assert connection.version() == ("TLSv1.2" if least else "TLSv1.3")
        data = connection.getpeercert(binary_form=True)
    assert data is not None
    return x509.load_der_x509_certificate(data)


def test_a_device_with_the_authority_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="shammah", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    assert answer.choices[0].message.content


def test_a_device_without_it_refuses_the_box(daemon: Daemon, port: int) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{port}/health", verify=ssl.create_default_context(), trust_env=False)


def test_old_protocols_are_not_spoken(daemon: Daemon, port: int) -> None:
    assert served(port, least=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock)


def test_the_page_gives_the_authority_in_all_forms(daemon: Daemon) -> None:
    pem = x509.load_pem_x509_certificate(daemon.get("/trust/ca.pem").content)
    assert x509.load_der_x509_certificate(daemon.get("/trust/ca.crt").content) == pem
    (profile,) = plistlib.loads(daemon.get("/trust/ca.mobileconfig").content)["PayloadContent"]
    assert profile["PayloadType"] == "com.apple.security.root"
    assert x509.load_der_x509_certificate(profile["PayloadContent"]) == pem
    command = [sys.executable, "-m", "appliance.cli", "tls", "show", "--json"]
    said = subprocess.run(
        command, env={"SHAMMAH_HOME": str(daemon.home.root)}, capture_output=True, text=True, check=True
    )
    shown = pem.fingerprint(pem.signature_hash_algorithm or pytest.fail()).hex(":").upper()
    assert shown in said.stdout
    assert shown in daemon.get("/trust").text
    assert all(path.stat().st_mode & 0o077 == 0 for path in daemon.home.tls.iterdir())


def test_the_certificate_is_renewed_under_a_running_stream(
    daemon: Daemon, port: int, client: openai.OpenAI
) -> None:
    before = served(port)
    with client.chat.completions.create(**LONG) as stream:
        chunks = iter(stream)
        next(chunks)
        daemon.home.certificate.write_bytes(b"garbage")  # it mends that, too
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        after = until(lambda: (found := served(port)) != before and found)
        assert not daemon.log.count("Traceback")
        last = [chunk for chunk in chunks if chunk.choices][-1]
    assert last.choices[0].finish_reason in ("stop", "length")
    assert after.not_valid_after_utc >= before.not_valid_after_utc
    assert set(names_of(before)) == set(names_of(after))


def test_a_changed_name_is_in_the_certificate_without_a_restart(daemon: Daemon, port: int) -> None:
    text = daemon.home.config.read_text()
    daemon.home.config.write_text(f'{text}names = "attic.local, attic.lan"\n[console]\nname = "Attic box"\n')
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    names = until(lambda: (found := names_of(served(port))) and "attic.local" in found and found)
    assert "attic-box.local" in names
    # With a name that the authority was not made for, devices would refuse all of it.
    assert "attic.lan" not in names
    assert "It is not for attic.lan. The authority was made before" in daemon.log


def test_supplied_files_are_served_reloaded_and_refused_when_broken(
    daemon: Daemon, port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.mktemp("other"))
    other = make_authority(home, "Somebody", (), present())
    files = home.root / "cert.pem", home.root / "key.pem"

    def supply(name: str) -> None:
        key, mark, certificate = issue(other, (name,), present()).partition(b"-----BEGIN CERTIFICATE")
        files[1].write_bytes(key)
        files[0].write_bytes(mark + certificate)

    supply("first.lan")
    text = daemon.home.config.read_text().replace(
        "[tls]", f'[tls]\ncertificate = "{files[0]}"\nkey = "{files[1]}"'
    )
    daemon.home.config.write_text(text)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: names_of(served(port)) == ("first.lan",))
    supply("second.lan")  # as a program that renews it does: nobody tells the box
    until(lambda: names_of(served(port)) == ("second.lan",))
    files[1].write_text("no key")
    until(
        lambda: (
            "The certificate before goes on" in daemon.log or "the certificate before goes on" in daemon.log
        )
    )
    assert names_of(served(port)) == ("second.lan",)
    assert "given this box a certificate" in daemon.get("/trust").text


def test_a_restart_and_a_stop_finish_what_is_answered_by_https(start_daemon: StartDaemon) -> None:
    port = free_port()
    daemon = start_daemon(f'[lora]\nenabled = false\n[tls]\nbind = "127.0.0.1:{port}"\n')
    trust = ssl.create_default_context(cadata=daemon.get("/trust/ca.pem").text)
    with httpx.Client(
        base_url=f"https://localhost:{port}", verify=trust, trust_env=False, timeout=60
    ) as http:
        assert http.get("/ready").status_code == 200  # a connection that stays open
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "max_tokens": 40}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert daemon.process is not None
            daemon.process.terminate()
            assert list(lines)[-2] == "data: [DONE]"
    assert daemon.stop() == 0
    authority, certificate = read_authority(daemon.home), own_certificate(daemon.home)
    again = Daemon(daemon.home).start()
    try:
        assert httpx.get(f"https://localhost:{port}/ready", verify=trust, trust_env=False).status_code == 200
        assert read_authority(daemon.home).pem == authority.pem  # nobody has to install it again
        assert own_certificate(daemon.home) == certificate
    finally:
        again.kill()


def test_a_login_by_https_is_not_sent_in_the_clear(daemon: Daemon, port: int, trust: ssl.SSLContext) -> None:
    from appliance.store import Store

    store = Store.open(daemon.home)
    set_password(store, "correct horse battery")
    store.close()
    form = {"password": "correct horse battery"}
    with httpx.Client(verify=ssl._create_unverified_context(), trust_env=False) as http:
        for url, secure in ((f"https://localhost:{port}", True), (daemon.url, False)):
            done = http.post(f"{url}/login", data=form, headers={"Origin": url})
            assert done.status_code == 303
            assert ("Secure" in done.headers["set-cookie"]) is secure
