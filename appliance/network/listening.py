"""Where the box listens: what `bind` says as addresses, and the sockets for them.

`bind` is one HOST:PORT or several, divided by commas. `[::]` is every address of the machine, of either
family, `localhost` is both loopbacks, and another name all the addresses that it stands for. Each family has
a socket of its own: an address of IPv4 never comes dressed as one of IPv6, which some rule might not know.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from appliance.errors import ConfigError, Unavailable
from appliance.network.names import in_url, split_list, unique
from appliance.origin import is_loopback

logger = logging.getLogger(__name__)

Place = tuple[str, int]
"""A host and a port, as they were asked for or as they are."""
BACKLOG = 512
TRIES = 20
"""For a port that is free in both families."""
_ANY = {"0.0.0.0", "::"}
_BOTH = {"::": ("::", "0.0.0.0"), "localhost": ("127.0.0.1", "::1")}
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def split_bind(bind: str) -> tuple[Place, ...]:
    """HOST:PORT (or [IPv6]:PORT) in two, for each that is asked for.

    Raises:
        ConfigError: one is something else, or there is none.
    """
    return unique(map(_split, split_list(bind))) or (_split(""),)


def reached_at(host: str) -> str:
    """The address by which this machine reaches what listens on `host`."""
    return "127.0.0.1" if host in _ANY else host


def nearest(places: Sequence[Place]) -> Place:
    """The one that this machine reaches best: by loopback, if that is listened on."""
    return next((place for place in places if is_loopback(reached_at(place[0]))), places[0])


def listen(place: Place, beside: Collection[Place] = ()) -> list[socket.socket]:
    """The listening sockets for a place. Sanic would only log that it cannot make one, and exit with 0.

    Args:
        place: what is asked for.
        beside: what is listened on already: an address that this covers needs no socket of its own.

    Raises:
        Unavailable: it cannot be listened on.
    """
    host, port = place
    for _ in range(TRIES):
        try:
            return _listen(host, port, beside)
        except OSError as error:
            # Of several sockets the first has got some free port, and the others were to have the same.
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue
            why = (error.strerror or str(error)).partition(" (while")[0]
            raise Unavailable(f"Cannot listen on {host} port {port}: {why}.") from error
        except UnicodeError as error:
            raise Unavailable(f"Cannot listen on {host}: it is no name of a machine.") from error
    raise Unavailable(f"Cannot listen on {host}: no port is free.")


def listen_all(places: Sequence[Place]) -> tuple[tuple[Place, ...], list[socket.socket]]:
    """The same for several.

    Returns:
        The places, with the ports they have got, and the sockets.

    Raises:
        Unavailable: one cannot be listened on.
    """
    with ExitStack() as made:
        got: list[Place] = []
        sockets: list[socket.socket] = []
        for host, port in sorted(places, key=_breadth):
            mine = listen((host, port), [name_of(sock) for sock in sockets])
            for sock in mine:
                made.enter_context(sock)
            got.append((host, name_of(mine[0])[1] if mine else port))
            sockets += mine
        made.pop_all()
        return tuple(got), sockets


def name_of(sock: socket.socket) -> Place:
    """Where a socket listens."""
    host, port = sock.getsockname()[:2]
    return str(host), int(port)


def shown(places: Sequence[Place]) -> str:
    """Places for people."""
    return ", ".join(in_url(*place) for place in places)


def _split(bind: str) -> Place:
    host, _, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    good = bare and bracketed == (":" in bare) and port.isascii() and port.isdigit() and len(port) < 6
    if not good or int(port) > 65535:
        raise ConfigError(
            f"{bind!r} is not HOST:PORT, e.g. 127.0.0.1:8080, or several divided by commas",
            param="server.bind",
        )
    return bare, int(port)


def _listen(host: str, port: int, beside: Collection[Place]) -> list[socket.socket]:
    found = _addresses(host, port)
    addresses = [
        (family, address) for family, address in found if not _covered(family, address, port, beside)
    ]
    with ExitStack() as made:
        sockets: list[socket.socket] = []
        missing: OSError | None = None
        for family, address in addresses:
            try:
                sock = socket.create_server((address, port), family=family, backlog=BACKLOG)
            except OSError as error:
                # Without IPv6, `localhost` and `[::]` are what is left of them.
                if len(addresses) == 1 or error.errno not in _NOT_HERE:
                    raise
                missing = error
                continue
            made.enter_context(sock)
            sock.setblocking(False)
            port = name_of(sock)[1]
            sockets.append(sock)
        if missing is not None and not sockets:
            raise missing
        if missing is not None:
            logger.info("Of %s only %s can be listened on.", host, shown([name_of(sock) for sock in sockets]))
        made.pop_all()
        return sockets


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if both := _BOTH.get(host.lower()):
        return [(_family(address), address) for address in both]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(unique((family, str(address[0])) for family, _, _, _, address in found))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _covered(family: socket.AddressFamily, address: str, port: int, beside: Collection[Place]) -> bool:
    anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
    return port != 0 and bool({(address, port), (anywhere, port)} & set(beside))


def _breadth(place: Place) -> int:
    """What covers others comes before them."""
    return {"::": 0, "0.0.0.0": 1}.get(place[0], 2)
