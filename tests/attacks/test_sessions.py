"""A device names other models than the one in service, again and again: each would cost a build."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from daemons import Daemon, accept_adapter, install_bundle

from appliance.api.builds import AT_ONCE
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.owner import set_password

CHAT = "/v1/chat/completions"
NAMES = ("one", "two", "three")
PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def box(small: Bundle, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, small)
    home.config.write_text(
        f"[lora]\nenabled = false\n[model]\nname = '{small.path.name}'\nslots = 4\n"
        "[server]\nlog_level = 'DEBUG'\n"
    )
    for seed, name in enumerate((*NAMES, "four")):
        accept_adapter(home, small, name, seed)
    store = Store.open(home)
    set_password(store, PASSWORD)
    for name in "abcdef":
        keys[name] = store.keys.create(name)[1]
    store.close()
    daemon = Daemon(home).start()
    yield daemon
    daemon.kill()


def ask(box: Daemon, key: str, model: str, **options: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **options}
    return box.post(CHAT, json=body, headers={"Authorization": f"Bearer {key}"})


def builds(box: Daemon) -> int:
    """How many sessions have been built, by what the box has counted."""
    with httpx.Client(base_url=box.url) as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {_token(box)}"}).text
    (count,) = re.findall(r"^shammah_model_builds_total (\S+)$", text, re.MULTILINE)
    return int(float(count))


def test_two_names_in_turn_are_bounded(box: Daemon, keys: dict[str, str]) -> None:
    before = builds(box)
    statuses = [ask(box, keys["a"], f"shammah:{NAMES[turn % 2]}").status_code for turn in range(20)]
    assert statuses[:AT_ONCE] == [200] * AT_ONCE
    assert builds(box) - before <= AT_ONCE + 1
    assert 429 in statuses
    refused = next(
        answer
        for turn in range(2)
        if (answer := ask(box, keys["a"], f"shammah:{NAMES[turn]}")).status_code == 429
    )
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    # What is there costs nothing, and others have an allowance of their own.
    assert ask(box, keys["a"], "shammah").status_code == 200
    assert 200 in [ask(box, keys["a"], f"shammah:{name}").status_code for name in NAMES[:2]]
    assert ask(box, keys["b"], "shammah:three").status_code == 200
    assert ask(box, keys["b"], "shammah:base").status_code == 200


def test_many_at_once_share_a_build(box: Daemon, keys: dict[str, str]) -> None:
    assert ask(box, keys["c"], "shammah:three").status_code == 200
    before = builds(box)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(box, keys["c"], "shammah:one"), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert builds(box) - before == 1


def test_names_of_nothing_and_of_damage_cost_no_build(box: Daemon, keys: dict[str, str]) -> None:
    (box.home.adapters / "torn.safetensors").write_bytes(b"x" * 1000)
    before = builds(box)
    for _ in range(AT_ONCE + 2):
        assert ask(box, keys["d"], "shammah:nobody").status_code == 404
        assert ask(box, keys["d"], "shammah:torn").status_code == 400
    assert builds(box) == before
    assert ask(box, keys["d"], "shammah:two").status_code == 200


def test_weights_that_still_answer_count(box: Daemon, keys: dict[str, str]) -> None:
    """Each long answer keeps its weights in memory: no other is built while two that were replaced linger."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1900, "stream": True}
    body |= {"temperature": 1, "logit_bias": {"1": -100}}
    headers = {"Authorization": f"Bearer {keys['e']}"}
    lines: list[Iterator[str]] = []
    with contextlib.ExitStack() as streams:
        client = streams.enter_context(httpx.Client(base_url=box.url, headers=headers, timeout=60))
        for name in NAMES:
            asked = {"model": f"shammah:{name}", **body}
            stream = streams.enter_context(client.stream("POST", CHAT, json=asked))
            assert stream.status_code == 200, stream.read()
            lines.append(stream.iter_lines())  # kept: it closes its stream when it goes
            assert next(lines[-1])
        refused = ask(box, keys["f"], "shammah:four")
        assert ask(box, keys["f"], "shammah:three").status_code == 200  # it is there
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
        assert int(refused.headers["retry-after"]) >= 1
    deadline = time.monotonic() + 30
    while ask(box, keys["f"], "shammah:four").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_owner_compares_as_before(box: Daemon, keys: dict[str, str]) -> None:
    """Though devices have used up what they may, and other addresses as well."""
    with httpx.Client(base_url=box.url, headers=OWN, timeout=60) as owner:
        assert owner.post("/login", data={"password": PASSWORD}).status_code == 303
        for turn in range(AT_ONCE):
            left, right = NAMES[turn % 3], NAMES[(turn + 1) % 3]
            answer = owner.post(
                "/playground/compare", data={"left": left, "right": right, "prompt": "Hi", "max_tokens": "2"}
            )
            assert answer.status_code == 303, answer.text
            assert owner.get(answer.headers["location"]).status_code == 200


def _token(box: Daemon) -> str:
    return str(json.loads(box.home.daemon.read_text())["token"])
