"""`/v1/models` lists what answers, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from daemons import Daemon, accept_adapter, install_bundle

from appliance.adapters.file import AdapterMeta, write_adapter
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store


@pytest.fixture(scope="module")
def daemon(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, small)
    home.config.write_text(f"[lora]\nenabled = false\n[model]\nname = '{small.path.name}'\n")
    for seed, name in enumerate(("good", "forgotten", "torn", "gone")):
        accept_adapter(home, small, name, seed)
    store = Store.open(home)
    store.adapters.bar(["forgotten"])
    store.close()
    good = (home.adapters / "good.safetensors").read_bytes()
    (home.adapters / "torn.safetensors").write_bytes(good[:-100])
    (home.adapters / "gone.safetensors").unlink()
    (home.adapters / "empty.safetensors").touch()
    (home.adapters / "copy-of-forgotten.safetensors").write_bytes(
        (home.adapters / "forgotten.safetensors").read_bytes()
    )
    matrices = {
        f"base_model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.zeros((2, 2), np.float32)
        for side in "AB"
    }
    write_adapter(home.adapters / "other-base.safetensors", matrices, AdapterMeta("0" * 64, 2, 2.0))
    running = Daemon(home).start()
    yield running
    running.kill()


def listed(daemon: Daemon) -> set[str]:
    data = daemon.get("/v1/models").json()["data"]
    return {model["id"] for model in data}


def test_what_is_listed_answers_and_the_rest_is_not(daemon: Daemon, small: Bundle) -> None:
    names = listed(daemon)
    assert names == {"shammah", small.manifest.name, "shammah:base", "shammah:good"}
    for name in names:
        assert daemon.get(f"/v1/models/{name}").json()["id"] == name
        assert daemon.ask("Hi", model=name, max_tokens=2) is not None
    for bad in ("forgotten", "copy-of-forgotten", "torn", "empty", "other-base", "gone"):
        assert daemon.get(f"/v1/models/shammah:{bad}").status_code == 404
        body = {"model": f"shammah:{bad}", "messages": [{"role": "user", "content": "Hi"}]}
        assert daemon.post("/v1/chat/completions", json=body).status_code in (400, 404)


def test_a_file_that_changes_is_looked_at_again(daemon: Daemon) -> None:
    path = daemon.home.adapters / "good.safetensors"
    good = path.read_bytes()
    other = path.with_suffix(".other")
    other.write_bytes(good[:-1])
    other.rename(path)
    assert "shammah:good" not in listed(daemon)
    other.write_bytes(good)
    other.rename(path)
    assert "shammah:good" in listed(daemon)
