"""How is sampled what a request leaves open: as the owner set it, else as the model's files say."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from checkpoints import make_checkpoint
from daemons import Daemon, install_bundle

from appliance.home import Home
from appliance.model.importer import import_model

ASK = {"model": "shammah", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24, "store": False}


def test_request_then_owner_then_model(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "greedy")
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"temperature": 2.0, "do_sample": False, "eos_token_id": 1})
    )
    made = import_model(str(checkpoint), Home(tmp_path / "made").ensure())
    serve = f'[model]\nname = "{made.name}"\n'
    for number, (setting, varies) in enumerate((("", False), ("temperature = 2\ntop_p = 1\n", True))):
        home = Home(tmp_path / f"home{number}").ensure()
        install_bundle(home, made)
        home.config.write_text(f"{serve}{setting}[lora]\nenabled = false\n")
        daemon = Daemon(home)
        daemon.start()
        try:

            def answers(daemon: Daemon = daemon, **more: object) -> set[str]:
                url = f"{daemon.url}/v1/chat/completions"
                replies = [httpx.post(url, json={**ASK, **more}, timeout=60) for _ in range(4)]
                return {reply.json()["choices"][0]["message"]["content"] for reply in replies}

            assert (len(answers()) > 1) is varies
            assert len(answers(temperature=0)) == 1
            assert len(answers(temperature=2, top_p=1)) > 1
        finally:
            daemon.stop()
