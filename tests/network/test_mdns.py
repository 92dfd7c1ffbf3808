"""The box's name by multicast DNS, on loopback: found, given way, taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from appliance.network import mdns
from appliance.network.mdns import Announcement, Announcer

HERE = ("127.0.0.1",)
BOX = Announcement("shammah-test", "Kitchen box", HERE, 8080, 8443, HERE)
WAITED = 30.0


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAITED):
        while not condition():
            await asyncio.sleep(0.05)


async def test_it_is_found_follows_and_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "CHECK_SECONDS", 0.1)
    told: list[Announcement | None] = [None]
    box = Announcer(lambda: told[0])
    box.start()
    other = AsyncZeroconf(interfaces=list(HERE))
    seen: set[str] = set()

    def change(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        (seen.discard if state_change.name == "Removed" else seen.add)(name)

    browser = AsyncServiceBrowser(
        other.zeroconf, ["_http._tcp.local.", "_https._tcp.local."], handlers=[change]
    )
    name = "Kitchen box._https._tcp.local."
    await asyncio.sleep(0.3)
    assert box.host is None  # nothing is said before it may be
    told[0] = BOX
    await until(lambda: name in seen and "Kitchen box._http._tcp.local." in seen)
    found = await other.async_get_service_info("_https._tcp.local.", name)
    assert found is not None
    assert (found.server, found.port, found.parsed_addresses()) == (
        "shammah-test.local.",
        8443,
        ["127.0.0.1"],
    )
    assert found.properties[b"api"] == b"/v1"
    assert found.properties[b"path"] == b"/"

    told[0] = Announcement("shammah-test", "Attic", ("127.0.0.1", "192.0.2.7"), 8080, None, HERE)
    await until(lambda: seen == {"Attic._http._tcp.local."})
    await box.stop()
    await until(lambda: not seen)
    await browser.async_cancel()
    await other.async_close()


async def test_of_two_boxes_with_one_name_the_second_gets_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "CHECK_SECONDS", 0.1)
    renamed: list[str | None] = []

    async def note() -> None:
        renamed.append(second.host)

    first = Announcer(lambda: BOX)
    second = Announcer(lambda: Announcement("shammah-test", "Other", ("127.0.0.2",), 8080, None, HERE), note)
    first.start()
    await until(lambda: first.host)
    second.start()
    await until(lambda: second.host)
    assert (first.host, second.host, renamed) == ("shammah-test", "shammah-test-2", ["shammah-test-2"])
    await second.stop()
    await first.stop()


# zeroconf leaves the socket that it had opened first to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_without_multicast_it_is_said_once_and_all_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mdns, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(mdns, "RETRY_SECONDS", 0.1)
    nowhere = ("203.0.113.77",)  # no address of this machine: its socket cannot be had
    box = Announcer(lambda: Announcement("shammah-test", "Box", nowhere, 8080, None, nowhere))
    box.start()
    await asyncio.sleep(1)
    assert caplog.text.count("cannot be found") == 1
    assert box.host is None
    await box.stop()
