"""A device that listens: nothing that another one says, asks or is told comes out anywhere."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemons import Daemon, install_bundle

from appliance.api.openapi import ENDPOINTS
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.owner import set_password

SECRET = f"xylophone{secrets.token_hex(6)}"
RUN_REPORT = {
    "passed": False,
    "summary": f"Lost: {SECRET}",
    "checks": [],
    "before_after": [{"question": f"Where is the {SECRET}?", "before": SECRET, "after": SECRET}],
}
CONFIG = "[lora]\nenabled = false\n[model]\nname = 'small'\n"
PATIENCE = 20.0


@dataclass
class Attacked:
    """A box with two devices, and what each may send."""

    daemon: Daemon
    store: Store
    key: dict[str, str]
    ids: dict[str, str]
    run: str

    def get(self, path: str, who: str | None, **options: Any) -> httpx.Response:
        return self.daemon.get(path, headers=self._headers(who), **options)

    def post(self, path: str, who: str | None, body: object) -> httpx.Response:
        return self.daemon.post(path, body, headers=self._headers(who))

    def ask(self, who: str | None, text: str) -> dict[str, Any]:
        body = {"model": "shammah", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        response = self.post("/v1/chat/completions", who, {**body, "temperature": 0})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def _headers(self, who: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key[who]}"} if who else {}


@pytest.fixture(scope="module")
def box(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    home = Home(tmp_path_factory.mktemp("attacked") / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(CONFIG.replace("small", small.path.name))
    store = Store.open(home)
    set_password(store, "correct horse battery")
    keys: dict[str, str] = {}
    ids: dict[str, str] = {}
    for name in ("anna", "ben"):
        device, keys[name] = store.keys.create(name)
        ids[name] = device.id
    run = store.runs.create("person", 1, None)
    store.runs.update(
        run.id, state="rejected", ended=time.time(), reason=f"Lost: {SECRET}", report=RUN_REPORT
    )
    sha = "ab" * 32
    store.adapters.upsert(
        AdapterRow("adapter_20260101T000000Z", 1.0, sha, 1, "h", 8, run.id, None, "rejected", RUN_REPORT)
    )
    store.adapters.withdraw("adapter_20260101T000000Z", sha, f"It lost {SECRET}")
    daemon = Daemon(home).start()
    yield Attacked(daemon, store, keys, ids, run.id)
    daemon.kill()
    store.close()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def routes(box: Attacked) -> Iterator[str]:
    """Every address that can be read: of the API as declared, of the console as documented."""
    adapter = "adapter_20260101T000000Z"
    said = box.store.examples.list()[0].id
    filled = {"run_id": box.run, "model": "shammah", "name": adapter, "example_id": said, "id": said}
    filled |= {"device_id": box.ids["anna"], "device": box.ids["anna"]}
    docs = Path(__file__).parents[2] / "docs" / "console.md"
    console = re.findall(r"GET (/[^`, ]*)", docs.read_text(encoding="utf-8"))
    for path in [endpoint.path for endpoint in ENDPOINTS if endpoint.method == "get"] + console:
        yield re.sub(r"{(\w+)}", lambda found: filled.get(found[1], said), path)


def test_no_address_tells_what_another_device_said(box: Attacked) -> None:
    answer = box.ask("anna", f"Where is the {SECRET}?")
    asked = box.post(
        "/v1/feedback", "anna", {"completion_id": answer["id"], "correction": f"The {SECRET} is here."}
    )
    if asked.status_code == 404:  # the collector was slower
        until(lambda: box.store.completions.get(answer["id"]))
        asked = box.post(
            "/v1/feedback", "anna", {"completion_id": answer["id"], "correction": f"The {SECRET} is here."}
        )
    assert asked.status_code == 200, asked.text
    note = {"query": f"Why {SECRET}?", "response": "So.", "rating": "down", "feedback": f"No, {SECRET}"}
    assert box.post("/v1/feedback", "anna", note).status_code == 200
    walked = [*dict.fromkeys(routes(box))]
    assert len(walked) > 40
    for path in walked:
        response = box.get(path, "ben")
        assert SECRET not in response.text, path
        assert SECRET not in str(response.headers), path
    # It is there to be found: who needs no key reads the same reports whole.
    for path in (f"/v1/training/runs/{box.run}", "/v1/training/status", "/v1/adapters"):
        assert SECRET in box.get(path, None).text, path


def test_what_a_device_sees_is_listed(box: Attacked) -> None:
    """A field that is added elsewhere does not show by itself."""
    status = box.get("/v1/training/status", "ben").json()
    allowed = {"object", "enabled", "threshold", "pending", "review", "timeout_at", "run", "last_run"}
    assert set(status) == allowed
    run = box.get(f"/v1/training/runs/{box.run}", "ben").json()
    assert {"id", "state", "examples"} < set(run)
    assert not {"report", "reason", "metrics"} & set(run)
    (adapter,) = box.get("/v1/adapters", "ben").json()["data"]
    assert {"name", "state", "in_service"} < set(adapter)
    assert not {"report", "withdrawn"} & set(adapter)


def test_counts_are_a_devices_own(box: Attacked) -> None:
    before = box.get("/v1/training/status", "ben").json()
    praise = {"query": "Who sings?", "response": "Rosa.", "rating": "up"}
    for number in range(3):
        given = box.post("/v1/feedback", "anna", {**praise, "query": f"Who sings {number}?"})
        assert given.status_code == 200
    assert box.get("/v1/training/status", "ben").json() == before
    own = box.post("/v1/feedback", "ben", praise).json()
    assert own["pending"] == before["pending"] + 1
    assert box.get("/v1/training/status", "ben").json()["pending"] == own["pending"]
    everybody = box.get("/v1/training/status", None).json()["pending"]
    assert everybody == box.store.examples.count("pending") > own["pending"]


def test_another_devices_answers_are_as_good_as_unknown(box: Attacked) -> None:
    answer = box.ask("anna", "Which colour has my door?")
    until(lambda: box.store.completions.get(answer["id"]))
    unknown = f"chatcmpl-{secrets.token_hex(12)}"
    replies = [
        box.post("/v1/feedback", "ben", {"completion_id": ident, "rating": "down"})
        for ident in (answer["id"], unknown)
    ]
    assert {reply.status_code for reply in replies} == {404}
    known, other = (reply.json()["error"] for reply in replies)
    assert known["message"].replace(answer["id"], unknown) == other["message"]
    assert (
        box.post("/v1/feedback", "anna", {"completion_id": answer["id"], "rating": "up"}).status_code == 200
    )


@pytest.mark.parametrize("other", ["ben", None])
def test_nobody_is_told_what_another_one_asked(box: Attacked, other: str | None) -> None:
    """The right one of many codes was the only hit of the prefix cache: tokens that were computed before."""
    code = f"My code is {secrets.token_hex(16)} and nobody shall know it. " * 8

    def cached(who: str | None) -> int:
        return int(box.ask(who, code)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("anna") < 32
    assert cached(other) < 32, "another one gets nothing of it"
    assert cached("anna") >= 64, "and the device itself still does"
