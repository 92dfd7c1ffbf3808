"""The daemon as a process: one to a home, what it listens on, the signals it obeys, what it tells people."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sanic import Sanic

from appliance import logs, notify, served, stopping
from appliance.config import keep_good
from appliance.errors import Conflict, ShammahError, Unavailable
from appliance.files import remove_durably, write_atomic
from appliance.home import Home
from appliance.learning.switch import APPLIANCE
from appliance.lock import held_alone
from appliance.network.listening import Place, listen_all, nearest, reached_at, shown, split_bind
from appliance.network.names import in_url, unique
from appliance.origin import is_loopback
from appliance.restart import Restart
from appliance.sections import ServerConfig
from appliance.settings.editor import SettingsEditor
from appliance.store.owner import create_setup_token

logger = logging.getLogger(__name__)
# Its lines are written whatever `[server] log_level` says: without them nobody gets in.
first_run = logging.getLogger("appliance.first_run")

AUTO_HTTPS_PORT = 8443
GLANCE_SECONDS = 1.0
"""So long a start waits for the home's lock: a command that looks for the daemon holds it for a moment."""
LOOK_SECONDS = 2.0
"""From one look for what was deleted under the box to the next."""


def configure_logging(home: Home, server: ServerConfig) -> None:
    """Log as the settings say; how to get in is logged in any case."""
    logs.configure(home.logs, server.log_level, server.log_format)
    first_run.setLevel(logging.INFO)
    # When a watchdog aborts the process, the journal says where each thread hung.
    faulthandler.enable()


@contextmanager
def only_daemon(home: Home) -> Iterator[None]:
    """Hold the home's lock; the kernel lets go of it however this process ends."""
    patience = time.monotonic() + GLANCE_SECONDS
    while True:
        with held_alone(home) as alone:
            if alone:
                yield
                return
        if time.monotonic() >= patience:
            raise Conflict(f"A daemon is already running on {home.root}.")
        time.sleep(0.05)


def listen_secure(bind: str, places: Sequence[Place]) -> list[socket.socket]:
    """The listening sockets for HTTPS, as `[tls] bind` says; none for no HTTPS.

    Args:
        bind: of the settings.
        places: where plain HTTP is listened on.

    Raises:
        Unavailable: an address cannot be listened on. One that nobody has asked for may be taken.
    """
    if bind != "auto":
        return listen_all(split_bind(bind))[1] if bind else []
    wanted = unique((host, AUTO_HTTPS_PORT) for host, _ in places if not is_loopback(host))
    try:
        return listen_all(wanted)[1]
    except Unavailable as error:
        logger.warning("No HTTPS: %s Choose another address for it in `[tls] bind`.", error.message)
        return []


def stop_when_told(app: Sanic[Any, Any], restart: Restart) -> None:
    """Leave on SIGTERM, SIGINT or a restart. Sanic's own handlers forget a signal during a listener."""
    wanted = asyncio.Event()
    restart.stops_by(wanted.set)

    def for_good() -> None:
        restart.forget()
        wanted.set()

    async def catch(app: Sanic[Any, Any]) -> None:
        for number in stopping.STOPS:
            app.loop.add_signal_handler(number, for_good)
        if stopping.noted():
            for_good()

    async def leave(app: Sanic[Any, Any]) -> None:
        await wanted.wait()
        while not app.state.is_running:
            await asyncio.sleep(0.02)
        app.stop(terminate=False)

    # Twice, and before others that take time: in between Sanic sets both signals to be ignored.
    app.register_listener(catch, "before_server_start")
    app.register_listener(catch, "after_server_start")
    app.add_task(leave(app))


def reload_on_signal(app: Sanic[Any, Any], settings: SettingsEditor) -> None:
    """Read the settings again on SIGHUP. To a daemon in a terminal it means that the terminal is gone."""
    if sys.stdin is not None and sys.stdin.isatty():
        return

    async def reload() -> None:
        try:
            with notify.reloading():
                taken = await asyncio.to_thread(settings.reload, APPLIANCE)
        except ShammahError as error:
            logger.error("The settings stay as they are: %s", error)
        else:
            logger.info("Read config.toml again: %s", ", ".join(item.key for item in taken) or "nothing new")
        await app.ctx.network.check()

    going_on: set[asyncio.Task[None]] = set()

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(reload(), name="reload")
        going_on.add(task)
        task.add_done_callback(going_on.discard)

    @app.after_server_start
    async def catch(app: Sanic[Any, Any]) -> None:
        app.loop.add_signal_handler(signal.SIGHUP, begin)


def announce(app: Sanic[Any, Any], home: Home, places: Sequence[Place]) -> None:
    """Tell people where the console is, and the command line how to reach this daemon."""
    host, port = nearest(places)
    app.ctx.closed = all(is_loopback(each) for each, _ in places)
    app.ctx.port = port
    ended = asyncio.Event()
    keeping: list[asyncio.Task[None]] = []

    @app.after_server_start
    async def started(app: Sanic[Any, Any]) -> None:
        record = {
            "pid": os.getpid(),
            "host": host,
            "port": port,
            "listens": [in_url(*place) for place in places],
            "https": app.ctx.network.https_port,
            "token": app.ctx.local_token,
            "started": app.ctx.started_at,
            # By a clock that nobody sets: so it can be told whether the other was.
            "booted": time.clock_gettime(time.CLOCK_BOOTTIME) - (time.time() - app.ctx.started_at),
        }
        try:
            write_atomic(home.daemon, json.dumps(record))
            keeping.append(asyncio.create_task(_keep_there(home, json.dumps(record), ended)))
            served.came_up(home, app.ctx.bundle.manifest)
            keep_good(home.config, home.good_config)
        except ShammahError as error:  # serving matters more
            logger.error("The command cannot reach this daemon: %s", error)
        for place in places:
            logger.info("Console: http://%s/   API: http://%s/v1", in_url(*place), in_url(*place))
        if app.ctx.network.https_port is not None:
            logger.info("HTTPS on port %d; what devices install for it: /trust", app.ctx.network.https_port)

    @app.before_server_stop
    async def stopping(app: Sanic[Any, Any]) -> None:
        ended.set()
        await asyncio.gather(*keeping)  # what it is about to put back is not put back after this
        remove_durably(home.daemon)
        app.ctx.events.publish("box.stopping", restart=app.ctx.restart.wanted)


async def _keep_there(home: Home, record: str, ended: asyncio.Event) -> None:
    """What is deleted under the box comes back: its directories, and the file by which commands find it."""

    def put_back() -> None:
        if home.root.is_dir() and not home.daemon.exists():
            write_atomic(home.daemon, record)
            logger.warning("%s had been deleted, and is there again.", home.daemon.name)
        if home.root.is_dir():  # moved away, it shall find its place free when it comes back
            home.ensure()

    while not ended.is_set():
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await ended.wait()
        except TimeoutError:
            try:
                await asyncio.to_thread(put_back)
            except (ShammahError, OSError) as error:
                logger.debug("Not there again yet: %s", error)


def invite(app: Sanic[Any, Any], places: Sequence[Place], insecure: bool) -> None:
    """Print the link by which the owner chooses a password. A new start makes a new one."""
    host, port = nearest(places)

    @app.after_server_start
    async def invite(app: Sanic[Any, Any]) -> None:
        here = reached_at(host)
        token = await asyncio.to_thread(create_setup_token, app.ctx.store)
        if not (insecure or is_loopback(here)):
            first_run.info(
                "This box is not set up, and serves nobody at %s until it has a password: run "
                "`shammah console password` on it, or let it listen on 0.0.0.0 or 127.0.0.1 to set it up "
                "in a browser.",
                shown(places),
            )
            return
        first_run.info("Set up this box: http://%s/setup?token=%s", in_url(here, port), token)
        where = (
            "It works from the network too, because of --insecure."
            if insecure
            else f"Open it on this machine; from another, first run: ssh -L {port}:{in_url(here, port)} BOX"
        )
        first_run.info("The link works once, until the next start. %s", where)
        if not app.ctx.closed:
            first_run.info(
                "The box listens on %s, but serves %s until it has a password.",
                ", ".join(each for each, _ in places if not is_loopback(each)),
                "everybody, because of --insecure," if insecure else "only this machine",
            )
