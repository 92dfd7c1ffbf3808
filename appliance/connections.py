"""How many may be connected at once, and how long each may take: nobody starves others by being slow.

Sanic's own timeouts begin anew with every byte, so a client that sends one now and then is never late.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterable
from time import monotonic
from typing import Any

from sanic import Sanic
from sanic.exceptions import RequestTimeout
from sanic.http import Stage
from sanic.server import HttpProtocol

from appliance.network.http import BoxHttp
from appliance.origin import unmapped

logger = logging.getLogger(__name__)

WHOLE_SECONDS = 30.0
"""A request has to be here whole within this time, and a second more for each `SLOWEST` bytes of its body."""
SLOWEST = 50_000
STUCK_SECONDS = 120.0
"""Who does not read what he asked for is cut off after this time."""
CHECK_SECONDS = 5.0
ADDRESS_SHARE = 4
"""One address may have this part (a quarter) of all connections."""
FILES = 65_536
SPARE_FILES = 256
"""For the store, models, logs and child processes."""


class Connection(HttpProtocol):
    """A connection with limits. When there are too many, the one that has waited longest to ask gives way."""

    HTTP_CLASS = BoxHttp
    __slots__ = ("_began", "_stuck_since", "_told")

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._began = monotonic()
        self._stuck_since: float | None = None
        self._told = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self._began = monotonic()
        most: int = self.app.config.MAX_CONNECTIONS
        address = _address(self)
        neighbours = [other for other in self.connections if _address(other) == address]
        for crowd, limit in ((neighbours, max(1, most // ADDRESS_SHARE)), (self.connections, most)):
            if len(crowd) > limit:
                (_longest_waiting(crowd) or self).cut()

    def data_received(self, data: bytes) -> None:
        if (http := self.http) is not None and http.stage is Stage.IDLE and not _unread(http):
            self._began = monotonic()
        super().data_received(data)

    def pause_writing(self) -> None:
        self._stuck_since = monotonic()
        super().pause_writing()  # type: ignore[no-untyped-call]

    def resume_writing(self) -> None:
        self._stuck_since = None
        super().resume_writing()  # type: ignore[no-untyped-call]

    def check_timeouts(self) -> None:
        """Called every few seconds, by itself."""
        now, http = monotonic(), self.http
        if not self._task or http is None:
            return
        if self._stuck_since is not None and now - self._stuck_since > STUCK_SECONDS:
            logger.info("%s does not read its answer: cut off.", _address(self))
            self.cut()
            return
        if http.stage is not Stage.REQUEST and not _unread(http):
            self._began = now  # of the next request, should it lie in the buffer already
        elif now - self._began > WHOLE_SECONDS + _received(http) / SLOWEST:
            if self._told:
                self.cut()
                return
            # Answered with 408 if that can still be; what comes of the body after that is not waited for.
            self._told = True
            http.exception = RequestTimeout("The request did not arrive in time.")
            self._task.cancel()
            self._callback_check_timeouts = self.loop.call_later(CHECK_SECONDS, self.check_timeouts)
            return
        super().check_timeouts()  # type: ignore[no-untyped-call]

    @property
    def waiting_since(self) -> float | None:
        """Since when it has not asked for anything; None while it is answered."""
        http = self.http
        return self._began if http is None or http.stage in (Stage.IDLE, Stage.REQUEST) else None

    def cut(self) -> None:
        """End it at once, as if the client had left."""
        if self.transport is not None:
            self.transport.abort()


def limit(app: Sanic[Any, Any], most: int) -> None:
    """Set how many may be connected, as far as the system lets this process have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        roof = FILES if hard == resource.RLIM_INFINITY else hard
        soft = max(soft, min(wanted, roof))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            most = max(ADDRESS_SHARE, soft - SPARE_FILES)
            logger.warning(
                "Only %d files may be open here, so %d connections at most: raise LimitNOFILE.", soft, most
            )
    app.config.MAX_CONNECTIONS = most
    # Since the last byte; and every half of it the connections are looked at.
    app.config.REQUEST_TIMEOUT = 2 * CHECK_SECONDS


def _longest_waiting(crowd: Iterable[Connection]) -> Connection | None:
    waiting = [(since, id(each), each) for each in crowd if (since := each.waiting_since) is not None]
    return min(waiting)[2] if waiting else None


def _address(connection: Connection) -> str:
    return unmapped(str(connection.conn_info.client_ip)) if connection.conn_info else ""


def _unread(http: Any) -> bool:
    """Whether some of the body of the present request is still to come."""
    return bool(getattr(http, "request_body", None))


def _received(http: Any) -> int:
    """Bytes of the present body that are here."""
    return int((http.request_bytes or 0) - (http.request_bytes_left or 0))
