"""The box's side towards the network: its certificate and its name, kept right while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from appliance.config import Config
from appliance.home import Home
from appliance.network.certificates import Certificates
from appliance.network.listening import Place
from appliance.network.mdns import Announcement, Announcer
from appliance.network.names import (
    label,
    listened_addresses,
    machine_addresses,
    machine_names,
    split_list,
    unique,
)

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How late a changed file, address or name shows in the certificate at most."""


class Network:
    """Certificate and name. Lives in the event loop.

    Attributes:
        https_port: where HTTPS is served; None when it is not.
    """

    def __init__(self, home: Home, config: Config, set_up: Callable[[], bool]) -> None:
        """Nothing happens yet.

        Args:
            home: of the box.
            config: the running one.
            set_up: whether the network is served at all; may block.
        """
        self._config = config
        self._set_up = set_up
        self._served = False
        self._plain: Sequence[Place] = ()
        self._secure: Sequence[Place] = ()
        self._task: asyncio.Task[None] | None = None
        self._announcer: Announcer | None = None
        self.https_port: int | None = None
        self.certificates = Certificates(home, config, self.names)

    def listens(self, plain: Sequence[Place], secure: Sequence[Place]) -> None:
        """Say where the box listens: addresses and ports for plain HTTP, and for HTTPS if that is served."""
        self._plain, self._secure = plain, secure
        self.https_port = _offered(secure)[0]

    @property
    def host(self) -> str | None:
        """The box's name on the network, as `shammah.local`; None when it has none."""
        host = self._announcer.host if self._announcer else None
        return f"{host}.local" if host else None

    async def start(self) -> None:
        """Get the certificate ready, then keep it so; tell the network the name."""
        if self.https_port is not None:
            await asyncio.to_thread(self.certificates.check)
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="certificates")
        self._announcer = Announcer(self._announcement, self.check)
        self._announcer.start()

    async def stop(self) -> None:
        """Take the name back."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._announcer is not None:
            await self._announcer.stop()

    async def check(self) -> None:
        """Look at the certificate now: a file, a setting or the name has changed."""
        if self.https_port is not None:
            await asyncio.to_thread(self.certificates.check)

    @property
    def title(self) -> str:
        """What the box is called."""
        return self._config.console.name

    @property
    def configured(self) -> tuple[str, ...]:
        """The names and addresses that the owner has set."""
        return tuple(name.lower() for name in split_list(self._config.tls.names))

    def names(self) -> tuple[str, ...]:
        """The names and addresses the box is reached by."""
        wished = f"{self._wished}.local"
        return unique(
            (
                *([self.host] if self.host else []),
                wished,
                *machine_names(),
                *self.configured,
                "localhost",
                *machine_addresses(),
                "127.0.0.1",
                "::1",
            )
        )

    @property
    def _wished(self) -> str:
        return self._config.mdns.name or label(self._config.console.name)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Exception:  # the next time may do
                logger.exception("The certificate could not be looked at")

    def _announcement(self) -> Announcement | None:
        """What the network is told: nothing, before it is served and while it cannot reach the box."""
        if not self._plain or not self._config.mdns.enabled:
            return None
        port, here = _offered(self._plain)
        _, secure = _offered(self._secure)
        # A password is never taken away again: it is not looked for any more once it was there.
        self._served = self._served or self._set_up()
        if not (here or secure) or not self._served:
            return None
        return Announcement(
            host=self._wished,
            title=self._config.console.name,
            addresses=unique((*here, *secure)),
            http=port if here else None,
            https=self.https_port if secure else None,
        )


def _offered(places: Sequence[Place]) -> tuple[int | None, tuple[str, ...]]:
    """The port that others are told, the first that they can reach, and the addresses that have it."""
    reached = [(port, found) for host, port in places if (found := listened_addresses(host))]
    ports = [port for port, _ in reached] or [port for _, port in places]
    if not ports:
        return None, ()
    return ports[0], unique(address for port, found in reached if port == ports[0] for address in found)
