"""What a box tells of itself: ids that go all the way, lines of the log, figures for Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from daemons import Daemon, install_bundle
from prometheus_client.parser import text_string_to_metric_families

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.owner import set_password

ROOT = Path(__file__).parents[2]
FROM_ELSEWHERE = {"X-Forwarded-For": "10.0.0.5"}
ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]
CONFIG = """[lora]
enabled = false
[server]
log_level = "DEBUG"
log_format = "json"
"""
PATIENCE = 30.0
LABELS = {"endpoint", "status", "caller", "code", "outcome", "state", "le", "cause", "by", "verdict", "kind",
          "level", "program", "model", "adapter", "version", "python", "onnxruntime",
          "shammah_last_run_state"}  # fmt: skip
"""All of few values, but for the adapter: one at a time."""


@pytest.fixture(scope="module")
def box(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that has an owner and writes JSON."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    store = Store.open(home)
    set_password(store, "correct horse battery")
    store.close()
    running = Daemon(home).start()
    yield running
    running.kill()


@pytest.fixture
def key(box: Daemon) -> Iterator[str]:
    store = Store.open(box.home)
    device, secret = store.keys.create(f"phone {time.monotonic_ns()}")
    yield secret
    store.keys.revoke(device.id)
    store.close()


def lines(box: Daemon, request: str, logger: str = "appliance.access") -> list[dict[str, Any]]:
    """What a logger said of a request, as soon as it did."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        said = [json.loads(line) for line in box.log.splitlines() if line.startswith("{")]
        if found := [line for line in said if line.get("request") == request and line["logger"] == logger]:
            return found
        time.sleep(0.05)
    pytest.fail(f"nothing about {request} in:\n{box.log[-3000:]}")


def figures(box: Daemon) -> dict[str, float]:
    """Name with labels -> value, as Prometheus would read it."""
    found = {}
    for family in text_string_to_metric_families(box.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


# -- ids --------------------------------------------------------------------------------------


def test_a_client_knows_its_request(box: Daemon, key: str) -> None:
    client = openai.OpenAI(base_url=f"{box.url}/v1", api_key=key, max_retries=0)
    answer = client.chat.completions.create(model="shammah", messages=ASK, max_tokens=5)
    made = answer._request_id
    assert made is not None
    assert re.fullmatch(r"req_[0-9a-f]{24}", made)
    (line,) = lines(box, made)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["caller"], line["client"], line["adapter"]) == ("device", "127.0.0.1", "base")
    assert answer.usage is not None
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert line["completion_tokens"] == answer.usage.completion_tokens
    assert line["completion"] == answer.id
    assert line["seconds"] > 0
    store = Store.open(box.home)
    assert line["device"] in {device.id for device in store.keys.list()}
    store.close()
    # Neither what was asked nor what was answered is in the log.
    assert "three colours" not in box.log
    # A client may choose it; errors and streams tell it as well.
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nothing", extra_headers={"X-Request-ID": "trace/42"})
    assert error.value.request_id == "trace/42"
    assert lines(box, "trace/42")[0]["status"] == 404
    raw = client.chat.completions.with_raw_response.create(
        model="shammah", messages=ASK, max_tokens=5, stream=True, extra_headers={"X-Request-ID": "stream-1"}
    )
    assert raw.request_id == "stream-1"
    list(raw.parse())
    (line,) = lines(box, "stream-1")
    assert line["completion_tokens"] > 0
    assert line["finish"] in ("stop", "length")


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "-begins", "höher", "a;b", '"quoted"', "a\tb"])
def test_an_odd_id_is_replaced(box: Daemon, sent: str) -> None:
    found = box.get("/v1/models", headers={"X-Request-ID": sent.encode("latin-1")})  # type: ignore[dict-item]
    assert re.fullmatch(r"req_[0-9a-f]{24}", found.headers["x-request-id"])


@pytest.mark.parametrize(
    "path", ["/", "/login", "/v1/nothing", "/nothing", "/static/x/console.css", "/metrics"]
)
def test_every_response_has_an_id(box: Daemon, path: str) -> None:
    assert box.get(path, headers={**FROM_ELSEWHERE, "X-Request-ID": "mine"}).headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: much\r\n\r\n",
        b"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_no_request_has_one_too(box: Daemon, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", box.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = connection.makefile("rb").read(2000)
    assert re.search(rb"\r\nx-request-id: req_[0-9a-f]{24}\r\n", answer, re.IGNORECASE), answer


def test_a_client_that_leaves(box: Daemon) -> None:
    client = openai.OpenAI(base_url=f"{box.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"messages": ASK, "max_tokens": 400, "stream": True, "temperature": 1.5}
    with client.chat.completions.create(
        model="shammah", extra_headers={"X-Request-ID": "leaves"}, **options
    ) as stream:
        next(iter(stream))
    (line,) = lines(box, "leaves")
    assert line["finish"] in ("cut", "stop")  # the model may have been faster


def test_the_address_is_not_logged(box: Daemon) -> None:
    secret = "sk-secret-in-a-query"
    box.get(f"/v1/models?key={secret}%0A2026", headers={"X-Request-ID": "query"})
    box.get(f"/{secret}/x", headers={"X-Request-ID": "path"})
    assert lines(box, "query")[0]["route"] == "/v1/models"
    assert lines(box, "path")[0]["route"] == "none"
    assert secret not in box.log
    assert secret not in box.get("/metrics").text


# -- figures ----------------------------------------------------------------------------------


def test_figures_are_for_those_who_may(box: Daemon, key: str) -> None:
    assert box.get("/metrics").status_code == 200  # this machine
    assert box.get("/metrics", headers=FROM_ELSEWHERE).status_code == 401
    bearer = {**FROM_ELSEWHERE, "Authorization": f"Bearer {key}"}
    assert box.get("/metrics", headers=bearer).status_code == 200
    assert box.get("/metrics", headers={**bearer, "Authorization": f"Bearer {key}x"}).status_code == 401
    # Supervisors ask without a key; what was learned is not told to everybody.
    assert box.get("/ready", headers=FROM_ELSEWHERE).json() == {"status": "ready"}
    for allowed, (without, with_key) in {"local": (401, 403), "open": (200, 200), "key": (401, 200)}.items():
        box.home.config.write_text(f'{CONFIG}metrics = "{allowed}"\n')
        os.kill(box.pid, signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while box.get("/metrics", headers=FROM_ELSEWHERE).status_code != without:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert box.get("/metrics", headers=bearer).status_code == with_key
        assert box.get("/metrics").status_code == 200


def test_what_happens_is_counted(box: Daemon, key: str) -> None:
    before = figures(box)
    box.ask("Name a colour.", max_tokens=8)
    box.post("/v1/chat/completions", {"model": "shammah", "messages": []})
    box.post("/login", headers={"Origin": box.url, "Host": f"127.0.0.1:{box.port}"})
    store = Store.open(box.home)
    device = next(device for device in store.keys.list() if not device.revoked)
    store.keys.change(device.id, name=device.name, collect=True, models=None, rate=1)
    store.close()
    codes = [
        box.post(
            "/v1/chat/completions",
            {"model": "shammah", "messages": ASK, "max_tokens": 2},
            headers={"Authorization": f"Bearer {key}"},
        ).status_code
        for _ in range(2)
    ]
    assert codes == [200, 429]
    deadline = time.monotonic() + PATIENCE
    while True:
        after = figures(box)
        rise = {name: value - before.get(name, 0.0) for name, value in after.items()}
        if rise["shammah_exchanges_total{outcome=collected}"] >= 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert rise["shammah_engine_requests_total"] == 2
    assert rise["shammah_engine_first_token_seconds_count"] == 2
    assert rise["shammah_engine_queue_wait_seconds_count"] == 2
    assert 1 <= rise["shammah_engine_next_token_seconds_count"] <= 8
    assert rise["shammah_http_refused_total{code=rate_limit_exceeded}"] == 1
    assert rise["shammah_logins_total{outcome=failed}"] == 1
    endpoint = "shammah_http_responses_total{caller=%s,endpoint=/v1/chat/completions,status=%d}"
    assert [rise[endpoint % at] for at in (("device", 200), ("device", 429))] == [1, 1]
    assert after["shammah_examples{state=pending}"] >= 2
    assert after["shammah_queue_oldest_seconds"] > 0
    assert after["shammah_healthy"] == 1
    assert rise["shammah_store_commit_seconds_count"] > 0
    assert after["process_open_fds"] > 0


def test_every_figure_is_documented_and_well_named(box: Daemon) -> None:
    shown = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    text = shown[shown.index("## Metrics") : shown.index("## Events")]
    always, _, sometimes = text.partition("These are there when")
    families = list(text_string_to_metric_families(box.get("/metrics").text))
    told = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    pattern = r"`((?:shammah|process)_[a-z_]+)`"
    documented = set(re.findall(pattern, always))
    assert sorted(told - documented) == []
    there_with_a_run = {name for name in documented if name.startswith("shammah_last_run_")}
    assert sorted(documented - told - there_with_a_run) == []
    assert not told & set(re.findall(pattern, sometimes))
    for family in families:
        assert family.documentation, family.name
        assert not re.search(r"_(ms|mb|minutes|percent)(_|$)", family.name), family.name
        for sample in family.samples:
            assert set(sample.labels) <= LABELS, sample
