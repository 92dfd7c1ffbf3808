"""The box's own certificate authority, and the certificate that it gives the box.

Nobody sells certificates for `shammah.local` or 192.168.1.20. So the box has an authority of its own, made
once, which the owner installs on the devices; what it vouches for is renewed as often as needed, and no
device has to be touched again. It can vouch for servers only, and of these for addresses of private networks,
names under `.local` and those that the owner has set: who steals its key cannot pass for the rest of the
world. A name without a dot is none of these, for a rule about `kitchen` holds for all of `.kitchen` too,
which is the internet's.

An authority of an earlier release may do more. It goes on, since devices know it by its key: another must be
installed on each. `shammah doctor` says so, and `shammah tls ca --new` makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import NotFound, Unavailable
from appliance.files import storage_errors, write_atomic
from appliance.home import Home
from appliance.network.names import is_address, unique, valid

logger = logging.getLogger(__name__)

AUTHORITY_DAYS = 3652
CERTIFICATE_DAYS = 397
"""Phones refuse what is valid for longer."""
RENEW_DAYS = 30
BACKDATED = timedelta(days=2)
"""Devices whose clock is behind must not find it to be of the future."""
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
LOCAL_DOMAINS = ("local", "localhost")
"""Nobody on the internet has a name in these."""
PRIVATE = tuple(
    ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
)
"""Nor an address in these."""
Limits = tuple[tuple[str, ...], tuple[IPv4Network | IPv6Network, ...]]


@dataclass(frozen=True)
class Authority:
    """The authority: its key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Its certificate, for programs."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        """Its certificate, for phones and browsers."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def limits(self) -> Limits:
        """The domains and networks that it may vouch for; of a kind of which there are none, all."""
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return (), ()
        permitted = found.permitted_subtrees or []
        return (
            tuple(item.value for item in permitted if isinstance(item, x509.DNSName)),
            tuple(
                item.value
                for item in permitted
                if isinstance(item, x509.IPAddress) and isinstance(item.value, IPv4Network | IPv6Network)
            ),
        )

    def permits(self, name: str) -> bool:
        """Whether devices would believe it about this name."""
        domains, networks = self.limits
        if is_address(name):
            return not networks or any(ip_address(name) in network for network in networks)
        return not domains or any(name == domain or name.endswith(f".{domain}") for domain in domains)

    def excess(self, configured: tuple[str, ...]) -> tuple[str, ...]:
        """What it may vouch for though it need not, in words; `configured` is what the owner has set."""
        domains, networks = self.limits
        wanted = {name for name in configured if can_vouch(name)}.union(LOCAL_DOMAINS)
        allowed = (*PRIVATE, *(ip_network(name) for name in configured if is_address(name)))
        return (
            *(["any name"] if not domains else []),
            *(f"names under .{domain}" for domain in domains if domain not in wanted),
            *(["any address"] if not networks else []),
            *(str(network) for network in networks if network not in allowed),
            *([] if self._for_servers else ["other things than servers"]),
        )

    @property
    def _for_servers(self) -> bool:
        try:
            usage = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return False
        return list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def can_vouch(name: str) -> bool:
    """Whether there can be an authority for it that is not one for strangers' names as well."""
    return is_address(name) or name in LOCAL_DOMAINS or (valid(name) and "." in name)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as people compare it."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (
        *found.get_values_for_type(x509.DNSName),
        *map(str, found.get_values_for_type(x509.IPAddress)),
    )


def read_authority(home: Home) -> Authority:
    """The home's authority.

    Raises:
        NotFound: it has none yet.
        Unavailable: its file is damaged.
    """
    try:
        pem = home.authority.read_bytes()
        key = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except FileNotFoundError as error:
        raise NotFound(
            "This box has no certificate authority yet: it makes one when it serves HTTPS."
        ) from error
    except (ValueError, TypeError, OSError) as error:
        raise Unavailable(f"{home.authority} cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Unavailable(f"{home.authority} cannot be used: its key is not that of its certificate.")
    return Authority(key, certificate)


def make_authority(home: Home, title: str, names: tuple[str, ...], now: datetime) -> Authority:
    """A new authority in the place of any other: every device has to install it.

    Args:
        home: where it is kept.
        title: what the box is called; devices show it.
        names: names and addresses of the owner's that it shall vouch for, beside `LOCAL_DOMAINS` and
            `PRIVATE`.
        now: the present time.

    Raises:
        StorageFull: there is no room; the one before is still there.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{title[:40]} (Shammah box {now:%Y-%m-%d})"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Shammah"),
        ]
    )
    known = [name for name in names if can_vouch(name)]
    domains = unique((*LOCAL_DOMAINS, *(name for name in known if not is_address(name))))
    networks = unique((*PRIVATE, *(ip_network(name) for name in known if is_address(name))))
    limits = [*map(x509.DNSName, domains), *map(x509.IPAddress, networks)]
    certificate = (
        _certificate(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.NameConstraints(limits, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    made = Authority(key, certificate)
    with storage_errors("the certificate authority"):
        home.tls.mkdir(exist_ok=True, mode=0o700)
    # One file: a power cut between two would leave a key that is not the certificate's.
    write_atomic(home.authority, _pem(key) + made.pem)
    return made


def issue(authority: Authority, names: tuple[str, ...], now: datetime) -> bytes:
    """A new key with its certificate for these (valid) names and addresses, as one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    entries: list[x509.GeneralName] = [
        x509.IPAddress(ip_address(name)) if is_address(name) else x509.DNSName(name) for name in names
    ]
    title = next((name for name in names if not is_address(name)), "shammah")[:64]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _certificate(authority.certificate.subject, subject, key.public_key(), now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(entries), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(authority.key, SHA256())
    )
    return _pem(key) + certificate.public_bytes(Encoding.PEM)


def why_renew(
    certificate: x509.Certificate | None, authority: Authority, names: tuple[str, ...], now: datetime
) -> str | None:
    """Why the box needs a new certificate of its own; None when it does not."""
    if certificate is None:
        return "there is none that can be used"
    if certificate.issuer != authority.certificate.subject or not _signed(certificate, authority):
        return "the authority is another"
    if certificate.not_valid_after_utc - now < timedelta(days=RENEW_DAYS):
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    # A clock that is behind even the authority is wrong now; else it was wrong when this was made.
    if certificate.not_valid_before_utc > now >= authority.certificate.not_valid_before_utc:
        return f"it begins on {certificate.not_valid_before_utc:%Y-%m-%d} only"
    if missing := set(names) - set(names_of(certificate)):
        return f"it is not for {', '.join(sorted(missing))}"
    return None


def why_not(missed: Sequence[str]) -> str:
    """Why the authority does not vouch for names that the owner has set."""
    if bare := [name for name in missed if not can_vouch(name)]:
        return (
            f"A name needs a dot, as {bare[0]}.local has: a rule about {bare[0]} holds for all of .{bare[0]}."
        )
    return (
        "The authority was made before `[tls] names` had that. `shammah tls ca --new` makes another, which "
        "devices have to install."
    )


def own_certificate(home: Home) -> x509.Certificate | None:
    """The certificate that lies in the home; None when there is none, or it is damaged."""
    try:
        pem = home.certificate.read_bytes()
        key = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError, OSError):
        return None
    return certificate if key.public_key() == certificate.public_key() else None


def ensure_own(
    home: Home,
    title: str,
    names: tuple[str, ...],
    now: datetime,
    configured: tuple[str, ...] = (),
    *,
    renew: bool = False,
) -> Authority:
    """See to it that the home has an authority, and a certificate of it that is good for these names.

    Args:
        home: where both are kept.
        title: what the box is called.
        names: the names and addresses it is reached by.
        now: the present time.
        configured: those of the names that the owner has set: a new authority may vouch for them.
        renew: make a new certificate even if the present one would do.

    Raises:
        StorageFull: there is no room for what is missing.
    """
    try:
        authority = read_authority(home)
    except NotFound:
        authority = make_authority(home, title, configured, now)
        logger.info("Made a certificate authority: %s", fingerprint(authority.certificate))
    except Unavailable as error:
        if isinstance(error.__cause__, OSError):
            raise  # it may be sound: a new one would cost every device its trust
        kept = home.authority.with_suffix(".damaged")
        home.authority.replace(kept)
        authority = make_authority(home, title, configured, now)
        logger.error(
            "%s A new authority takes its place: devices have to install it (/trust).", error.message
        )
    permitted = tuple(name for name in names if valid(name) and authority.permits(name))
    why = "somebody asked for it" if renew else why_renew(own_certificate(home), authority, permitted, now)
    if why is not None:
        write_atomic(home.certificate, issue(authority, permitted, now))
        logger.info("Made a new certificate: %s.", why)
        left_out = [name for name in names if name not in permitted]
        if missed := [name for name in left_out if name in configured]:
            logger.warning("It is not for %s. %s", ", ".join(missed), why_not(missed))
        if rest := [name for name in left_out if name not in configured]:
            logger.info(
                "It is not for %s: devices believe this box of private addresses and .local names only, and "
                "of what `[tls] names` has.",
                ", ".join(rest),
            )
    return authority


def _certificate(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    begins = now.replace(microsecond=0) - BACKDATED
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(certificate: x509.Certificate, authority: Authority) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def present() -> datetime:
    """Now, as certificates count time. A box without a battery wakes up in 1970: it is not that early."""
    return max(datetime.now(UTC), EARLIEST)
