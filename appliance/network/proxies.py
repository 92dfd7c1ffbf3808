"""Whom a request is from that came through reverse proxies. Only proxies the owner trusts are believed.

Anybody can write `X-Forwarded-For`, and a proxy appends to what it was sent. So the list is read from its
end: each address there was written by the one to the right of it, the last by the peer. As far as those are
trusted one goes on to the left; the first that is not trusted is the client, and all beyond it is hearsay.

Sanic has a reader of its own, which counts proxies or waits for a secret: it believes whoever reaches it
directly, so it stays off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from appliance.network.names import split_list

Networks = tuple[IPv4Network | IPv6Network, ...]
MOST_HOPS = 20
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"|[;,]|[^";,]+')
"""A quoted text, a mark that separates, or what stands between. Only an open quote is none of them."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


@dataclass(frozen=True)
class Client:
    """Who asks, as far as the proxies can be believed.

    Attributes:
        address: of the client.
        https: whether its connection is encrypted; None when no proxy says so.
        host: what it has asked for; None when no proxy says so.
    """

    address: str
    https: bool | None = None
    host: str | None = None


@dataclass(frozen=True)
class _Hop:
    """What one proxy says of the one it speaks for; None where it says nothing that can be read."""

    address: str | None
    proto: str | None = None
    host: str | None = None


@lru_cache(maxsize=8)
def networks(text: str) -> Networks:
    """The setting `server.trusted_proxies`."""
    return tuple(ip_network(item, strict=False) for item in split_list(text))


def is_trusted(address: str, trusted: Networks) -> bool:
    """Whether a peer is one of the proxies."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in network for network in trusted)


def client_of(peer: str, header: Callable[[str], Sequence[str]], trusted: Networks) -> Client | None:
    """The client that trusted proxies speak for; None when nobody trusted does.

    Args:
        peer: the socket's remote address.
        header: all values of a header, by its name in lower case, in the order they came.
        trusted: the proxies.
    """
    if not trusted or not is_trusted(peer, trusted):
        return None
    old, new = _x_forwarded(header), _forwarded(header("forwarded"))
    if not old and not new:
        return None
    found = [_walk(peer, hops, trusted) for hops in (old, new) if hops]
    # A proxy that sets the one hands the other on as a stranger wrote it. Where they do not agree, none is
    # believed, and the proxy answers for its clients.
    if len({client.address for client in found}) > 1:
        return Client(peer)
    return found[0]


def _walk(peer: str, hops: Sequence[_Hop], trusted: Networks) -> Client:
    client = Client(peer)
    for hop in reversed(hops[-MOST_HOPS:]):
        if not is_trusted(client.address, trusted) or hop.address is None:
            break
        https = client.https if hop.proto is None else hop.proto == "https"
        client = Client(hop.address, https, hop.host or client.host)
    return client


def _x_forwarded(header: Callable[[str], Sequence[str]]) -> list[_Hop]:
    addresses = _items(header("x-forwarded-for"))
    protos = _from_the_end(_items(header("x-forwarded-proto")), len(addresses))
    hosts = _from_the_end(_items(header("x-forwarded-host")), len(addresses))
    return [
        _Hop(_address(address), proto.lower() if proto else None, _host(host))
        for address, proto, host in zip(addresses, protos, hosts, strict=True)
    ]


def _from_the_end(items: list[str], count: int) -> list[str | None]:
    """As many as there are addresses: of what each proxy adds, or of what the first of them has set alone."""
    if len(items) == 1:
        return [items[0]] * count
    return [*([None] * (count - len(items))), *items[max(0, len(items) - count) :]]


def _forwarded(values: Sequence[str]) -> list[_Hop]:
    """Read in one pass: a pattern that tries anew from every character takes the square of the length."""
    text = "".join(f"{value}," for value in values)
    hops: list[_Hop] = []
    pairs: dict[str, str] = {}
    pair = ""
    at = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            return [_Hop(None)]  # an open quote: who can say where it ends
        at = piece.end()
        if piece[0] not in (";", ","):
            pair += piece[0]
            continue
        name, _, value = pair.strip().partition("=")
        pairs.setdefault(name.lower(), _unquoted(value))
        pair = ""
        if piece[0] == ",":
            if pairs.keys() != {""}:
                proto = pairs.get("proto")
                address = _address(pairs.get("for", ""))
                hops.append(_Hop(address, proto.lower() if proto else None, _host(pairs.get("host"))))
            pairs = {}
    return hops


def _items(values: Sequence[str]) -> list[str]:
    return [item.strip() for item in ",".join(values).split(",") if item.strip()]


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _address(text: str) -> str | None:
    """An address without its port; None for `unknown`, made-up names and anything else."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _host(text: str | None) -> str | None:
    return text if text and _HOST.fullmatch(text) else None
