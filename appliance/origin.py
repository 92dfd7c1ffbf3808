"""Where a request comes from: this machine or not, our own pages or another site's.

Both questions are asked before an owner's rights are granted without a token: by the console for
its forms, by the API for its management endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
"""Of these a reverse proxy sets at least one, in about any configuration."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def trusted_loopback(peer: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a person or program on this machine.

    The peer's address alone does not say so: a web page whose own domain has been re-pointed at
    127.0.0.1 reaches a loopback server through the owner's browser (DNS rebinding), which shows in
    the Host header; and behind a reverse proxy everybody's peer address is the proxy's.

    Args:
        peer: the socket's remote address.
        headers: the request's headers, looked up in lower case.
    """
    if any(header in headers for header in _FORWARDED):
        return False
    return is_loopback(peer) and is_loopback(_host_name(headers.get("host", "")))


def is_loopback(name: str) -> bool:
    """Whether an address or host name can only mean this machine."""
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(unmapped(name)).is_loopback
    except ValueError:
        return False


def unmapped(address: str) -> str:
    """An address of IPv4 as such, also where a socket of IPv6 has dressed it as one of its own.

    One machine must not count as two, nor escape a rule that is for its address.
    """
    if not address.lower().startswith("::ffff:"):
        return address
    try:
        return str(getattr(ip_address(address), "ipv4_mapped", None) or address)
    except ValueError:
        return address


def same_origin(method: str, headers: Mapping[str, str], host: str | None = None) -> bool:
    """Whether a browser sent this from one of our own pages (or the request only reads).

    Browsers say so in Sec-Fetch-Site on HTTPS and loopback, and in Origin everywhere else. A
    changing request with neither does not come from a current browser's form or script, and is
    refused: programs use a token.

    Args:
        method: of the request.
        headers: looked up in lower case.
        host: the one the browser has asked for, when a trusted proxy has put another in the header.
    """
    if method in _SAFE_METHODS:
        return True
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    asked = (headers.get("host", "") if host is None else host).lower()
    return origin is not None and _netloc(origin) == asked != ""


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # no address, as "http://["
        return ""
