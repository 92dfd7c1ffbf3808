"""Somebody has stolen the authority's key: what devices that trust it would believe him.

Three that decide are asked: OpenSSL in a real connection, `openssl verify`, the verifier of `cryptography`.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from appliance.config import parse_config
from appliance.doctor.box import Box
from appliance.doctor.certificates import look
from appliance.home import Home
from appliance.network.authority import (
    Authority,
    ensure_own,
    issue,
    make_authority,
    names_of,
    own_certificate,
    present,
)

CONFIGURED = ("box.example.org", "203.0.113.7", "100.64.3.2", "2001:db8::7")
OURS = (
    "shammah.local",
    "kitchen.local",
    "a.b.local",
    "localhost",
    "192.168.1.20",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "169.254.1.1",
    "127.0.0.1",
    "fd12:3456::1",
    "fe80::1",
    "::1",
    *CONFIGURED,
)
OTHERS = (
    "example.org",
    "evil.example.org",
    "bank.com",
    "evil.kitchen",
    "kitchen",
    "evil.lan",
    "evil.home",
    "evil.internal",
    "local.evil.com",
    "notlocal",
    "8.8.8.8",
    "1.1.1.1",
    "203.0.113.8",
    "100.64.3.3",
    "172.32.0.1",
    "172.15.255.255",
    "192.167.255.255",
    "2606:4700::1111",
    "2001:db8::8",
    "::2",
    "::ffff:8.8.8.8",
)
_PEM, _PKCS8, _OPEN = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
PLAIN_OPENSSL = shutil.which("openssl")


@pytest.fixture
def authority(home: Home, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Of a box on a machine that is called `kitchen`."""
    monkeypatch.setattr(socket, "gethostname", lambda: "kitchen")
    names = ("shammah.local", "kitchen", "kitchen.local", "192.168.1.20", "2001:db8::99", *CONFIGURED)
    return ensure_own(home, "Kitchen", names, present(), CONFIGURED)


def believed(authority: Authority, pem: bytes, name: str, now: datetime | None = None) -> bool:
    """Whether a program takes who has this certificate for the owner of the name."""
    subject = x509.IPAddress(ip_address(name)) if _is_address(name) else x509.DNSName(name)
    verifier = PolicyBuilder().store(Store([authority.certificate])).time(now or present())
    try:
        verifier.build_server_verifier(subject).verify(x509.load_pem_x509_certificate(pem), [])
    except VerificationError:
        return False
    return True


def greets(authority: Authority, pem: bytes, name: str, tmp_path: Path) -> bool:
    """The same in a connection, as Python's programs make it."""
    (tmp_path / "leaf.pem").write_bytes(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "leaf.pem")
    client = ssl.create_default_context(cadata=authority.pem.decode())
    with _listening(server) as port, socket.create_connection(("127.0.0.1", port), 10) as sock:
        try:
            client.wrap_socket(sock, server_hostname=name).close()
        except ssl.SSLCertVerificationError:
            return False
    return True


@contextlib.contextmanager
def _listening(context: ssl.SSLContext) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            sock, _ = listening.accept()
            with sock, contextlib.suppress(OSError):
                context.wrap_socket(sock, server_side=True).close()

        thread = threading.Thread(target=greet)
        thread.start()
        yield int(listening.getsockname()[1])
        thread.join(10)


@pytest.mark.parametrize("name", OURS)
def test_what_the_box_is_called_is_believed(authority: Authority, name: str, tmp_path: Path) -> None:
    pem = issue(authority, (name,), present())
    assert authority.permits(name)
    assert believed(authority, pem, name)
    assert greets(authority, pem, name, tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(authority: Authority, name: str, tmp_path: Path) -> None:
    pem = issue(authority, (name,), present())
    assert not authority.permits(name)
    assert not believed(authority, pem, name)
    assert not greets(authority, pem, name, tmp_path)


def test_nor_one_among_good_ones(authority: Authority, tmp_path: Path) -> None:
    pem = issue(authority, ("shammah.local", "bank.com"), present())
    for name in ("shammah.local", "bank.com"):
        assert not believed(authority, pem, name)
        assert not greets(authority, pem, name, tmp_path)


@pytest.mark.skipif(PLAIN_OPENSSL is None, reason="openssl's command is not here")
def test_openssl_says_the_same(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)

    def verify(name: str, purpose: str = "sslserver") -> bool:
        (tmp_path / "leaf.pem").write_bytes(issue(authority, (name,), present()))
        kind = "-verify_ip" if _is_address(name) else "-verify_hostname"
        command = ["openssl", "verify", "-CAfile", "ca.pem", "-purpose", purpose, kind, name, "leaf.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert verify("shammah.local")
    assert verify("192.168.1.20")
    assert not verify("bank.com")
    assert not verify("8.8.8.8")
    assert not verify("evil.kitchen")
    assert not verify("shammah.local", "smimesign")
    assert not verify("shammah.local", "sslclient")


def test_it_vouches_for_servers_and_for_no_authority(authority: Authority) -> None:
    """A certificate for a person, or for an authority below it, is worth nothing."""
    for usage, ca in ((ExtendedKeyUsageOID.EMAIL_PROTECTION, False), (ExtendedKeyUsageOID.SERVER_AUTH, True)):
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .issuer_name(authority.certificate.subject)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.local")]), critical=False)
            .sign(authority.key, SHA256())
        )
        assert not believed(authority, leaf.public_bytes(_PEM), "a.local")
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    limits = authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical


def test_the_certificate_of_the_box_leaves_out_what_would_spoil_it(authority: Authority, home: Home) -> None:
    """One name that the authority may not vouch for, and devices refuse all of it."""
    own = own_certificate(home)
    assert own is not None
    assert set(names_of(own)) == {"shammah.local", "kitchen.local", "192.168.1.20", *CONFIGURED}
    pem = home.certificate.read_bytes()
    assert all(believed(authority, pem, name) for name in names_of(own))


# --- boxes that have an authority already


def wide(home: Home) -> Authority:
    """As an earlier release made it: names of home networks, of the machine, any address, any purpose."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kitchen (Shammah box 2026-01-01)")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    domains = [x509.DNSName(name) for name in ("local", "localhost", "lan", "kitchen", "kitchen.local")]
    certificate = (
        x509.CertificateBuilder()
        .issuer_name(subject)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=9))
        .not_valid_after(datetime.now(UTC) + timedelta(days=3000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(domains, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    home.tls.mkdir(mode=0o700)
    home.authority.write_bytes(key.private_bytes(_PEM, _PKCS8, _OPEN) + certificate.public_bytes(_PEM))
    return Authority(key, certificate)


def complaints(home: Home, names: str = "") -> list[str]:
    config = parse_config(f'tls.names = "{names}"')
    told = look(Box(home, config, now=present().timestamp()), lambda text: None)
    return [finding.seen for finding in told if finding.level not in ("ok", "note")]


def test_an_authority_that_devices_have_goes_on_and_the_doctor_says_what_it_could(home: Home) -> None:
    before = wide(home)
    kept = home.authority.read_bytes()
    names = ("shammah.local", "kitchen", "192.168.1.20", "2001:db8::99")
    after = ensure_own(home, "Kitchen", names, present())
    assert home.authority.read_bytes() == kept
    assert after.certificate == before.certificate
    own = own_certificate(home)
    assert own is not None
    assert set(names_of(own)) == set(names)  # as it was: no device that worked stops
    assert believed(before, home.certificate.read_bytes(), "kitchen")
    (said,) = complaints(home)
    for part in ("names under .lan", "names under .kitchen", "any address", "other things than servers"):
        assert part in said
    made = make_authority(home, "Kitchen", (), present())
    ensure_own(home, "Kitchen", names, present())
    assert made.certificate != before.certificate
    assert complaints(home) == []


def test_a_name_that_is_set_later_is_left_out_and_said(home: Home) -> None:
    ensure_own(home, "Kitchen", ("shammah.local",), present())
    authority = ensure_own(
        home, "Kitchen", ("shammah.local", "box.example.org"), present(), ("box.example.org",)
    )
    own = own_certificate(home)
    assert own is not None
    assert names_of(own) == ("shammah.local",)
    assert believed(authority, home.certificate.read_bytes(), "shammah.local")
    (said,) = complaints(home, "box.example.org")
    assert said == "The certificate is not for box.example.org."


def test_a_name_without_a_dot_is_never_vouched_for(home: Home) -> None:
    """The rule for `kitchen` would hold for `evil.kitchen`, a name of the internet."""
    authority = ensure_own(home, "Box", ("kitchen", "kitchen.local"), present(), ("kitchen",))
    assert not authority.permits("kitchen")
    assert not authority.permits("evil.kitchen")
    (said,) = complaints(home, "kitchen")
    assert "kitchen" in said


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ip_address(name))
    return False
