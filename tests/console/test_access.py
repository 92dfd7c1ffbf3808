"""Who gets in: over HTTP, as a hostile client would try."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from browsing import opened
from daemons import Daemon, StartDaemon

from appliance.store.owner import create_session, set_password

PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[httpx.Client]:
    """A browser's requests from one of our own pages."""
    with httpx.Client(base_url=daemon.url, headers=OWN, timeout=60) as client:
        yield client


class TestWithoutPassword:
    def test_this_machine_gets_in_and_is_told(self, client: httpx.Client) -> None:
        response = client.get("/")
        assert response.status_code == 200
        assert "No owner password is set" in response.text

    @pytest.mark.parametrize("headers", [{"Host": "evil.example:8080"}, {"X-Forwarded-For": "203.0.113.9"}])
    def test_nobody_else(self, client: httpx.Client, headers: dict[str, str]) -> None:
        response = client.get("/", headers=headers)
        assert response.status_code == 403
        assert "shammah console password" in response.text
        assert client.get("/console/part/going_on", headers=headers).status_code == 403

    def test_own_forms_without_fetch_metadata(self, daemon: Daemon) -> None:
        response = httpx.post(f"{daemon.url}/adapters/promote", headers={"Origin": daemon.url})
        assert response.status_code == 303

    def test_every_answer_is_hardened(self, client: httpx.Client) -> None:
        for path in ("/", "/console/part/going_on", "/console/part/none", "/playground/exchange/none"):
            headers = client.get(path).headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"

    def test_static_files(self, client: httpx.Client) -> None:
        address = client.get("/").text.split('rel="stylesheet" href="')[1].split('"')[0]
        response = client.get(address)
        assert response.headers["Content-Type"] == "text/css; charset=utf-8"
        assert response.headers["Content-Encoding"] == "gzip"
        assert "immutable" in response.headers["Cache-Control"]
        plain = client.get(address, headers={"Accept-Encoding": "identity"})
        assert plain.content == response.content
        old = client.get("/static/000000000000/console.css")
        assert old.headers["Cache-Control"] == "no-cache"

    @pytest.mark.parametrize(
        "path", ["../templates/base.html", "..%2ftemplates%2fbase.html", "/etc/passwd", "", "none.css"]
    )
    def test_static_files_only(self, daemon: Daemon, path: str) -> None:
        assert httpx.get(f"{daemon.url}/static/x/{path}").status_code == 404

    @pytest.mark.parametrize(
        ("action", "body", "message"),
        [
            ("/adapters/promote", {"name": "adapter_nowhere"}, "adapter_nowhere"),
            ("/adapters/promote", {"name": "../../etc/passwd"}, "passwd"),
            ("/adapters/promote", {}, "Name the adapter"),
            ("/playground/feedback", {"completion_id": "chatcmpl-none", "rating": "up"}, "not kept any more"),
            ("/runs/cancel", {}, ""),
            ("/adapters/rollback", {}, ""),
        ],
    )
    def test_what_cannot_be_done_is_said(
        self, client: httpx.Client, action: str, body: dict[str, str], message: str
    ) -> None:
        response = client.post(action, data=body)
        assert response.status_code == 303
        after = client.get(response.headers["Location"])
        assert "flash-bad" in after.text
        assert message in after.text
        assert "flash-bad" not in client.get("/").text


def last_act(daemon: Daemon) -> int:
    with opened(daemon.home) as store:
        return store.audit.list(1)[0].seq


@pytest.fixture(scope="module")
def with_password(daemon: Daemon) -> None:
    with opened(daemon.home) as store:
        set_password(store, PASSWORD)


@pytest.mark.usefixtures("with_password")
class TestWithPassword:
    def log_in(self, client: httpx.Client, password: str = PASSWORD) -> httpx.Response:
        return client.post("/login", data={"username": "owner", "password": password})

    def test_everybody_is_asked(self, client: httpx.Client) -> None:
        response = client.get("/")
        assert (response.status_code, response.headers["Location"]) == (303, "/login")
        assert "smollm" not in response.text
        fragment = client.get("/console/part/going_on", headers={"HX-Request": "true"})
        assert (fragment.status_code, fragment.text) == (401, "Your session has ended.")
        assert "HX-Redirect" not in fragment.headers  # the page may hold something typed

    def test_login_and_logout(self, client: httpx.Client, daemon: Daemon) -> None:
        response = self.log_in(client)
        assert response.status_code == 303
        cookie = response.headers["Set-Cookie"]
        for flag in ("HttpOnly", "SameSite=Strict", "Path=/"):
            assert flag in cookie
        assert "Log out" in client.get("/").text
        token = client.cookies["shammah_session"]
        client.post("/logout")
        assert client.get("/").status_code == 303
        # The cookie is not only forgotten by the browser, it is worthless.
        assert httpx.get(daemon.url, cookies={"shammah_session": token}).status_code == 303
        with opened(daemon.home) as store:
            assert [entry.action for entry in store.audit.list(2)] == ["logout", "login"]

    def test_an_ended_session_is_told(self, client: httpx.Client, daemon: Daemon) -> None:
        with opened(daemon.home) as store:
            client.cookies.set("shammah_session", create_session(store, -1))
        before = last_act(daemon)
        response = client.post("/runs/train")
        assert response.status_code == 401
        assert "Your session has ended; nothing was done" in response.text
        assert last_act(daemon) == before

    def test_login_from_another_site_is_refused(self, daemon: Daemon) -> None:
        response = httpx.post(
            f"{daemon.url}/login", data={"password": PASSWORD}, headers={"Origin": "http://evil.example"}
        )
        assert response.status_code == 403
        assert "Set-Cookie" not in response.headers


def test_guessing_the_password_is_slowed(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("[lora]\nenabled = false\n")
    with opened(daemon.home) as store:
        set_password(store, PASSWORD)

    def guess(password: str) -> httpx.Response:
        return httpx.post(f"{daemon.url}/login", data={"password": password}, headers=OWN)

    answers = [guess(f"guess number {n}").status_code for n in range(5)]
    assert answers == [401] * 5
    refused = next(answer for answer in map(guess, "abcdefgh") if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    # Not even the right one gets through while the wait lasts.
    assert guess(PASSWORD).status_code == 429
    with opened(daemon.home) as store:
        actions = [entry.action for entry in store.audit.list(20)]
    assert actions.count("login.failed") >= 5
    assert actions.count("login.throttled") == 1  # one wait, however often it was tried
