"""The daemon starts anew in the same process, and goes back to the model that works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from daemons import Daemon, StartDaemon, accept_adapter, install_bundle

from appliance import served
from appliance.config import load_config
from appliance.files import write_atomic
from appliance.home import Home
from appliance.model.bundle import MANIFEST, Bundle, compute_base_hash, hash_file, load_bundle
from appliance.store import Store

CONFIG = "[lora]\nenabled = false\n"
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


def post(daemon: Daemon, path: str, **fields: str) -> httpx.Response:
    """A form of the console, as a browser on this machine sends it."""
    return httpx.post(daemon.url + path, data=fields, headers=SAME_SITE, timeout=30)


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def uptime(daemon: Daemon) -> float:
    try:
        return float(daemon.get("/health").json()["uptime_seconds"])
    except httpx.HTTPError:
        return float("inf")


def restarted(daemon: Daemon, since: float) -> Callable[[], bool]:
    """Whether a life that began after `since` (monotonic) answers."""

    def look() -> bool:
        if uptime(daemon) >= time.monotonic() - since:
            return False
        return daemon.get("/ready").status_code == 200

    return look


def _copy_small(source: str, target: str) -> None:
    if source.endswith(".onnx.data"):
        os.link(source, target)  # 150 MB
    else:
        shutil.copy2(source, target)


def second_bundle(home: Home, bundle: Bundle, name: str, *, other: bool = True) -> Bundle:
    """The same weights under another name; with `other`, as another base (a graph of other bytes)."""
    path = home.models / name
    shutil.copytree(bundle.path, path, copy_function=_copy_small)
    data = json.loads((path / MANIFEST).read_text())
    if other:
        with (path / "model.onnx").open("ab") as graph:
            graph.write(b"\xba\x3e\x01x")  # an unknown field of protobuf: readers pass over it
        entry = hash_file(path / "model.onnx")
        data["files"]["model.onnx"] = {"sha256": entry.sha256, "size": entry.size}
    manifest = load_bundle(bundle.path).manifest
    files = {**manifest.files, "model.onnx": hash_file(path / "model.onnx")}
    data |= {"name": name, "base_hash": compute_base_hash(files)}
    write_atomic(path / MANIFEST, json.dumps(data))
    return load_bundle(path)


def test_an_answer_is_finished_and_the_same_process_serves_again(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    began = time.monotonic()
    body = {
        "model": "shammah",
        "messages": [{"role": "user", "content": "Tell me a long story about the sea."}],
        "max_tokens": 120,
        "temperature": 0,
    }
    whole = daemon.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    address = f"{daemon.url}/v1/chat/completions"
    pieces: list[str] = []
    # A page that is open does not hold the box up.
    with (
        httpx.stream("GET", daemon.url + "/console/events", timeout=60) as events,
        httpx.stream("POST", address, json={**body, "stream": True}, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        asked = time.monotonic()
        response = post(daemon, "/restart", to="/runs")
        assert (response.status_code, response.headers["location"].split("?")[0]) == (303, "/restart")
        waiting = daemon.get(response.headers["location"])
        assert "The box restarts" in waiting.text
        assert 'http-equiv="refresh"' in waiting.text
        for line in lines:
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
        list(events.iter_lines())
        assert time.monotonic() - asked < 8 + 1.5
    assert "".join(pieces) == whole
    wait_until(restarted(daemon, began + 1))
    assert uptime(daemon) < time.monotonic() - asked
    assert daemon.process is not None and daemon.process.poll() is None
    assert json.loads(daemon.home.daemon.read_text())["pid"] == daemon.pid
    back = daemon.get(response.headers["location"])
    assert (back.status_code, back.headers["location"]) == (303, "/runs")
    assert daemon.ask("What is the capital of France?")
    store = Store.open(daemon.home)
    assert [entry.action for entry in store.audit.list(1)] == ["console.restart"]
    store.close()
    # The next life can do it again, and ends as told.
    began = time.monotonic()
    assert post(daemon, "/restart", to="//evil.example/").headers["location"].endswith("to=%2F")
    wait_until(restarted(daemon, began))
    assert daemon.stop() == 0


def test_a_typo_never_bricks_the_box(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(CONFIG)
    for text, said in (
        ("[lora]\nenabled = = 1\n", "not valid TOML"),
        ('[model]\nname = "absent"\n', "no model bundle"),
        ('[server]\nbind = "192.0.2.1:9"\n', "Cannot listen on 192.0.2.1"),
    ):
        daemon.home.config.write_text(text)
        response = post(daemon, "/restart", to="/models")
        assert response.headers["location"] == "/models"
        page = httpx.get(daemon.url + "/models", cookies=response.cookies)
        assert said in page.text
        assert "goes on as it is" in page.text
    other_site = httpx.post(daemon.url + "/restart", headers={"Sec-Fetch-Site": "cross-site"})
    assert other_site.status_code == 403
    assert daemon.get("/restart").status_code == 200
    assert "Restarting" not in daemon.log
    # It could now; but whoever stops the box from outside meanwhile stops it for good.
    daemon.home.config.write_text(CONFIG)
    assert post(daemon, "/restart").headers["location"].startswith("/restart?")
    assert daemon.stop() == 0


def test_adapters_of_the_other_base_stay_aside_and_come_back(
    start_daemon: StartDaemon, bundle: Bundle, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    other = second_bundle(home, bundle, "other")
    accept_adapter(home, bundle, "ours", 1, only="q_proj")
    accept_adapter(home, bundle, "newer", 2, only="q_proj")
    accept_adapter(home, other, "theirs", 3, only="q_proj")
    home.current.symlink_to("ours.safetensors")
    daemon = start_daemon(CONFIG, home=home)
    assert daemon.get("/ready").json() == {"status": "ready", "model": bundle.name, "adapter": "ours"}

    def switch(name: str) -> dict[str, str]:
        began = time.monotonic()
        assert post(daemon, "/models/switch", name=name).status_code == 303
        page = daemon.get("/models").text
        assert "After a restart" in page
        assert "model.name" in page
        assert post(daemon, "/restart").status_code == 303
        wait_until(restarted(daemon, began))
        return dict(daemon.get("/ready").json())

    assert switch("other") == {"status": "ready", "model": "other", "adapter": None}
    assert "1 fits, set aside" not in daemon.get("/models").text
    assert "2 fit, set aside" in daemon.get("/models").text
    assert load_config(home.config).model.name == "other"
    assert post(daemon, "/adapters/promote", name="theirs").status_code == 303
    assert daemon.get("/ready").json()["adapter"] == "theirs"
    assert switch(bundle.name)["adapter"] == "ours"
    assert switch("other")["adapter"] == "theirs"
    assert "cannot be used" not in daemon.log


def test_a_model_that_cannot_be_served(start_daemon: StartDaemon, bundle: Bundle, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    broken = second_bundle(home, bundle, "broken")
    # As big as it should be, so that only loading it shows.
    graph = broken.path / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    daemon = start_daemon(f"# mine\n{CONFIG}", home=home)
    began = time.monotonic()
    post(daemon, "/models/switch", name="broken")
    assert load_config(home.config).model.name == "broken"
    where = post(daemon, "/restart", to="/models").headers["location"]
    wait_until(restarted(daemon, began))
    assert daemon.get("/ready").json()["model"] == bundle.name
    assert json.loads(home.daemon.read_text())["pid"] == daemon.pid
    assert load_config(home.config).model.name == bundle.name
    assert home.config.read_text().startswith("# mine\n")
    assert f"Going back to {bundle.name}" in daemon.log
    assert daemon.get(where).headers["location"] == "/models"
    assert "broken could not be served" in daemon.get("/").text
    page = daemon.get("/models").text
    assert "broken could not be served." in page
    assert "could not be built" in page
    post(daemon, "/models/dismiss", what="fallback")
    assert "could not be served." not in daemon.get("/models").text


def test_a_start_that_the_box_does_not_survive(
    start_daemon: StartDaemon, bundle: Bundle, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, bundle)
    second_bundle(home, bundle, "heavy", other=False)
    daemon = start_daemon(CONFIG, home=home)
    assert daemon.stop() == 0
    assert served.read_served(home).good == bundle.name
    # As the kernel ends a program for want of memory: without a word, while it loads the model.
    home.config.write_text(f'{CONFIG}[model]\nname = "heavy"\n')
    daemon = start_daemon(home=home, wait=False)
    wait_until(lambda: served.read_served(home).trial == "heavy")
    daemon.kill()
    daemon = start_daemon(home=home)
    assert daemon.get("/ready").json()["model"] == bundle.name
    assert "heavy could not be served." in daemon.get("/models").text
    # The owner insists, and this time it goes well.
    began = time.monotonic()
    post(daemon, "/models/switch", name="heavy")
    post(daemon, "/restart")
    wait_until(restarted(daemon, began))
    assert daemon.get("/ready").json()["model"] == "heavy"
    assert "could not be served." not in daemon.get("/models").text
    assert served.read_served(home).trial is None
    # What ends a start in an orderly way is no fault of the model.
    assert daemon.stop() == 0
    home.config.write_text(CONFIG)
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon = start_daemon(home=home, wait=False)
        wait_until(lambda: served.read_served(home).trial == bundle.name)
        assert daemon.process is not None
        daemon.process.send_signal(number)
        assert daemon.process.wait(60) == (number == signal.SIGINT)  # Ctrl-C in a start is told by 1
        assert served.read_served(home).trial is None


def test_without_a_model_to_go_back_to_the_error_stands(home: Home) -> None:
    home.config.write_text('[model]\nname = "absent"\n')
    daemon = Daemon(home).start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(60) == 1
    assert "no model bundle" in daemon.log
    (home.root / "served.json").write_text("{broken")
    assert served.read_served(home) == served.Served()
