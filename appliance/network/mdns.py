"""The box's name on the network: `shammah.local`, and what it serves, by multicast DNS.

Devices without a configured name server for it ask everybody on their network who has the name. The box
answers, and makes itself known as a service, which apps find without being told anything. Its addresses are
followed as they change. All of this is a convenience: where it cannot be had, that is said once, and serving
goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]
    AddressResolver,
    DNSAddress,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from appliance import __version__

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
RETRY_SECONDS = 60.0
PROBE_MS = 750
STOP_SECONDS = 3.0
MOST_NAMES = 20
INSTANCE_BYTES = 58
"""A label has 63; a number may have to follow."""


@dataclass(frozen=True)
class Announcement:
    """What the network is told.

    Attributes:
        host: the name wished for, without `.local`.
        title: what the box is called to people.
        addresses: where it is reached.
        http: the port of plain HTTP; None when that is not to be reached.
        https: the port of HTTPS; None when there is none.
        interfaces: addresses whose networks are told; empty for those in `addresses`.
    """

    host: str
    title: str
    addresses: tuple[str, ...]
    http: int | None
    https: int | None
    interfaces: tuple[str, ...] = ()


class Announcer:
    """Keeps the network told. Lives in the event loop.

    Attributes:
        host: the name the box has on the network, without `.local`; None while it has none.
    """

    def __init__(
        self, wanted: Callable[[], Announcement | None], renamed: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Nothing is said yet.

        Args:
            wanted: what the network is to be told now, None for nothing. Called in a thread, again and again.
            renamed: called when the box has got a name.
        """
        self._wanted = wanted
        self._renamed = renamed
        self._told: Announcement | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._task: asyncio.Task[None] | None = None
        self._problem = ""
        self._retry_at = 0.0
        self._losing = asyncio.Event()
        self.host: str | None = None

    def start(self) -> None:
        """Begin, as soon as there is something to tell."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="mdns")

    async def stop(self) -> None:
        """Take it all back."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._be_silent()

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception as error:  # whatever it is, it must not end this, nor be said every time
                await self._failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._losing.wait()

    async def _step(self) -> None:
        wanted = await asyncio.to_thread(self._wanted)
        lost, self._losing = self._losing.is_set(), asyncio.Event()
        if wanted == self._told and not lost:
            return
        if self._told is None and asyncio.get_running_loop().time() < self._retry_at:
            return
        await self._be_silent()
        if wanted is None:
            self.host = None
        else:
            await self._tell(wanted)

    async def _tell(self, wanted: Announcement) -> None:
        four = tuple(found for found in wanted.addresses if ip_address(found).version == 4)
        interfaces = wanted.interfaces or four or wanted.addresses
        version = IPVersion.V4Only if ip_address(interfaces[0]).version == 4 else IPVersion.V6Only
        self._zeroconf = AsyncZeroconf(interfaces=list(interfaces), ip_version=version)
        await self._zeroconf.zeroconf.async_wait_for_start()
        host = await _free_name(self._zeroconf.zeroconf, wanted)
        for service in _services(replace(wanted, host=host)):
            await self._zeroconf.async_register_service(service, allow_name_change=True)
        self._zeroconf.zeroconf.async_add_listener(_Rivals(host, wanted.addresses, self._losing.set), None)
        self._told, self._problem = wanted, ""
        if host != wanted.host:
            logger.warning("%s.local is another's on this network: this box is %s.local.", wanted.host, host)
        if host != self.host:
            logger.info("On the network this box is %s.local (%s).", host, ", ".join(wanted.addresses))
            self.host = host
            if self._renamed is not None:
                await self._renamed()

    async def _be_silent(self) -> None:
        zeroconf, self._zeroconf, self._told = self._zeroconf, None, None
        if zeroconf is None:
            return
        with suppress(Exception):  # the network it was told to may be gone
            async with asyncio.timeout(STOP_SECONDS):
                await zeroconf.async_unregister_all_services()
        with suppress(Exception):
            async with asyncio.timeout(STOP_SECONDS):
                await zeroconf.async_close()

    async def _failed(self, error: Exception) -> None:
        self._retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
        await self._be_silent()
        problem = f"{type(error).__name__}: {error}"
        if problem != self._problem:
            logger.warning(
                "The box cannot be found by its name on the network for now (%s); all else goes on.", problem
            )
        self._problem = problem


class _Rivals(RecordUpdateListener):
    """Hears of others that use the name: of two boxes that took it at once, one has to give way."""

    def __init__(self, host: str, addresses: tuple[str, ...], lost: Callable[[], None]) -> None:
        self._name = f"{host}.local."
        self._addresses = {ip_address(address) for address in addresses}
        self._lost = lost

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        rivals = {
            ip_address(update.new.address)
            for update in records
            if isinstance(update.new, DNSAddress)
            and update.new.name.lower() == self._name
            and not update.new.is_expired(now)
        } - self._addresses
        # Both hear of each other. The one with the lower address keeps the name.
        own = min(self._addresses, key=lambda address: (address.version, int(address)))
        if any((rival.version, int(rival)) < (own.version, int(own)) for rival in rivals):
            self._lost()

    def async_update_records_complete(self) -> None:
        """All of a message has been told."""


async def _free_name(zeroconf: Zeroconf, wanted: Announcement) -> str:
    """The name wished for, or with the first number that nobody else has."""
    own = set(wanted.addresses)
    for number in range(1, MOST_NAMES):
        host = wanted.host if number == 1 else f"{wanted.host}-{number}"
        resolver = AddressResolver(f"{host}.local.")
        taken = await resolver.async_request(zeroconf, PROBE_MS)
        # Another program on this machine may answer for it: that is this machine all the same.
        if not taken or set(resolver.parsed_addresses()) <= own:
            return host
    raise OSError(f"{wanted.host}.local and all its numbers are taken")


def _services(wanted: Announcement) -> list[ServiceInfo]:
    title = wanted.title.replace(".", " ").encode()[:INSTANCE_BYTES].decode(errors="ignore").strip()
    properties: dict[str | bytes, Any] = {
        "path": "/",
        "api": "/v1",
        "version": __version__,
        "ca": "/trust/ca.pem",
    }
    if wanted.https is not None:
        properties["https"] = str(wanted.https)
    return [
        ServiceInfo(
            f"_{kind}._tcp.local.",
            f"{title or wanted.host}._{kind}._tcp.local.",
            port=port,
            properties=properties,
            server=f"{wanted.host}.local.",
            parsed_addresses=list(wanted.addresses),
        )
        for kind, port in (("http", wanted.http), ("https", wanted.https))
        if port is not None
    ]
