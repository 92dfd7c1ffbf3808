from __future__ import annotations

import pytest
from daemons import Daemon, StartDaemon
from openapi_spec_validator import validate

from appliance.store import Store


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
        {"Host": "evil.example"},  # DNS rebinding
        {"X-Forwarded-For": "10.0.0.5"},  # through a proxy
        {"Origin": "https://evil.example"},  # another site's page in the owner's browser
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_loopback_alone_does_not_make_an_owner(daemon: Daemon, headers: dict[str, str]) -> None:
    response = daemon.post("/v1/training/run", headers=headers)
    assert response.status_code == 401
    assert daemon.get("/v1/models", headers=headers).status_code == 401


def test_the_daemon_refuses_the_network_before_it_is_protected(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[server]\nbind = '127.0.0.1:1'", wait=False)
    daemon.kill()
    refused = Daemon(daemon.home)
    refused.start("--bind", f"0.0.0.0:{refused.port}", wait=False)
    assert refused.process is not None
    assert refused.process.wait(60) == 1
    assert "--insecure" in refused.log


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
    for name in ("shammah_requests_total", "shammah_examples", 'shammah_adapter_in_service{adapter="base"}'):
        assert name in text


def test_two_daemons_do_not_share_a_home(daemon: Daemon) -> None:
    second = Daemon(daemon.home)
    out = (daemon.home.root / "daemon.out").stat().st_size
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert "already running" in daemon.log[out:]
