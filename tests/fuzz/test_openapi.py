"""schemathesis on the OpenAPI document of a real box: whatever it makes up, the answer is as documented.

The full run is `make fuzz`; a short one with a seed is part of `make test`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import give_past, opened
from daemons import Daemon, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

SEED = 20261126
# A person's run is put off: what is tried here is the API, and thousands of trainers would take a while.
CONFIG = """
[lora]
enabled = false
[resources]
min_free_disk_mb = 999999999
[model]
default_max_tokens = 2
context_length = 1024
"""
ELSEWHERE = {"X-Forwarded-For": "192.0.2.7"}
"""Of a request that somebody else's proxy brought: it is not trusted as from this machine."""


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a past, for the tests of this module."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    give_past(home, bundle)
    running = Daemon(home).start()
    yield running
    running.kill()


def explore(daemon: Daemon, place: Path, *options: str, headers: dict[str, str] | None = None) -> int:
    """Run schemathesis with all its checks; says how many cases it tried, all of them well."""
    document = place / "openapi.json"
    headers = headers or {}
    document.write_text(daemon.get("/openapi.json", headers=headers).text)
    report = place / "report.json"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(document), "--url", daemon.url]
    # Ours takes the place of one that knows of no reasons; and how fast it is depends on who else computes.
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    command += ["--max-response-time", "600", "--request-timeout", "600", "--suppress-health-check", "all"]
    command += ["--no-color", "--report", "json", "--report-json-path", str(report)]
    command += ["--continue-on-failure", "--generation-database", "none", *options]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **hooks}, capture_output=True, text=True, check=False
    )
    told = done.stdout[-20_000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(report.read_text())
    # Texts over the 100,000 characters of feedback: now and then it asks its library for more than that can.
    # The case is never sent; the bound has tests of its own.
    unmade = [error for error in found["errors"] if error["title"] == "Failed Health Check"]
    assert found["complete"] and found["failures"] == [] and found["errors"] == unmade, told
    assert done.returncode == 0 or (unmade and "Minimum possible example is too large" in told), told
    assert found["operations"]["tested"] == found["operations"]["total"] > 15
    assert found["test_cases"]["errored"] == found["test_cases"]["with_failures"] == 0
    return int(found["test_cases"]["generated"])


def sound(daemon: Daemon) -> None:
    """It serves, and nothing went wrong that the answers did not say."""
    assert daemon.ask("Name three colours.")
    assert daemon.get("/health").status_code == 200
    assert not re.search(r"^Traceback|failed$", daemon.log, re.MULTILINE), daemon.log[-4000:]


def test_a_few_cases(daemon: Daemon, tmp_path: Path) -> None:
    tried = explore(daemon, tmp_path, "--max-examples=10", f"--seed={SEED}", "--phases=fuzzing")
    assert tried > 70
    print(f"\nschemathesis: {tried:,} cases")
    sound(daemon)


def test_the_lengths_of_feedback(daemon: Daemon) -> None:
    most = {"query": 100_000, "response": 100_000, "feedback": 10_000, "correction": 100_000}
    for field, length in most.items():
        said = {"query": "Q", "response": "A", "feedback": "Wrong.", field: "a" * (length + 1)}
        refused = daemon.post("/v1/feedback", json=said)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


def test_the_document_says_who_needs_a_key(daemon: Daemon) -> None:
    here = daemon.get("/openapi.json").json()["paths"]["/v1/models"]["get"]
    elsewhere = daemon.get("/openapi.json", headers=ELSEWHERE)
    assert here["security"] == [{"key": []}, {}]
    assert elsewhere.status_code == 403  # nobody has set a password yet
    with opened(daemon.home) as store:
        set_password(store, "correct horse battery")
    elsewhere = daemon.get("/openapi.json", headers=ELSEWHERE)
    assert elsewhere.json()["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert elsewhere.json()["paths"]["/health"]["get"]["security"] == [{}]


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("who", "examples"), [("owner", 40), ("device", 20), ("bad key", 60), ("nobody", 60)]
)
def test_thousands_of_cases(daemon: Daemon, tmp_path: Path, who: str, examples: int) -> None:
    """As the owner on the box, a device, a stranger with a key of his own making, and one without."""
    headers: dict[str, str] = {}
    if who != "owner":
        headers |= ELSEWHERE
        with opened(daemon.home) as store:
            set_password(store, "correct horse battery")
            token = store.keys.create("fuzz")[1] if who == "device" else "sk-shammah-none"
        if who != "nobody":
            headers["Authorization"] = f"Bearer {token}"
    tried = explore(daemon, tmp_path, f"--max-examples={examples}", headers=headers)
    print(f"\nschemathesis as {who}: {tried:,} cases")
    assert tried > 1000
    sound(daemon)


def test_unknown_addresses(daemon: Daemon) -> None:
    """A browser gets a page, a program the error of the API."""
    for path in ("/nothing", "/v1/nothing", "/static", "/nothing/at/all?x=<script>"):
        page = httpx.get(daemon.url + path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert page.status_code == 404
        api = path.startswith("/v1/")
        assert page.headers["Content-Type"].startswith("application/json" if api else "text/html")
        told = httpx.get(daemon.url + path)
        assert (told.status_code, told.json()["error"]["code"]) == (404, "unknown_url")
