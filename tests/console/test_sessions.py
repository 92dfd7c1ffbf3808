"""Sessions, and every route there is: nobody acts through another site's page, or without a login."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest
from browsing import PHONE, check_sound, opened
from daemons import Daemon
from playwright.sync_api import Page, expect
from sanic import Sanic

from appliance import console
from appliance.api import blueprints as api
from appliance.store.owner import create_session, session_valid

OpenPage = Callable[..., Page]
PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}
COOKIE = "shammah_session"
ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
]
SAFE = {"GET", "HEAD", "OPTIONS"}
FOR_EVERYBODY = {"/login", "/setup", "/setup/password", "/health", "/ready", "/metrics", "/openapi.json"}


def routes() -> list[tuple[str, str]]:
    """(method, path) of all there is, with something in the place of parameters."""
    app: Sanic = Sanic("walk", configure_logging=False)
    api.setup(app)
    console.setup(app)
    return sorted(
        (method, "/" + re.sub(r"<[^>]*>", "x", re.sub(r"<[^>]*:int>", "1", route.path)))
        for route in app.router.routes
        for method in route.methods
    )


ROUTES = routes()


def call(box: Daemon, method: str, path: str, headers: dict[str, str], token: str = "") -> httpx.Response:
    cookies = {COOKIE: token} if token else {}
    body = {"name": "base", "id": "x", "message": "hi", "password": "wrong", "again": "wrong"}
    data = None if method in SAFE else body
    return httpx.request(method, box.url + path, headers=headers, cookies=cookies, data=data, timeout=60)


def log_in(box: Daemon, headers: dict[str, str] = OWN, password: str = PASSWORD) -> httpx.Response:
    return httpx.post(f"{box.url}/login", data={"password": password}, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def owned(daemon: Daemon) -> Iterator[Daemon]:
    """The module's box, set up by a browser in which somebody had planted a cookie."""
    with opened(daemon.home) as store:
        planted = create_session(store, 1)
    response = httpx.post(
        f"{daemon.url}/setup/password",
        data={"password": PASSWORD, "again": PASSWORD},
        headers=OWN,
        cookies={COOKIE: planted},
    )
    token = response.cookies[COOKIE]
    assert token != planted
    with opened(daemon.home) as store:
        assert session_valid(store, token)
        assert not session_valid(store, planted)
    yield daemon


def last_act(box: Daemon) -> int:
    with opened(box.home) as store:
        return store.audit.list(1)[0].seq


def test_no_route_acts_for_another_site(owned: Daemon) -> None:
    """With the owner's own cookie: it is the owner's browser that another site makes use of."""
    token = log_in(owned).cookies[COOKIE]
    before, walked, wrong = last_act(owned), 0, []
    for method, path in ROUTES:
        if method in SAFE:
            continue
        # A program sends neither header, and a browser no cookie along with another site's request.
        foreign = FOREIGN if path.startswith("/v1/") else [*FOREIGN, {}]
        for headers in foreign:
            response = call(owned, method, path, headers, token)
            refused = 401 if path.startswith("/v1/") else 403
            if response.status_code != refused or "Set-Cookie" in response.headers:
                wrong.append(f"{method} {path} {headers}: {response.status_code}")
            walked += 1
    assert wrong == []
    assert walked > 100
    assert last_act(owned) == before
    assert call(owned, "GET", "/", {}, token).status_code == 200


def test_no_route_answers_without_a_login(owned: Daemon) -> None:
    before, walked, wrong = last_act(owned), 0, []
    for method, path in ROUTES:
        if path in FOR_EVERYBODY or path.startswith(("/static/", "/trust")):
            continue
        for token in ("", "x" * 43):
            response = call(owned, method, path, {**OWN, **ELSEWHERE}, token)
            wanted = quote(path if path not in ("/", "/logout") else "", safe="/")
            login = f"/login?next={wanted}" if wanted else "/login"
            if path.startswith(("/console/events", "/console/part", "/console/session")):
                login = "/login"
            to_login = response.status_code == 303 and response.headers["Location"] == login
            if not (to_login or response.status_code in (401, 405)) or COOKIE in response.cookies:
                wrong.append(f"{method} {path}: {response.status_code}")
            walked += 1
    assert wrong == []
    assert walked > 50
    assert last_act(owned) == before
    # What is for everybody says nothing to somebody without a password.
    assert call(owned, "POST", "/login", OWN).status_code == 401
    assert call(owned, "POST", "/setup/password", OWN).headers["Location"] == "/login"


def test_the_cookie_is_for_this_box_alone(owned: Daemon) -> None:
    host = owned.url.removeprefix("http://")
    plain = log_in(owned).headers["Set-Cookie"]
    for flag in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert flag in plain
    assert "Domain" not in plain
    assert "Secure" not in plain
    # The browser speaks https with the proxy, which speaks http with the box.
    behind = log_in(owned, {**ELSEWHERE, "Origin": f"https://{host}"}).headers["Set-Cookie"]
    assert "; Secure" in behind


def test_a_session_of_somebody_else_does_not_become_the_owners(owned: Daemon) -> None:
    """Session fixation: one that is good, planted in the owner's browser, ends with the owner's login."""
    planted = log_in(owned).cookies[COOKIE]
    own = httpx.post(
        f"{owned.url}/login", data={"password": PASSWORD}, headers=OWN, cookies={COOKIE: planted}
    ).cookies[COOKIE]
    assert own != planted
    assert call(owned, "GET", "/", {}, planted).headers["Location"] == "/login"
    assert call(owned, "GET", "/", {}, own).status_code == 200


def test_account(owned: Daemon, open_page: OpenPage) -> None:
    other = log_in(owned).cookies[COOKIE]
    page = open_page(f"{owned.url}/login")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.locator(".side").get_by_role("link", name="Account").click()
    expect(page.get_by_text("This browser")).to_have_count(1)
    expect(page.get_by_text("127.0.0.1").first).to_be_visible()
    page.get_by_text("Log all others out").first.click()
    check_sound(page, "account")
    page.get_by_role("button", name="Log all others out").click()
    expect(page.get_by_role("status")).to_contain_text("logged out")
    expect(page.get_by_text("Nobody else is logged in.")).to_be_visible()
    assert call(owned, "GET", "/", {}, other).headers["Location"] == "/login"


def test_a_new_password_without_scripts(owned: Daemon, open_page: OpenPage) -> None:
    other = log_in(owned).cookies[COOKIE]
    page = open_page(f"{owned.url}/login", PHONE, scripts=False)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    before = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == COOKIE)
    page.goto(f"{owned.url}/account")

    def change(old: str, new: str, again: str) -> None:
        page.get_by_label("Present password").fill(old)
        page.get_by_label("New password").fill(new)
        page.get_by_label("The new one again").fill(again)
        page.get_by_role("button", name="Change the password").click()

    change("wrong wrong", "another password", "another password")
    expect(page.get_by_role("alert")).to_contain_text("not the present password")
    change(PASSWORD, "another password", "another passwort")
    expect(page.get_by_role("alert")).to_contain_text("not the same")
    change(PASSWORD, "another password", "another password")
    expect(page.get_by_role("status")).to_contain_text("The password is changed")
    after = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == COOKIE)
    assert after != before
    for ended in (before, other):
        assert call(owned, "GET", "/", {}, ended).headers["Location"] == "/login"
    assert log_in(owned).status_code == 401
    again = log_in(owned, password="another password").cookies[COOKIE]
    body = {"old": "another password", "password": "short", "again": "short"}
    response = httpx.post(f"{owned.url}/account/password", data=body, headers=OWN, cookies={COOKIE: again})
    assert (response.status_code, "8 to 1024" in response.text) == (400, True)
    body = {"old": "another password", "password": PASSWORD, "again": PASSWORD}
    response = httpx.post(f"{owned.url}/account/password", data=body, headers=OWN, cookies={COOKIE: again})
    assert response.headers["Location"] == "/account"
    with opened(owned.home) as store:
        actions = {entry.action for entry in store.audit.list(50)}
    assert actions >= {
        "console.account.password",
        "console.account.password.failed",
        "console.account.sessions",
        "console.setup.password",
    }


def test_guessing_at_an_open_browser_is_slowed(owned: Daemon) -> None:
    token = log_in(owned).cookies[COOKIE]
    body = {"old": "a guess", "password": "another password", "again": "another password"}

    def guess() -> int:
        return httpx.post(
            f"{owned.url}/account/password", data=body, headers=OWN, cookies={COOKIE: token}
        ).status_code

    answers = [guess() for _ in range(9)]
    assert answers[:5] == [400] * 5
    assert 429 in answers[5:]
    # It is one allowance, at the login and here.
    assert log_in(owned).status_code == 429
