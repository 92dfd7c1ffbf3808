"""Where the box listens: free or its own, and reached by those whom it is for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.origin import is_loopback
from appliance.store.owner import password_set

REACH_SECONDS = 5.0
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
CHANGE = "Set another address: [server] bind in config.toml, or `shammah daemon --bind HOST:PORT`."


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """Without a daemon the address must be free; with one it must be reached there."""
    host, _, digits = box.config.server.bind.rpartition(":")
    host, port = host.strip("[]"), int(digits)
    daemon = box.standing
    if daemon is None:
        if problem := taken(host, port):
            yield error(problem, CHANGE)
        else:
            yield ok(f"{host} port {port} is free.")
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
        if (daemon.host, daemon.port) != (host, port):
            yield note(
                f"config.toml says {host} port {port}. The daemon was started with --bind, or before that "
                f"was "
                "changed.",
                "The next start without --bind listens there.",
            )
            host, port = daemon.host, daemon.port
    if is_loopback(host):
        yield note(
            "Only this machine is served.",
            'For the network set [server] bind to "0.0.0.0:8080", after `shammah console password`.',
        )
    elif box.store is not None and not password_set(box.store):
        yield warning(
            "The box listens to the network, but serves nobody there until it has an owner.",
            "`shammah console password`, then `shammah keys create NAME` for each device.",
        )


def taken(host: str, port: int) -> str:
    """Why a daemon could not listen there; empty when it could."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except UnicodeError:
        return f"{host} is no name of a machine."
    except OSError as problem:
        if problem.errno != errno.EADDRINUSE:
            return f"The box cannot listen on {host} port {port}: {problem.strerror or problem}."
        return f"{host} port {port} is in use by {_who(port)}."
    return ""


def unreachable(host: str, port: int) -> str:
    """Why nobody answers there; empty when somebody does."""
    try:
        socket.create_connection((_HERE.get(host, host), port), REACH_SECONDS).close()
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
