"""The page that says how to trust the box: for everybody, on a phone too, without scripts too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from browsing import PHONE, check_sound
from cryptography import x509
from daemons import Daemon, free_port, install_bundle
from playwright.sync_api import Page, expect

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.network.authority import fingerprint, read_authority
from appliance.store import Store
from appliance.store.owner import set_password

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def daemon(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text(f'[lora]\nenabled = false\n[tls]\nbind = "127.0.0.1:{free_port()}"\n')
    running = Daemon(home).start()
    yield running
    running.kill()


def test_a_stranger_reads_how_and_downloads_it(daemon: Daemon, open_page: OpenPage) -> None:
    store = Store.open(daemon.home)
    set_password(store, "correct horse battery")
    store.close()
    page = open_page(f"{daemon.url}/trust", PHONE, scripts=False)
    expect(page.get_by_role("heading", name="Trust this box")).to_be_visible()
    shown = fingerprint(read_authority(daemon.home).certificate)
    expect(page.locator("#fingerprint")).to_have_text(shown)
    page.get_by_text("iPhone and iPad").click()
    expect(page.get_by_text("Certificate Trust Settings")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Linux, programs").click()
    pem = download.value.path().read_bytes()
    assert fingerprint(x509.load_pem_x509_certificate(pem)) == shown
    page.goto(f"{daemon.url}/devices")  # nothing else is open
    expect(page).to_have_url(f"{daemon.url}/login?next=/devices")


def test_the_page_is_sound(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/trust")
    for fold in page.locator("details.fold > summary").all():
        fold.click()
    check_sound(page, "trust")
