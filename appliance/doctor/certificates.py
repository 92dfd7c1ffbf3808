"""The certificates of `tls/`: until when they hold, and whether they and their keys belong together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.doctor.box import Box, Tell
from appliance.doctor.clock import span
from appliance.doctor.finding import Finding, error, ok, warning
from appliance.errors import ShammahError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SOON = 14 * 86400.0
RENEW = "Make or install a new one, see *TLS and names* in docs/operate.md; it is taken up without a restart."
_ENDINGS = (".crt", ".cer", ".pem")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Nothing to say for a box without."""
    yield from judge(box.home.tls, box.now)
    yield from _authority(box)
    if given := box.config.tls.certificate:
        yield from supplied(Path(given), box.now)


def _authority(box: Box) -> Iterator[Finding]:
    """What the box's own authority may vouch for: all it needs, and no more."""
    from appliance.network.authority import read_authority, why_not
    from appliance.network.names import split_list

    try:
        authority = read_authority(box.home)
    except ShammahError:
        return  # there is none, or `judge` has said what is wrong with it
    configured = tuple(name.lower() for name in split_list(box.config.tls.names))
    if excess := authority.excess(configured):
        yield warning(
            f"The box's certificate authority may vouch for {', '.join(excess)}: who steals its key could "
            "pass for others than this box on devices that have installed it.",
            "`shammah tls ca --new` makes one that may not. Each device has to install it, from /trust.",
        )
    if missed := [name for name in configured if not authority.permits(name)]:
        yield warning(f"The certificate is not for {', '.join(missed)}.", why_not(missed))


def supplied(path: Path, now: float) -> Iterator[Finding]:
    """Look at a certificate of the owner's, and what it is signed by."""
    from cryptography import x509

    try:
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            yield _dates(path, certificate, now)
    except (OSError, ValueError) as problem:
        yield error(f"{path} is no certificate that can be read: {problem}.", RENEW)


def judge(directory: Path, now: float) -> Iterator[Finding]:
    """Look at every certificate in a directory.

    Args:
        directory: where they and their keys lie, as PEM.
        now: Unix time.
    """
    if not directory.is_dir():
        return
    from cryptography import x509

    files = sorted(path for path in directory.iterdir() if path.suffix in _ENDINGS and path.is_file())
    seen: dict[Path, list[Certificate]] = {}
    for path in files:
        try:
            data = path.read_bytes()
            if b"BEGIN CERTIFICATE" not in data:
                continue  # a key
            seen[path] = x509.load_pem_x509_certificates(data)
        except ValueError as problem:
            yield error(f"{path.name} is no certificate that can be read: {problem}.", RENEW)
    for path, certificates in seen.items():
        for certificate in certificates:
            yield _dates(path, certificate, now)
        yield from _key(path, certificates[0])
    yield from _issuers(seen)


def _dates(path: Path, certificate: Certificate, now: float) -> Finding:
    name = f"{path.name} ({certificate.subject.rfc4514_string() or 'without a name'})"
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now > ends:
        return error(f"{name} expired {span(now - ends)} ago: devices refuse it.", RENEW)
    if now < begins:
        return error(
            f"{name} is valid only from {_day(begins)} on: devices refuse it.", f"Look at the clock. {RENEW}"
        )
    # A certificate that is made for a short time must not be complained of all its life.
    if ends - now < min(SOON, (ends - begins) / 4):
        return warning(f"{name} expires in {span(ends - now)}.", RENEW)
    return ok(f"{name} holds until {_day(ends)}.")


def _key(path: Path, certificate: Certificate) -> Iterator[Finding]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    key = path if _KEY.search(path.read_bytes()) else path.with_suffix(".key")
    if not key.is_file():
        return
    try:
        block = _KEY.search(key.read_bytes())
        own = load_pem_private_key(block[0] if block else b"", None).public_key()
    except (ValueError, TypeError) as problem:
        yield error(f"{key.name} is no key that can be read: {problem}.", RENEW)
        return
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own.public_bytes(*form) != certificate.public_key().public_bytes(*form):
        own_file = "Its key" if key == path else key.name
        yield error(f"{own_file} is not the key of the certificate in {path.name}: TLS cannot work.", RENEW)


def _issuers(seen: dict[Path, list[Certificate]]) -> Iterator[Finding]:
    """A certificate whose issuer is here must be signed by it: a new CA does not vouch for old ones."""
    everything = [certificate for certificates in seen.values() for certificate in certificates]
    for path, certificates in seen.items():
        for certificate in certificates:
            if certificate.subject == certificate.issuer:
                continue
            named = [other for other in everything if other.subject == certificate.issuer]
            if named and not any(_signed(certificate, other) for other in named):
                yield error(
                    f"{path.name} was not signed by the CA that lies beside it: devices refuse it.", RENEW
                )


def _signed(certificate: Certificate, issuer: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%d %b %Y}".lstrip("0")
