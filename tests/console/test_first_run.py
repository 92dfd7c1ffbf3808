"""From the link in the log to a device that gets answers; and nobody else is served before."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from browsing import NASTY, PHONE, check_sound, opened
from daemons import Daemon, StartDaemon, install_bundle
from playwright.sync_api import Page, expect

from appliance.commands.client import find_daemon
from appliance.config import load_config
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

OpenPage = Callable[..., Page]
PASSWORD = "correct horse battery"
OWN = {"Sec-Fetch-Site": "same-origin"}
FORWARDED = {"X-Forwarded-For": "203.0.113.9"}
CONFIG = "[lora]\nenabled = false\n[model]\ndefault_max_tokens = 24\n"


def link(box: Daemon) -> str:
    """The newest setup link in the log."""
    found = re.findall(r"Set up this box: (http://\S+/setup\?token=\S+)", box.log)
    assert found, box.log
    return str(found[-1])


def addresses() -> list[str]:
    """This machine's own addresses in the network."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    return [address for address in found if ":" not in address]


def elsewhere(box: Daemon) -> list[tuple[str, dict[str, str]]]:
    """(URL, headers) by which a request comes from elsewhere: the network, a proxy, a re-pointed name."""
    real = [(f"http://{address}:{box.port}", {}) for address in addresses()]
    return [*real, (box.url, FORWARDED), (box.url, {"Host": "evil.example"})]


@pytest.fixture(scope="module")
def fresh(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A box that listens to the whole network and has no owner. It logs errors only; and the link."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG + "[server]\nlog_level = 'ERROR'\n")
    running = Daemon(home)
    running.start("--bind", f"0.0.0.0:{running.port}")
    yield running
    running.kill()


class TestBeforeThereIsAnOwner:
    def test_the_link_is_in_the_log_file_too(self, fresh: Daemon) -> None:
        assert link(fresh).startswith(fresh.url)
        assert link(fresh) in (fresh.home.logs / "shammah.log").read_text()
        assert "listens on 0.0.0.0, but serves only this machine" in fresh.log
        token = link(fresh).partition("token=")[2]
        for file in fresh.home.root.glob("store.db*"):
            assert token.encode() not in file.read_bytes()

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/training/run"),
            ("GET", "/health"),
            ("GET", "/ready"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/no/such/page"),
        ],
    )
    def test_programs_elsewhere_get_an_error(self, fresh: Daemon, method: str, path: str) -> None:
        with opened(fresh.home) as store:
            device, key = store.keys.create("too early")
        for url, headers in elsewhere(fresh):
            response = httpx.request(
                method, url + path, headers={**headers, "Authorization": f"Bearer {key}"}, timeout=60
            )
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (403, "not_set_up")
            assert error["type"] == "permission_error"
            assert "shammah console password" in error["message"]
        with opened(fresh.home) as store:
            assert [item.last_seen for item in store.keys.list() if item.id == device.id] == [None]
            store.keys.revoke(device.id)

    @pytest.mark.parametrize(
        "path", ["/", "/login", "/setup", "link", "/console/events", "/static/x/console.css"]
    )
    def test_people_elsewhere_are_told(self, fresh: Daemon, path: str) -> None:
        if path == "link":
            path = link(fresh).removeprefix(fresh.url)
        for url, headers in elsewhere(fresh):
            response = httpx.get(url + path, headers=headers)
            assert response.status_code == 403
            assert "not set up yet" in response.text
            assert "shammah console password" in response.text
            assert "ssh -L" in response.text
            assert "script" not in response.text
            assert "href" not in response.text
            assert "smollm" not in response.text

    def test_not_even_the_right_link_sets_a_password_from_elsewhere(self, fresh: Daemon) -> None:
        token = link(fresh).partition("token=")[2]
        body = {"token": token, "password": PASSWORD, "again": PASSWORD}
        for url, headers in elsewhere(fresh):
            response = httpx.post(f"{url}/setup/password", data=body, headers={**OWN, **headers})
            assert response.status_code == 403
            assert "Set-Cookie" not in response.headers

    def test_this_machine_is_served(self, fresh: Daemon) -> None:
        assert fresh.get("/health").json()["status"] == "ok"
        assert fresh.get("/v1/models").status_code == 200
        command = find_daemon(fresh.home)
        assert command is not None
        assert httpx.get(f"{command.url}/ready").json()["status"] == "ready"

    def test_the_command_is_served_at_any_address(self, fresh: Daemon) -> None:
        token = json.loads(fresh.home.daemon.read_text())["token"]
        headers = {"Authorization": f"Bearer {token}"}
        for url, more in elsewhere(fresh):
            assert httpx.get(f"{url}/v1/adapters", headers={**headers, **more}).status_code == 200

    def test_the_plain_page(self, fresh: Daemon, open_page: OpenPage) -> None:
        page = open_page(f"{fresh.url}/health", PHONE)
        page.set_extra_http_headers(FORWARDED)
        page.goto(fresh.url)
        check_sound(page, "not-set-up")

    def test_a_wrong_link(self, fresh: Daemon, open_page: OpenPage) -> None:
        page = open_page(f"{fresh.url}/setup?token={'x' * 43}")
        expect(page.get_by_role("heading", level=1)).to_have_text("This setup link does not work")
        check_sound(page, "setup-wrong-link")
        page.get_by_role("link", name="go on without").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Make this box yours")

    @pytest.mark.parametrize(
        ("password", "again", "message"),
        [
            ("short", "short", "8 to 1024 characters"),
            ("x" * 1025, "x" * 1025, "8 to 1024 characters"),
            ("correct horse", "correct house", "not the same"),
            ("", "", "8 to 1024 characters"),
        ],
    )
    def test_a_password_that_will_not_do(
        self, fresh: Daemon, password: str, again: str, message: str
    ) -> None:
        body = {"password": password, "again": again}
        response = httpx.post(f"{fresh.url}/setup/password", data=body, headers=OWN)
        assert response.status_code == 400
        assert message in response.text
        assert "Set-Cookie" not in response.headers

    @pytest.mark.parametrize("step", ["name", "model", "key", "try"])
    def test_first_the_password(self, fresh: Daemon, step: str) -> None:
        for response in (
            httpx.get(f"{fresh.url}/setup/{step}"),
            httpx.post(f"{fresh.url}/setup/{step}", data={"name": "x"}, headers=OWN),
        ):
            assert (response.status_code, response.headers["Location"]) == (303, "/setup")
        with opened(fresh.home) as store:
            assert store.keys.count() == 0


def test_first_run(fresh: Daemon, open_page: OpenPage, bundle: Bundle) -> None:
    page = open_page(fresh.url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.locator(".set-up")).to_contain_text("No owner password is set")
    check_sound(page, "home-before-setup")
    expect(page.get_by_role("link", name="Set up this box")).to_have_attribute("href", "/setup")

    page.goto(link(fresh))
    check_sound(page, "setup-password")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", level=1)).to_have_text("What is it called?")
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    assert cookies.pop("shammah-zone")  # by a script, and no secret
    assert set(cookies) == {"shammah_session", "shammah_known"}
    for cookie in cookies.values():
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    check_sound(page, "setup-name")
    page.get_by_label("Name of the box").fill("Kitchen box")
    page.get_by_role("button", name="Go on").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("Which model answers?")
    check_sound(page, "setup-model")
    expect(page.get_by_role("radio", name=bundle.name)).to_be_checked()
    assert load_config(fresh.home.config).console.name == "Kitchen box"
    # A reload, or coming back after a power cut, goes on where it was.
    page.goto(f"{fresh.url}/setup")
    expect(page).to_have_url(f"{fresh.url}/setup/model")
    page.get_by_role("button", name="Go on").click()

    expect(page.get_by_label("Name of the device")).to_be_visible()
    check_sound(page, "setup-key")
    page.get_by_label("Name of the device").fill(NASTY)
    page.get_by_role("button", name="Make its key").click()
    expect(page.locator("#key")).to_be_visible()
    check_sound(page, "setup-key-shown")
    assert page.locator("img").count() == 0
    key = page.locator("#key").inner_text()
    page.get_by_role("button", name="Copy the key").click()
    expect(page.get_by_role("button", name="Copied", exact=True)).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == key
    for fold in page.locator("details.fold").all():
        text = fold.locator("pre").text_content() or ""
        assert key in text
        assert f"{fresh.url}/v1" in text
    python = page.locator("#snippet-python").text_content() or ""
    with opened(fresh.home) as store:
        assert [device.name for device in store.keys.list() if not device.revoked] == [NASTY]
    page.get_by_role("button", name="Try it").click()

    expect(page.get_by_role("button", name="Ask")).to_be_visible()
    check_sound(page, "setup-try")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#try-answer .answer")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#try-answer .answer")).not_to_have_class(re.compile("problem"))
    expect(page.locator("#try-answer .answer")).not_to_be_empty()
    expect(page.locator("#try-answer")).to_contain_text(f"the box was asked as {NASTY}")
    check_sound(page, "setup-tried")

    # It is the key that is tried: on this machine the API would answer without one, too.
    own = {
        "Origin": fresh.url,
        "Cookie": "; ".join(f"{one['name']}={one['value']}" for one in page.context.cookies()),
    }
    with opened(fresh.home) as store:
        gone, revoked = store.keys.create("gone")
        store.keys.revoke(gone.id)
    for wrong in (
        "nonsense",
        "",
        "sk-shammah-",
        key[:-1],
        f"{key}x",
        key.upper(),
        f"Bearer {key}",
        revoked,
        "é",
    ):
        done = httpx.post(f"{fresh.url}/setup/key/check", data={"key": wrong}, headers=own, timeout=60)
        assert (done.status_code, "key" in done.text) == (400, True), wrong
        form = {"key": wrong, "question": "Who are you?"}
        plain = httpx.post(f"{fresh.url}/setup/try", data=form, headers=own, timeout=60)
        assert (plain.status_code, "It works" in plain.text) == (400, False), wrong
    page.goto(f"{fresh.url}/setup/try")
    page.get_by_label("The device's key").fill("nonsense")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#try-answer .problem")).to_contain_text("That is no key of this box")
    expect(page.get_by_role("link", name="Go on without trying")).to_be_visible()
    assert "nonsense" not in page.evaluate("JSON.stringify(sessionStorage)")
    page.get_by_label("The device's key").fill(key)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#try-answer")).to_contain_text("The key works")
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("It is all set up")
    check_sound(page, "setup-done")
    page.get_by_role("link", name="Done, go to Home").click()
    expect(page.locator("form.log-out").first).to_be_attached()
    expect(page.locator(".set-up")).to_have_count(0)

    # The key works as a program would use it, from this machine and from the network. No restart.
    for url in (fresh.url, *(f"http://{address}:{fresh.port}" for address in addresses())):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        assert [model.id for model in client.models.list()]
    answer = client.chat.completions.create(
        model="shammah", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    assert answer.choices[0].message.content
    compile(python, "snippet", "exec")
    with opened(fresh.home) as store:
        actions = [entry.action for entry in store.audit.list(200)]
        used = next(device for device in store.keys.list() if not device.revoked)
    assert used.last_seen is not None
    for action in ("console.setup.password", "settings.save", "console.key.created", "setup.refused"):
        assert action in actions


def test_afterwards_the_network_is_served_and_the_link_is_not(fresh: Daemon, open_page: OpenPage) -> None:
    for url, headers in elsewhere(fresh):
        assert httpx.get(f"{url}/health", headers=headers).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(url, headers=headers).headers["Location"] == "/login"
    page = open_page(link(fresh))
    expect(page.get_by_role("heading", level=1)).to_have_text("This box is set up already")
    check_sound(page, "setup-used-link")
    token = link(fresh).partition("token=")[2]
    body = {"token": token, "password": "another one", "again": "another one"}
    response = httpx.post(f"{fresh.url}/setup/password", data=body, headers=OWN)
    assert (response.status_code, response.headers["Location"]) == (303, "/login")
    assert httpx.post(f"{fresh.url}/login", data={"password": PASSWORD}, headers=OWN).status_code == 303


def test_first_run_without_scripts(start_daemon: StartDaemon, open_page: OpenPage, bundle: Bundle) -> None:
    box = start_daemon(CONFIG)
    other = box.home.models / "other-model"
    other.mkdir()
    for file in bundle.path.iterdir():
        if file.name != "manifest.json":
            (other / file.name).hardlink_to(file)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "other-model"}))

    earlier = link(box)
    assert box.stop() == 0
    box.start()
    assert link(box) != earlier
    page = open_page(earlier, PHONE, scripts=False)
    expect(page.get_by_role("heading", level=1)).to_have_text("This setup link does not work")
    page.goto(link(box))
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD + "!")
    page.get_by_role("button", name="Set the password").click()
    expect(page.get_by_role("alert")).to_contain_text("not the same")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()

    page.get_by_label("Name of the box").fill(" ")
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Name of the box").fill("Shammah")
    page.get_by_role("button", name="Go on").click()

    page.get_by_role("radio", name="other-model").check()
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("status")).to_contain_text("other-model will answer from the next start")
    assert load_config(box.home.config).model.name == "other-model"

    page.get_by_label("Name of the device").fill(" ")
    page.get_by_role("button", name="Make its key").click()
    expect(page.get_by_role("alert")).to_contain_text("1 to 64")
    page.get_by_label("Name of the device").fill("phone")
    page.get_by_role("button", name="Make its key").click()
    key = page.locator("#key").inner_text()
    expect(page.get_by_role("button", name="Copy the key")).to_be_hidden()
    page.reload()  # sends the form again, as a browser would after asking
    expect(page.get_by_role("alert")).to_contain_text("phone")
    page.goto(f"{box.url}/setup")  # nothing is lost but the key, which the owner has
    page.get_by_label("The device's key").fill("sk-shammah-nonsense")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    page.goto(f"{box.url}/setup/try")
    page.get_by_label("The device's key").fill(key)
    page.get_by_label("Question").fill(NASTY)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#try-answer .answer")).not_to_be_empty()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_text("Restart the box")).to_be_visible()
    expect(page.get_by_text("Let the network in.")).to_be_visible()
    with opened(box.home) as store:
        assert store.examples.count() == 0


def test_guessing_the_link_is_slowed(start_daemon: StartDaemon) -> None:
    box = start_daemon(CONFIG)

    def guess(token: str) -> httpx.Response:
        body = {"token": token, "password": PASSWORD, "again": PASSWORD}
        return httpx.post(f"{box.url}/setup/password", data=body, headers=OWN)

    assert [guess(f"guess{number}").status_code for number in range(5)] == [403] * 5
    refused = next(response for response in map(guess, "abcdefgh") if response.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    # Not even the right one gets through while the wait lasts.
    assert guess(link(box).partition("token=")[2]).status_code == 429
    # The command is the other way in; it opens the network without a restart.
    assert httpx.get(f"{box.url}/health", headers=FORWARDED).status_code == 403
    with opened(box.home) as store:
        set_password(store, PASSWORD)
    assert httpx.get(f"{box.url}/health", headers=FORWARDED).status_code == 200
    assert httpx.get(link(box)).status_code == 403


def test_insecure_lets_the_link_work_from_the_network(start_daemon: StartDaemon) -> None:
    box = start_daemon(CONFIG)
    box.kill()
    box.start("--bind", f"0.0.0.0:{box.port}", "--insecure")
    token = link(box).partition("token=")[2]
    for url, headers in elsewhere(box):
        assert httpx.get(f"{url}/health", headers=headers).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(url, headers=headers).status_code == 403
        assert "Open the setup link" in httpx.get(f"{url}/setup", headers=headers).text
        assert "Make this box yours" in httpx.get(f"{url}/setup?token={token}", headers=headers).text
    body = {"token": token, "password": PASSWORD, "again": PASSWORD}
    url, headers = elsewhere(box)[0]
    done = httpx.post(f"{url}/setup/password", data=body, headers={**OWN, **headers})
    assert (done.status_code, done.headers["Location"]) == (303, "/setup/name")
