"""Says that the box is ready, and then, again and again, that it still serves.

A beat is the end of a round trip: through the listening socket, the event loop and the routes to
`/ready`, and through the engine's thread, which answers between two steps. It is sent by a task of that
same event loop. So there is none when the socket takes no connections, the loop does not turn, or a step
does not end; systemd then restarts the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from sanic import Sanic

from appliance import notify

logger = logging.getLogger(__name__)

BEATS = 4
"""In the time that the watchdog grants: three may be late."""
START_EVERY = 0.1


def attach(app: Sanic[Any, Any], host: str, port: int) -> None:
    """Beat while `app` serves. Without systemd there is nobody to do it for.

    Args:
        app: with the parts in its context.
        host: an address by which this machine reaches it.
        port: what it listens on.
    """
    if not notify.supervised():
        return

    @app.after_server_start
    async def begin(app: Sanic[Any, Any]) -> None:
        app.add_task(_beat(app, host, port), name="heartbeat")

    @app.before_server_stop
    async def stopping(app: Sanic[Any, Any]) -> None:
        await app.cancel_task("heartbeat", raise_exception=False)
        notify.stopping(restart=app.ctx.restart.wanted)


async def _beat(app: Sanic[Any, Any], host: str, port: int) -> None:
    with suppress(asyncio.CancelledError):  # that is how it ends; Sanic would warn of it
        await _beats(app, host, port)


async def _beats(app: Sanic[Any, Any], host: str, port: int) -> None:
    beats = 0
    app.ctx.metrics.offer("shammah_watchdog_beats_total", "Signs of life given to systemd.", lambda: beats)
    granted = notify.watchdog_seconds()
    every = granted / BEATS if granted else None
    ready, told, warned = False, "", False
    while True:
        # One that takes long on a loaded machine is a sign of life, too.
        problem = await _round_trip(app, host, port, seconds=granted / 2 if granted else 10.0)
        if problem is not None:
            if ready and not warned:
                logger.warning(
                    "The box does not answer itself: %s. systemd restarts it if it stays so.", problem
                )
            warned = ready
            await asyncio.sleep(min(every or 1.0, 1.0) if ready else START_EVERY)
            continue
        warned = False
        status = _status(app)
        if not ready:
            ready, told = True, status
            notify.ready(status)
        else:
            notify.tell("WATCHDOG=1", *([f"STATUS={status}"] if status != told else []))
            told, beats = status, beats + 1
        if every is None:
            return
        await asyncio.sleep(every)


async def _round_trip(app: Sanic[Any, Any], host: str, port: int, seconds: float) -> str | None:
    """Ask the box whether it is ready, as a device would; what is wrong, if something is."""
    try:
        async with asyncio.timeout(seconds):
            answer = await _get_ready(app, host, port)
            if b" 200 " not in answer:
                return f"/ready says {answer.decode(errors='replace').strip() or 'nothing'}"
            await app.ctx.engine.ping()
    except TimeoutError:
        return f"no answer within {seconds:g} seconds"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


async def _get_ready(app: Sanic[Any, Any], host: str, port: int) -> bytes:
    """The first line of the answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"Host: localhost\r\nAuthorization: Bearer {app.ctx.local_token}\r\nConnection: close\r\n\r\n"
        writer.write(f"GET /ready HTTP/1.1\r\n{head}".encode())
        return await reader.readline()
    finally:
        writer.close()


def _status(app: Sanic[Any, Any]) -> str:
    """What `systemctl status` shows."""
    ctx = app.ctx
    serving = f"Serving {ctx.bundle.manifest.name} with {ctx.engine.adapter or 'no adapter'}"
    return f"{serving}; a run is going on" if ctx.learning.progress is not None else serving
