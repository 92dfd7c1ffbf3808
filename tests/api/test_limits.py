"""What a device may do, and what is counted of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from daemons import Daemon, StartDaemon, accept_adapter

from appliance.api.answer import Answer, Choice
from appliance.api.limits import Limits
from appliance.api.meter import Meter
from appliance.errors import RateLimited, StorageFull
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.keys import Device
from appliance.store.usage import HOUR, KEYLESS, UsagePoint

ASK = [{"role": "user", "content": "Name three colours."}]
OTHER = "adapter_20261101T080000Z"


@pytest.fixture
def store(daemon: Daemon) -> Iterator[Store]:
    opened = Store.open(daemon.home)
    yield opened
    opened.close()


def ask(daemon: Daemon, key: str | None, **options: Any) -> httpx.Response:
    body = {"model": "shammah", "messages": ASK, "max_tokens": 6, "temperature": 0, **options}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return daemon.post("/v1/chat/completions", body, headers=headers)


def limit(store: Store, device: Device, **fields: Any) -> None:
    given = {"name": device.name, "collect": device.collect, "models": None, "rate": None}
    store.keys.change(device.id, **(given | fields))


def used(store: Store, device: str, want: int) -> UsagePoint:
    """What the store has of a device, once it has counted so many requests, refused ones among them."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        point = store.usage.totals(time.time() - HOUR).get(device, UsagePoint(0))
        if point.requests + point.refused >= want:
            return point
        time.sleep(0.1)
    pytest.fail(f"{want} requests of {device!r} were not counted")


def test_a_refused_request_costs_nothing(daemon: Daemon, store: Store) -> None:
    device, key = store.keys.create("two a minute")
    limit(store, device, rate=2)
    headers = {"Authorization": f"Bearer {key}"}
    for path, body in (
        ("/v1/chat/completions", {"model": "shammah", "messages": "no list"}),
        ("/v1/chat/completions", {"model": "no such", "messages": ASK}),
        ("/v1/chat/completions", {"model": "shammah", "messages": ASK, "temperature": 99}),
        ("/v1/feedback", {"query": "?", "response": "", "weight": "nonsense"}),
        ("/v1/nothing", {}),
    ):
        assert 400 <= daemon.post(path, body, headers=headers).status_code < 499, path
    assert daemon.post("/v1/chat/completions", headers=headers, content=b"{").status_code == 400
    assert ask(daemon, key).status_code == 200
    assert ask(daemon, key).status_code == 200
    assert ask(daemon, key).status_code == 429
    store.keys.revoke(device.id)


def test_nonsense_counts_in_the_end() -> None:
    limits, device = Limits(), Device("dev_1", "Kitchen", 0.0, None, True, False, rate=6)
    refused = 0
    with pytest.raises(RateLimited):
        for _ in range(1000):
            limits.take(device, 0.0)
            limits.give_back(device)
            refused += 1
    assert refused == 66  # ten times its rate, and then as many as it may send
    limits.take(device, 30.0)  # later it may again
    limits.give_back(device)


# -- the bucket -----------------------------------------------------------------------------------


def device(rate: int | None, ident: str = "dev_a") -> Device:
    return Device(ident, "phone", 0.0, None, True, False, None, rate)


def passes(limits: Limits, asking: Device, now: float) -> int:
    """0 when a request passes, else the seconds to wait."""
    try:
        limits.take(asking, now)
    except RateLimited as error:
        return error.retry_after
    return 0


def test_a_full_bucket_and_then_one_by_one() -> None:
    limits = Limits()
    assert [passes(limits, device(3), 100.0) for _ in range(5)] == [0, 0, 0, 20, 20]
    assert passes(limits, device(3), 119.0) == 1
    assert passes(limits, device(3), 120.0) == 0
    assert passes(limits, device(3), 120.0) == 20
    # After a long pause it is full, not more.
    assert [passes(limits, device(3), 10_000.0) for _ in range(4)] == [0, 0, 0, 20]


def test_each_device_has_its_own_and_a_new_limit_holds_at_once() -> None:
    limits = Limits()
    assert [passes(limits, device(1), 0.0) for _ in range(2)] == [0, 60]
    assert passes(limits, device(1, "dev_b"), 0.0) == 0
    assert [passes(limits, device(None), 0.0) for _ in range(100)] == [0] * 100
    assert [passes(limits, device(2), 0.0) for _ in range(3)] == [0, 0, 30]
    assert passes(limits, device(1), 29.5) == 31
    assert [passes(limits, device(6), 29.5) for _ in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("rate", [1, 7, 59, 77, 6000])
def test_no_request_is_lost_to_rounding(rate: int) -> None:
    limits = Limits()
    assert [passes(limits, device(rate), 5.0) for _ in range(rate)] == [0] * rate
    assert passes(limits, device(rate), 5.0) == math.ceil(60 / rate)
    assert [passes(limits, device(rate), 5.0 + 60 / rate * turn) for turn in range(1, 50)] == [0] * 49


# -- the meter ------------------------------------------------------------------------------------


def answer(prompt: int, *completion: int) -> Answer:
    choices = [Choice(index, completion_tokens=count) for index, count in enumerate(completion)]
    return Answer("id", "shammah", choices, prompt_tokens=prompt)


@pytest.fixture
def own(home: Home) -> Iterator[Store]:
    opened = Store.open(home)
    yield opened
    opened.close()


def test_the_meter_gathers_and_stop_writes_the_rest(own: Store) -> None:
    writes: list[frozenset[str]] = []
    own.on_change(writes.append)
    meter = Meter(own, every=60)

    def work(asking: Device | None) -> None:
        for _ in range(50):
            with meter.answering(asking, answer(10, 3, 4)):
                pass

    threads = [threading.Thread(target=work, args=(who,)) for who in (None, device(None)) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(ValueError, match="left"), meter.answering(None, answer(10, 1)):
        raise ValueError("left")
    assert writes == []
    meter.stop()
    meter.stop()
    assert len(writes) == 1
    found = own.usage.totals(time.time() - HOUR)
    assert (found["dev_a"].requests, found["dev_a"].prompt_tokens) == (150, 1500)
    assert found["dev_a"].completion_tokens == 150 * 7
    assert (found[KEYLESS].requests, found[KEYLESS].completion_tokens) == (151, 150 * 7 + 1)


def test_the_meter_writes_by_itself(own: Store) -> None:
    meter = Meter(own, every=0.02)
    for count in (1, 2):
        meter.refused(device(5))
        assert used(own, "dev_a", count).refused == count
    meter.stop()


def test_what_the_disk_has_no_room_for_is_kept(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(own, every=60)
    meter.refused(device(5))
    with monkeypatch.context() as patch:
        patch.setattr(own.usage, "add", _full)
        meter.flush()
        meter.refused(device(5))
        meter.flush()
    assert own.usage.totals(0) == {}
    meter.stop()
    assert own.usage.totals(0)["dev_a"].refused == 2


def _full(counted: object) -> None:
    raise StorageFull("no room")


# -- through the API --------------------------------------------------------------------------------


def test_too_many_requests(daemon: Daemon, store: Store) -> None:
    phone, key = store.keys.create("phone <b>")
    limit(store, phone, rate=2)
    for _ in range(2):
        assert ask(daemon, key).status_code == 200
    refused = ask(daemon, key)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="shammah", prompt="a", max_tokens=1)
    # Looking is free, others are not concerned, and a limit that is lifted is lifted at once.
    assert client.models.list().data
    assert ask(daemon, None).status_code == 200
    assert ask(daemon, store.keys.create("tablet")[1]).status_code == 200
    limit(store, phone)
    assert ask(daemon, key).status_code == 200
    point = used(store, phone.id, 5)
    assert (point.requests, point.refused) == (3, 2)


def test_only_what_it_is_allowed(daemon: Daemon, store: Store, bundle: Bundle) -> None:
    accept_adapter(daemon.home, bundle, OTHER, 3, only="o_proj")
    phone, key = store.keys.create("child's tablet")
    bearer = {"Authorization": f"Bearer {key}"}

    def listed() -> list[str]:
        return [model["id"] for model in daemon.get("/v1/models", headers=bearer).json()["data"]]

    own = bundle.manifest.name
    assert listed() == ["shammah", own, "shammah:base", f"shammah:{OTHER}"]
    limit(store, phone, models=["shammah"])
    assert listed() == ["shammah", own]
    for name in ("shammah", "shammah:current", own):
        assert ask(daemon, key, model=name).status_code == 200
    for name in ("shammah:base", f"shammah:{OTHER}", "gpt-4"):
        refused = ask(daemon, key, model=name)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert refused.json()["error"]["param"] == "model"
        assert f"'shammah' or '{own}'" in refused.json()["error"]["message"]
        assert daemon.get(f"/v1/models/{name}", headers=bearer).status_code == 404
    completion = {"model": "shammah:base", "prompt": "a", "max_tokens": 1}
    assert daemon.post("/v1/completions", completion, headers=bearer).status_code == 403
    limit(store, phone, models=["shammah:base", f"shammah:{OTHER}"])
    assert listed() == ["shammah:base", f"shammah:{OTHER}"]
    assert ask(daemon, key, model=f"shammah:{OTHER}").status_code == 200
    assert ask(daemon, key, model="shammah:base").status_code == 200
    assert ask(daemon, key).status_code == 403
    # What is allowed may have gone.
    limit(store, phone, models=["shammah:adapter_gone"])
    assert listed() == []
    assert ask(daemon, key, model="shammah:adapter_gone").status_code == 404
    assert "none that is still here" in ask(daemon, key).json()["error"]["message"]


def test_all_is_counted_whether_kept_or_not(daemon: Daemon, store: Store) -> None:
    quiet, key = store.keys.create("quiet", collect=False)
    whole = ask(daemon, key, n=2, store=False).json()["usage"]
    body = {"model": "shammah", "messages": ASK, "max_tokens": 6, "temperature": 0, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    completion = {"model": "shammah", "prompt": "a", "max_tokens": 3, "temperature": 0}
    plain = daemon.post("/v1/completions", completion, headers=headers).json()["usage"]
    assert ask(daemon, key, messages=[]).status_code == 400  # never got as far
    # Who leaves has had what was written until then.
    body |= {"max_tokens": 4000, "temperature": 1.5}
    with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, headers=headers) as response:
        next(response.iter_lines())
    point = used(store, quiet.id, 4)
    assert (point.requests, point.refused) == (4, 0)
    assert point.prompt_tokens == 3 * whole["prompt_tokens"] + plain["prompt_tokens"]
    sure = whole["completion_tokens"] + whole["completion_tokens"] // 2 + plain["completion_tokens"]
    assert point.completion_tokens > sure
    assert 0 < point.seconds < 60
    assert [row for row in store.completions.recent(100) if row.device == quiet.id and row.query] == []


def test_stopping_writes_what_was_counted(start_daemon: StartDaemon) -> None:
    box = start_daemon("[lora]\nenabled = false")
    box.ask("Name three colours.")
    box.stop()
    store = Store.open(box.home)
    assert store.usage.totals(time.time() - HOUR)[KEYLESS].requests == 1
    store.close()
