"""A real browser, and a box with a past."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from browsing import DESKTOP, give_past
from daemons import Daemon, install_bundle
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from appliance.home import Home
from appliance.model.bundle import Bundle

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, not of the session: while Playwright is open, no other event loop may run here."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("No browser: install Debian's `chromium` (make test does so when it may).")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


# Answers, switches and reloads of a busy machine.
expect.set_options(timeout=60_000)
OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`open_page(url, size, scheme, scripts=True)`: a page whose faults fail the test at its end.

    Faults are script errors, anything the content-security policy had to block, and requests to
    other hosts than the box.
    """
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def open_(
        url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light", *, scripts: bool = True
    ) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,  # type: ignore[arg-type]
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        context.set_default_timeout(90_000)
        # The report of the policy: the browser itself may not tell of each violation on its console.
        context.add_init_script(
            "addEventListener('securitypolicyviolation', event => console.error("
            "`Content Security Policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}`))"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        page.on(
            "console",
            lambda message: (
                faults.append(message.text) if "Content Security Policy" in message.text else None
            ),
        )
        origin = "/".join(url.split("/")[:3])
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(origin) else faults.append(f"fetched {request.url}")
            ),
        )
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        for page in context.pages:
            page.wait_for_load_state()  # a context that is closed while it goes to a page may never end
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module. It gives short answers, and does not train by itself."""
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n[model]\ndefault_max_tokens = 40\n")
    running = Daemon(home).start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def box(daemon: Daemon, bundle: Bundle) -> Daemon:
    """The module's daemon, with a past."""
    give_past(daemon.home, bundle)
    return daemon
