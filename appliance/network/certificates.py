"""Which certificate is served: the owner's, or one of the box's own authority; changed without a restart.

A connection gets the certificate that counts when it begins, and keeps it. What cannot be used is said once,
and the one before goes on.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from sanic.http.tls.context import create_context

from appliance.config import Config
from appliance.errors import InvalidRequest, ShammahError
from appliance.home import Home
from appliance.network.authority import ensure_own, fingerprint, names_of, present
from appliance.network.names import split_list
from appliance.sections import TlsConfig

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]
"""What tells one state of files from another: name, inode, size, time."""


@dataclass(frozen=True)
class Serving:
    """A certificate in service.

    Attributes:
        context: what new connections are made with.
        supplied: it is the owner's, not of the box's own authority.
        stamp: of the files it was read from.
    """

    context: ssl.SSLContext
    certificate: x509.Certificate
    supplied: bool
    stamp: Stamp


class Certificates:
    """The certificate in service. `check` is for any thread, the rest for the event loop's.

    Attributes:
        serving: None while there is none to be had; connections are then refused.
        listening: the context to listen with.
    """

    def __init__(self, home: Home, config: Config, names: Callable[[], tuple[str, ...]]) -> None:
        """Nothing is read or made yet.

        Args:
            home: where the box's own are kept.
            config: the running one.
            names: the names and addresses the box has at the moment.
        """
        self._home = home
        self._config = config
        self._names = names
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}
        self.serving: Serving | None = None
        self.listening = create_context()
        self.listening.sni_callback = self._choose  # asked for each connection, with a name or without

    def check(self) -> bool:
        """See to it that what is served is what should be; says whether it is another now. Blocking."""
        with self._lock:
            before = self.serving
            supplied = self._config.tls.certificate and self._take("supplied", self._supplied)
            # The owner's own went bad while the box ran: the one it has goes on.
            if not supplied and not (self._config.tls.certificate and before and before.supplied):
                self._take("own", self._own)
            return self.serving is not before

    def _take(self, kind: str, load: Callable[[], Serving]) -> bool:
        try:
            found = load()
        except (ShammahError, OSError) as error:
            said = error.message if isinstance(error, ShammahError) else str(error)
            if said != self._told.get(kind):
                goes_on = "the certificate before goes on" if self.serving else "another has to do"
                logger.error("%s HTTPS: %s.", said, goes_on)
            self._told[kind] = said
            return False
        self._told.pop(kind, None)
        if found is not self.serving:
            self.serving = found
            logger.info(
                "HTTPS with %s certificate, until %s: %s",
                "the owner's" if found.supplied else "the box's own",
                found.certificate.not_valid_after_utc.date(),
                ", ".join(names_of(found.certificate)) or "no names",
            )
        return True

    def _supplied(self) -> Serving:
        serving, tls = self.serving, self._config.tls
        if serving is not None and serving.supplied and serving.stamp == _stamp(*_paths(tls)):
            return serving
        return load_supplied(tls)

    def _own(self) -> Serving:
        ensure_own(
            self._home,
            self._config.console.name,
            self._names(),
            present(),
            tuple(name.lower() for name in split_list(self._config.tls.names)),
        )
        path = self._home.certificate
        serving = self.serving
        if serving is not None and not serving.supplied and serving.stamp == _stamp(path):
            return serving
        return _load(path, path, supplied=False)

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        if self.serving is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self.serving.context
        return None


def load_supplied(tls: TlsConfig) -> Serving:
    """The owner's certificate.

    Raises:
        InvalidRequest: it cannot be used; the message says why, `param` which setting to look at.
    """
    return _load(*_paths(tls), supplied=True)


def describe(certificate: x509.Certificate, *, supplied: bool) -> dict[str, Any]:
    """What people want to know about a certificate in service."""
    return {
        "kind": "supplied" if supplied else "own",
        "names": list(names_of(certificate)),
        "begins": certificate.not_valid_before_utc.timestamp(),
        "ends": certificate.not_valid_after_utc.timestamp(),
        "fingerprint": fingerprint(certificate),
        "issuer": certificate.issuer.rfc4514_string(),
    }


def _paths(tls: TlsConfig) -> tuple[Path, Path]:
    return Path(tls.certificate), Path(tls.key or tls.certificate)


def _load(certificate: Path, key: Path, *, supplied: bool) -> Serving:
    context = create_context()
    try:
        stamp = _stamp(certificate, key)
        context.load_cert_chain(certificate, key, password=_no_password)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except FileNotFoundError as error:
        missing = key if certificate.exists() else certificate
        raise InvalidRequest(
            f"{missing} is not there.", param="tls.certificate" if missing == certificate else "tls.key"
        ) from error
    except PermissionError as error:
        raise InvalidRequest(
            f"{error.filename or certificate} may not be read by the box's user.", param="tls.certificate"
        ) from error
    except ssl.SSLError as error:
        what = {
            "KEY_VALUES_MISMATCH": f"The key in {key} is not that of the certificate in {certificate}.",
            "NO_START_LINE": f"{certificate} or {key} is not in PEM, or lacks the certificate or its key.",
        }
        said = what.get(
            error.reason or "", f"{certificate} and {key} cannot be used: {error.reason or error}."
        )
        raise InvalidRequest(said, param="tls.certificate") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{certificate} cannot be used: {error}.", param="tls.certificate") from error
    return Serving(context, leaf, supplied, stamp)


def _no_password() -> str:
    raise ValueError("its key is locked with a password, which the box does not have")


def _stamp(*paths: Path) -> Stamp:
    found = ((str(path), path.stat()) for path in dict.fromkeys(paths))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)
