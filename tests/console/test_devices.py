"""Devices in a real browser: a key that is shown once, limits, usage, shutting out and forgetting."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from browsing import FIRST, NASTY, PHONE, SECOND, check_sound, opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.store import Store
from appliance.store.filter import Filter
from appliance.store.keys import Device
from appliance.store.usage import HOUR, KEYLESS, UsagePoint

OpenPage = Callable[..., Page]
HOSTILE = NASTY[:64]
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def store(box: Daemon) -> Iterator[Store]:
    with opened(box.home) as found:
        yield found


def ask(box: Daemon, key: str, model: str = "shammah") -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Where is the ladder?"}],
        "max_tokens": 4,
    }
    return box.post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {key}"})


def post(box: Daemon, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(box.url + path, data=fields, headers=OWN, timeout=60)


def known(store: Store, name: str) -> Device:
    return next(device for device in store.keys.list() if device.name == name)


def last_act(store: Store) -> tuple[str, dict[str, Any]]:
    entry = store.audit.list(1)[0]
    return entry.action, entry.detail


def test_an_empty_box_says_what_to_do(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(daemon.url + "/devices")
    expect(page.locator("#devices")).to_contain_text("No device has a key yet.")
    expect(page.locator("#devices")).to_contain_text("This machine")
    page.get_by_role("link", name="This machine").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("This machine")
    expect(page.get_by_text("Nothing asked in the last 30 days.")).to_be_visible()
    assert page.locator("form[action^='/devices']").count() == 0


def test_a_key_is_shown_once_and_nowhere_else(box: Daemon, store: Store, open_page: OpenPage) -> None:
    page = open_page(box.url + "/devices", PHONE)
    page.get_by_label("Name").fill(f" {HOSTILE} ")
    with page.expect_response(lambda response: response.request.method == "POST") as caught:
        page.get_by_role("button", name="Make its key").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"The key of {HOSTILE}")
    key = page.locator("#key").inner_text()
    assert re.fullmatch(r"sk-shammah-[\w-]{43}", key)
    page.get_by_text("curl", exact=True).click()
    command = page.locator("#snippet-curl").inner_text()
    assert command.startswith(f"curl {box.url}/v1/chat/completions")
    assert f"Bearer {key}" in command
    check_sound(page, "device-key")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the key").click()
    expect(page.get_by_role("button", name="Copied")).to_be_focused()
    assert page.evaluate("navigator.clipboard.readText()") == key
    # As on a network without HTTPS, where pages have no clipboard.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy the curl example").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(2)

    response = caught.value
    assert response.status == 200
    assert response.headers["cache-control"] == "no-store"
    assert "set-cookie" not in response.headers
    assert key not in page.url
    assert {cookie["name"] for cookie in page.context.cookies()} <= {"shammah-zone"}
    device = known(store, HOSTILE)
    assert last_act(store) == (
        "console.key.created",
        {"device": device.id, "name": HOSTILE, "collect": True, "address": "127.0.0.1"},
    )
    assert ask(box, key).status_code == 200
    # Reloading sends the form again: no second key, and not the first one either.
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("a key is shown only once")
    expect(page.get_by_label("Name")).to_have_value(HOSTILE)
    assert key not in page.content()
    page.goto(box.url + "/devices")
    page.go_back()
    assert key not in page.content()
    assert [item.name for item in store.keys.list()].count(HOSTILE) == 1
    files = [
        path for path in box.home.root.rglob("*") if path.is_file() and box.home.models not in path.parents
    ]
    assert [path.name for path in files if key.encode() in path.read_bytes()] == []


def test_the_copy_buttons_need_scripts_and_the_rest_does_not(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/devices", scripts=False)
    page.get_by_label("Name").fill("Radio")
    page.get_by_label("Learn from what it asks").uncheck()
    page.get_by_role("button", name="Make its key").click()
    assert page.get_by_role("button", name="Copy").count() == 0
    assert ask(box, page.locator("#key").inner_text()).status_code == 200
    page.get_by_role("link", name="Devices", exact=True).last.click()
    row = page.locator("#devices li", has_text="Radio")
    expect(row).to_contain_text("Not learned from")
    expect(row.locator("dd").nth(0)).to_have_text("1")
    expect(row.locator("dd").nth(1)).not_to_have_text("0")


def test_names_that_cannot_be(box: Daemon, store: Store) -> None:
    before = store.keys.list()
    for name, status, said in (
        ("", 400, "1 to 64 printable"),
        ("x" * 65, 400, "1 to 64 printable"),
        ("a\nb", 400, "1 to 64 printable"),
        (HOSTILE, 409, "already"),
    ):
        response = post(box, "/devices", name=name)
        assert response.status_code == status
        assert said in response.text
        assert "sk-shammah-" not in response.text
        assert "<script>alert" not in response.text
    assert store.keys.list() == before


def test_the_owner_lets_a_device_teach_others(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, _ = store.keys.create("Phone")
    assert device.teach is False
    page = open_page(f"{box.url}/devices/{device.id}", PHONE, scripts=False)
    page.get_by_label("It may teach others").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("next request")
    expect(page.get_by_label("It may teach others")).to_be_checked()
    assert store.keys.get(device.id).teach is True
    assert last_act(store)[1]["changed"] == {"teach": [False, True]}
    page.goto(box.url + "/devices")
    expect(page.locator("#devices li", has_text="Phone")).to_contain_text("May teach others")


def test_bounds_hold_at_once(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, key = store.keys.create("Guests")
    page = open_page(f"{box.url}/devices/{device.id}", PHONE, scripts=False)
    page.get_by_label("Name").fill("Guest room")
    page.get_by_label("Requests a minute").fill("1")
    page.get_by_label("Learn from what it asks").uncheck()
    page.get_by_label("Only these:").check()
    page.get_by_label("The base model").check()
    page.get_by_label(FIRST).check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("next request")
    expect(page.get_by_role("heading", level=1)).to_have_text("Guest room")
    expect(page.get_by_label("Requests a minute")).to_have_value("1")
    for label, checked in (("The base model", True), (FIRST, True), ("What is in service", False)):
        expect(page.get_by_label(label)).to_be_checked(checked=checked)
    changed = store.keys.get(device.id)
    names = ("shammah:base", f"shammah:{FIRST}")
    assert (changed.name, changed.collect, changed.rate, changed.models) == ("Guest room", False, 1, names)
    action, detail = last_act(store)
    assert action == "console.key.changed"
    assert detail["changed"] == {
        "name": ["Guests", "Guest room"],
        "collect": [True, False],
        "rate": [None, 1],
        "models": [None, list(names)],
    }
    assert ask(box, key).status_code == 403  # refused, which does not count
    assert ask(box, key, "shammah:base").status_code == 200
    assert ask(box, key, "shammah:base").status_code == 429
    page.goto(box.url + "/devices")
    row = page.locator("#devices li", has_text="Guest room")
    expect(row).to_contain_text("1 a minute")
    expect(row).to_contain_text("2 models only")
    page.get_by_role("link", name="Guest room").click()
    expect(page.locator(".facts")).to_contain_text("1 over its limit refused")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-info")).to_contain_text("Nothing was changed.")
    page.get_by_label("Requests a minute").fill("")
    page.get_by_label("All of them").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_be_visible()
    assert ask(box, key).status_code == 200


def test_bounds_that_cannot_be(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device = store.keys.create("Attic")[0]
    path = f"/devices/{device.id}"
    for fields, status, said in (
        ({"name": ""}, 400, "1 to 64 printable"),
        ({"name": HOSTILE}, 409, "already"),
        ({"rate": "0"}, 400, "1 to 6000"),
        ({"rate": "6001"}, 400, "1 to 6000"),
        ({"rate": "ten"}, 400, "whole number"),
        ({"rate": "9" * 5000}, 400, "whole number"),
        ({"which": "some"}, 400, "one model at least"),
        ({"which": "some", "models": "x" * 300}, 400, "by name"),
        ({"which": "some", "models": [f"m{number}" for number in range(300)]}, 400, "by name"),
    ):
        response = post(box, path, **{"name": "Attic", "collect": "yes", "which": "all", **fields})
        assert response.status_code == status, fields
        assert said in response.text
        assert "<script>alert" not in response.text
    assert store.keys.get(device.id) == device
    for act in ("", "/revoke", "/forget"):
        for ident in ("dev_none", "this-machine", "%00", "..%2fkeys"):
            status = 400 if ident == "%00" else 404
            assert post(box, f"/devices/{ident}{act}", name="x").status_code == status
    assert httpx.get(f"{box.url}/devices/dev_none").status_code == 404
    # What was typed is not lost, and the field at fault says so.
    page = open_page(box.url + path)
    page.get_by_label("Name").fill("Loft")
    page.get_by_label("Only these:").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("one model at least")
    expect(page.get_by_label("Name")).to_have_value("Loft")
    expect(page.get_by_label("Only these:")).to_be_checked()


def test_usage_over_time(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device = store.keys.create("Kitchen tablet")[0]
    store.keys.change(device.id, name="Kitchen tablet", collect=True, models=["shammah:adapter_gone"], rate=9)
    now = time.time()
    points = [
        UsagePoint(now - hour * HOUR, 1 + hour % 4, 100 * (hour % 5), 20, 2.0) for hour in range(24 * 29)
    ]
    store.usage.add([(device.id, point) for point in points])
    store.usage.add([(KEYLESS, UsagePoint(now, 12_345, 0, 0, 0.0))])
    page = open_page(box.url + "/devices")
    row = page.locator(f"#{device.id}")
    assert row.locator("dd").all_inner_texts() == ["60", "5,080", "1,740", "152,920"]
    expect(page.locator("#this-machine")).to_contain_text("12,34")
    check_sound(page, "devices")
    row.get_by_role("link").click()
    expect(page.locator("svg[role=img]")).to_have_count(4)
    facts = page.locator(".facts")
    expect(facts).to_contain_text("60 requests, 4,600 tokens read and 480 written, 10.0 a second")
    expect(page.get_by_label("not here any more")).to_be_checked()
    for fold in page.locator("main details").all():
        fold.evaluate("element => { element.open = true }")
    check_sound(page, "device")
    table = page.get_by_role("group", name="Figures of Requests by the day").get_by_role("row")
    expect(table).to_have_count(31)


def test_the_list_is_live(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, key = store.keys.create("Clock")
    page = open_page(box.url + "/devices")
    row = page.locator(f"#{device.id}")
    expect(row).to_contain_text("Has not asked anything yet")
    ask(box, key)
    expect(row).to_contain_text("Last seen")
    expect(row.locator("dd").nth(0)).to_have_text("1")


def test_revoked_is_refused_and_folded_away(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, key = store.keys.create(f"Old {HOSTILE}"[:64])
    page = open_page(f"{box.url}/devices/{device.id}", scripts=False)
    page.get_by_text("Revoke its key").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(page.locator(".flash-good")).to_contain_text("refused from now on")
    assert ask(box, key).status_code == 401
    action, detail = last_act(store)
    assert (action, detail["device"]) == ("console.key.revoked", device.id)
    expect(page.locator(f"#{device.id}")).not_to_be_visible()
    page.get_by_text("Revoked keys (1)").click()
    page.locator(f"#{device.id}").get_by_role("link").click()
    expect(page.get_by_text("This key is revoked")).to_be_visible()
    assert page.get_by_role("button", name="Save").count() == 0
    acts = store.audit.list()
    assert post(box, f"/devices/{device.id}/revoke").status_code == 303
    assert post(box, f"/devices/{device.id}", name="x").status_code == 409
    assert store.audit.list() == acts
    assert httpx.post(f"{box.url}/devices/{device.id}/revoke").status_code == 403


def test_forgetting_what_it_said(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, key = store.keys.create("Diary")
    assert ask(box, key).status_code == 200
    page = open_page(f"{box.url}/devices/{device.id}", scripts=False)
    page.get_by_text("Forget all it said").click()
    page.get_by_role("button", name="Forget all that Diary said").click()
    expect(page.locator(".flash-good")).to_contain_text("Forgotten: 1 example and 1 stored answer.")
    expect(page.locator(".facts")).to_contain_text("none")
    assert [row for row in store.completions.recent(100) if row.device == device.id] == []
    action, detail = last_act(store)
    assert (action, detail["device"], detail["retrain"]) == ("examples.forget", device.id, False)
    # Its key stays good, and what it asked is still counted.
    assert ask(box, key).status_code == 200
    deadline = time.monotonic() + 20
    while not store.browse.count(Filter(device=device.id)).count:  # collected a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page.reload()
    expect(page.locator(".facts")).to_contain_text("2 requests")
    examples = page.get_by_role("link", name="1 example")
    expect(examples).to_have_attribute("href", f"/queue?device={device.id}")

    # An adapter that learned from it is given up only when that is asked for.
    run = store.runs.create("person", 1)
    store.runs.update(run.id, state="promoted", adapter=SECOND)
    learned = store.adapters.get(SECOND)
    assert learned is not None
    store.adapters.upsert(replace(learned, run_id=run.id))
    for example in store.browse.each(Filter(device=device.id)):
        store.examples.update(example.id, state="used", run_id=run.id)
    page.get_by_text("Forget all it said").click()
    page.get_by_role("button", name="Forget all that Diary said").click()
    expect(page.locator(".flash-good")).to_contain_text(f"{SECOND} learned from them before")
    assert box.home.adapters.joinpath(f"{SECOND}.safetensors").exists()
    page.get_by_text("Forget all it said").click()
    page.get_by_label("Give up what was learned from it, too").check()
    page.get_by_role("button", name="Forget all that Diary said").click()
    expect(page.locator(".flash-good")).to_contain_text(f"is given up: {SECOND}")
    assert not box.home.adapters.joinpath(f"{SECOND}.safetensors").exists()


def test_many_devices_stay_quick_and_small(box: Daemon, store: Store) -> None:
    with store.transaction():
        for number in range(200):
            device = store.keys.create(f"sensor {number}")[0]
            if number >= 50:
                store.keys.revoke(device.id)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        response = httpx.get(f"{box.url}/devices")
        times.append(time.perf_counter() - began)
    assert "older ones" in response.text
    assert len(response.content) < 300_000
    assert min(times) < 0.5
