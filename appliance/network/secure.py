"""More sockets than one, for HTTPS and for other addresses, by the same application in the same process.

Sanic would serve a second socket as a server of its own, which starts and stops the application's parts once
more and drops its connections when it ends. Here all share the set of connections: on the way out, answers
that have begun are finished on each.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any

from sanic import Sanic
from sanic.server import HttpProtocol

HANDSHAKE_SECONDS = 10.0
"""Who does not finish his greeting must not hold a connection."""


def run(
    app: Sanic[Any, Any],
    plain: Sequence[socket.socket],
    secure: Sequence[socket.socket],
    context: ssl.SSLContext,
    backlog: int,
    protocol: type[HttpProtocol],
) -> None:
    """Serve the application until it is stopped.

    Args:
        app: what to serve.
        plain: for plain HTTP, at least one.
        secure: for HTTPS.
        context: what to greet with there.
        backlog: connections that may wait to be accepted.
        protocol: what a connection is, on any socket.
    """
    app.prepare(
        sock=plain[0],
        protocol=protocol,
        single_process=True,
        motd=False,
        access_log=False,
        register_sys_signals=False,
    )
    settings = app.state.server_info[0].settings
    connections = settings["connections"] = set()
    servers: list[Any] = []

    async def open_(app: Sanic[Any, Any]) -> None:
        connection = partial(
            protocol,
            loop=app.loop,
            connections=connections,
            signal=settings["signal"],
            app=app,
            state=None,
            unix=None,
        )
        for sock in plain[1:]:
            servers.append(await app.loop.create_server(connection, sock=sock, backlog=backlog))
        for sock in secure:
            servers.append(
                await app.loop.create_server(
                    connection,
                    sock=sock,
                    ssl=context,
                    backlog=backlog,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=1.0,
                )
            )

    async def close(app: Sanic[Any, Any]) -> None:
        for server in servers:
            server.close()

    app.register_listener(open_, "after_server_start")
    app.register_listener(close, "before_server_stop")
    Sanic.serve_single(app)
