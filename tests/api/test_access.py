from __future__ import annotations

import pytest
from daemons import Daemon, StartDaemon
from openapi_spec_validator import validate

from appliance.store import Store
from appliance.store.owner import set_password


def test_a_device_key_is_checked_even_on_loopback(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[lora]\nenabled = false")
    store = Store.open(daemon.home)
    device, secret = store.keys.create("phone")
    bearer = {"Authorization": f"Bearer {secret}"}
    assert daemon.get("/v1/models", headers=bearer).status_code == 200
    response = daemon.post("/v1/training/run", headers=bearer)
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"
    store.keys.revoke(device.id)
    response = daemon.get("/v1/models", headers=bearer)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    store.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},  # another site's page in the owner's browser
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_loopback_alone_does_not_make_an_owner(daemon: Daemon, headers: dict[str, str]) -> None:
    response = daemon.post("/v1/training/run", headers=headers)
    assert response.status_code == 401
    assert daemon.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # DNS rebinding
        {"X-Forwarded-For": "10.0.0.5"},  # through a proxy
    ],
)
def test_loopback_can_speak_for_others(start_daemon: StartDaemon, headers: dict[str, str]) -> None:
    """Before there is a password they are refused altogether; then they are asked for a key."""
    daemon = start_daemon("[lora]\nenabled = false")
    for path in ("/v1/models", "/health", "/nowhere"):
        response = daemon.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "not_set_up")
    store = Store.open(daemon.home)
    set_password(store, "correct horse battery")
    store.close()
    assert daemon.get("/health", headers=headers).status_code == 200
    assert daemon.get("/v1/models", headers=headers).status_code == 401
    assert daemon.post("/v1/training/run", headers=headers).status_code == 401


def test_pages_and_programs_get_errors_of_their_own(daemon: Daemon) -> None:
    assert daemon.get("/v1/nowhere").json()["error"]["code"] == "unknown_url"
    assert "text/html" in daemon.get("/console/part/nowhere").headers["Content-Type"]
    assert daemon.get("/v1/nowhere").json()["error"]["code"] == "unknown_url"


def test_openapi_is_valid_and_names_every_endpoint(daemon: Daemon) -> None:
    document = daemon.get("/openapi.json").json()
    validate(document)
    served = {
        ("/" + route.path).replace("<", "{").replace(">", "}").replace(":str", "").replace(":path", "")
        for route in _routes()
        if route.path.startswith(("v1/", "health", "ready", "metrics", "openapi"))
    }
    assert set(document["paths"]) == served


def _routes() -> list:  # type: ignore[type-arg]
    from sanic import Sanic

    from appliance.api import blueprints

    app = Sanic("routes", configure_logging=False)
    blueprints.setup(app)
    app.router.finalize()
    return list(app.router.routes)


def test_health_ready_metrics(daemon: Daemon) -> None:
    assert daemon.get("/health").json()["status"] == "ok"
    assert daemon.get("/ready").json() == {
        "status": "ready",
        "model": "smollm2-135m-instruct",
        "adapter": None,
    }
    text = daemon.get("/metrics").text
    for name in ("shammah_engine_requests_total", "shammah_examples", 'shammah_model_info{adapter="base"'):
        assert name in text


def test_two_daemons_do_not_share_a_home(daemon: Daemon) -> None:
    second = Daemon(daemon.home)
    out = (daemon.home.root / "daemon.out").stat().st_size
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert "already running" in daemon.log[out:]
