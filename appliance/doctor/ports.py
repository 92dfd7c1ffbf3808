"""Where the box listens: free or its own, and reached by those whom it is for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import Unavailable
from appliance.network.listening import Place, listen, reached_at, shown, split_bind
from appliance.origin import is_loopback
from appliance.store.owner import password_set

REACH_SECONDS = 5.0
CHANGE = "Set another address: [server] bind in config.toml, or `shammah daemon --bind HOST:PORT`."


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Without a daemon the addresses must be free; with one it must be reached there."""
    places = split_bind(box.config.server.bind)
    daemon = box.standing
    if daemon is None:
        for place in places:
            if problem := taken(place):
                yield error(problem, CHANGE)
            else:
                yield ok(f"{place[0]} port {place[1]} is free.")
    else:
        if problem := unreachable(daemon.host, daemon.port):
            yield error(
                f"The daemon listens on {daemon.host} port {daemon.port}, but cannot be reached there: "
                f"{problem}.",
                "Look for a firewall rule for this machine itself: `nft list ruleset`. Or restart the "
                "daemon.",
            )
        else:
            yield ok(f"{daemon.host} port {daemon.port} can be reached.")
        if (daemon.host, daemon.port) not in places:
            yield note(
                f"config.toml says {shown(places)}. The daemon was started with --bind, or before that was "
                "changed.",
                "The next start without --bind listens there.",
            )
            places = ((daemon.host, daemon.port),)
    if all(is_loopback(host) for host, _ in places):
        yield note(
            "Only this machine is served.",
            'For the network set [server] bind to "0.0.0.0:8080", after `shammah console password`.',
        )
    elif box.store is not None and not password_set(box.store):
        yield warning(
            "The box listens to the network, but serves nobody there until it has an owner.",
            "`shammah console password`, then `shammah keys create NAME` for each device.",
        )


def taken(place: Place) -> str:
    """Why a daemon could not listen there; empty when it could."""
    host, port = place
    try:
        for sock in listen(place):
            sock.close()
    except Unavailable as problem:
        cause = problem.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            return f"{host} port {port} is in use by {_who(port)}."
        return f"The box {problem.message[0].lower()}{problem.message[1:]}"
    return ""


def unreachable(host: str, port: int) -> str:
    """Why nobody answers there; empty when somebody does."""
    try:
        socket.create_connection((reached_at(host), port), REACH_SECONDS).close()
    except OSError as problem:
        return str(problem.strerror or problem)
    return ""


def _who(port: int) -> str:
    with suppress(psutil.Error):  # other users' connections are not told to everybody
        for connection in psutil.net_connections("inet"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None:
                continue
            if connection.laddr and connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"
