"""What this machine is called and where it is reached: for its certificate and its name on the network."""

from __future__ import annotations

import logging
import re
import socket
import unicodedata
from collections.abc import Iterable
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

import psutil

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANY = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
"""Addresses to listen on that stand for all of a family."""
MOST_ADDRESSES = 64
"""A machine full of bridges for containers has many; a certificate need not grow with them."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def machine_addresses() -> tuple[str, ...]:
    """The addresses by which others can reach this machine, sorted. Empty where the system does not tell."""
    try:
        found = psutil.net_if_addrs()
    except OSError as error:  # a hardened unit may forbid to ask
        _say_once(str(error))
        return ()
    addresses = {
        address
        for entries in found.values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6) and (address := _reachable(entry.address))
    }
    return tuple(map(str, sorted(addresses, key=_order)))[:MOST_ADDRESSES]


def listened_addresses(host: str) -> tuple[str, ...]:
    """The addresses by which others reach what listens on `host`; none of loopback."""
    if host in ANY:
        version = 4 if ANY[host] == socket.AF_INET else 6
        return tuple(found for found in machine_addresses() if ip_address(found).version == version)
    try:
        address = _reachable(host)
    except ValueError:
        return ()  # a name: whatever it stands for, this machine asks nobody about it
    return () if address is None else (str(address),)


def machine_names() -> tuple[str, ...]:
    """The host name, alone and under `.local`, and with its domain if it has one. Asks no name server."""
    full = socket.gethostname().lower().rstrip(".")
    short = full.partition(".")[0]
    names = (short, f"{short}.local", full) if _LABEL.fullmatch(short) else ()
    return tuple(dict.fromkeys(name for name in names if valid(name)))


def label(name: str) -> str:
    """A name of people as a label of DNS: `Kitchen box` is `kitchen-box`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:59].rstrip("-") or "shammah"


def valid(name: str) -> bool:
    """Whether it can stand in a certificate: an address, or a host's name in lower case."""
    return is_address(name) or (
        0 < len(name) <= 253 and all(_LABEL.fullmatch(part) for part in name.split("."))
    )


def split_list(text: str) -> tuple[str, ...]:
    """The items of a setting that is a list: divided by commas or spaces."""
    return tuple(re.split(r"[,\s]+", text.strip())) if text.strip() else ()


def is_address(name: str) -> bool:
    """Whether it is an address, not a name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def in_url(host: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unique(names: Iterable[T]) -> tuple[T, ...]:
    """The same without repetition, in their order."""
    return tuple(dict.fromkeys(names))


@cache
def _say_once(problem: str) -> None:
    logger.warning(
        "The addresses of this machine cannot be seen (%s; a unit has to allow AF_NETLINK for that): "
        "they are not in the certificate, and nothing is announced.",
        problem,
    )


def _reachable(text: str) -> IPv4Address | IPv6Address | None:
    address = ip_address(text.partition("%")[0])
    others = not (
        address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    )
    return address if others else None


def _order(address: IPv4Address | IPv6Address) -> tuple[int, int]:
    return address.version, int(address)
