"""The log, the audit trail and backups, in a browser and through the address bar."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import FIRST, NASTY, PHONE, check_sound, confirm, give_past, opened
from daemons import Daemon, StartDaemon
from playwright.sync_api import FilePayload, Page, expect

from appliance.console.logs import READ_BYTES, Wanted, records, since, tail
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store.owner import set_password

OpenPage = Callable[..., Page]
LINE = "2026-11-26 04:29:53,012 {level} appliance.app: {text}\n"


def log(home: Home, level: str, text: str) -> None:
    with (home.logs / "shammah.log").open("a") as file:
        file.write(LINE.format(level=level, text=text))


# -- log ----------------------------------------------------------------------------------------


def test_log(box: Daemon, open_page: OpenPage) -> None:
    log(box.home, "WARNING", f"careful {NASTY}")
    log(box.home, "ERROR", "it broke\nTraceback (most recent call last):\n  File x")
    log(box.home, "DEBUG", "small talk")
    page = open_page(box.url + "/logs")
    found = page.locator("#records li")
    expect(found.first).to_contain_text("Traceback (most recent call last)")
    expect(page.locator("#records")).to_contain_text(f"careful {NASTY}")
    expect(page.locator("#records")).not_to_contain_text("small talk")
    check_sound(page, "logs")
    log(box.home, "INFO", f"just now {NASTY}")
    expect(found.first).to_contain_text(f"just now {NASTY}")
    page.get_by_label("At least").select_option("ERROR")
    page.get_by_role("button", name="Show").click()
    expect(found).to_have_count(1)
    # What comes in is narrowed like what was there.
    log(box.home, "INFO", "of no interest")
    log(box.home, "ERROR", "it broke again")
    expect(found.first).to_contain_text("it broke again")
    expect(found).to_have_count(2)


def test_log_of_one_request(box: Daemon, open_page: OpenPage) -> None:
    """Whatever the format, a request's lines are found by its id, and one is a click away from the others."""
    with (box.home.logs / "shammah.log").open("a") as file:
        file.write("2026-11-26 04:29:53,012 INFO appliance.access request=req-1: one of it\n")
        file.write(
            "2026-11-26 04:29:53,012 INFO appliance.access request=req-2: of another\n    more of it\n"
        )
        entry = {"time": "2026-11-26T04:29:53.012+00:00", "level": "DEBUG", "logger": "appliance.x"}
        file.write(json.dumps({**entry, "message": f"two of it {NASTY}", "request": "req-1"}) + "\n")
    page = open_page(box.url + "/logs")
    page.get_by_role("link", name="req-1").first.click()
    found = page.locator("#records li")
    expect(found).to_have_count(2)
    expect(found.first).to_contain_text(f"two of it {NASTY}")
    expect(page.get_by_label("Request or run")).to_have_value("req-1")
    check_sound(page, "logs of a request")
    log(box.home, "INFO", "of no interest")
    with (box.home.logs / "shammah.log").open("a") as file:
        file.write("2026-11-26 04:29:54,012 WARNING appliance.x request=req-1 run=run_1: three of it\n")
    expect(found).to_have_count(3)
    page.get_by_label("Request or run").fill("run_1")
    page.get_by_role("button", name="Show").click()
    expect(found).to_have_count(1)


def test_log_without_scripts(box: Daemon, open_page: OpenPage) -> None:
    log(box.home, "INFO", "a needle in it")
    page = open_page(box.url + "/logs", PHONE, scripts=False)
    page.get_by_label("Search").fill("NEEDLE")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#records li")).to_have_count(1)
    whole = box.get("/logs/file")
    assert whole.headers["content-disposition"].endswith('filename="shammah.log"')
    assert "a needle in it" in whole.text


@pytest.mark.parametrize("query", ["?level=NOISE", "?search=%00", "?level=ERROR&search=" + "x" * 5000])
def test_log_of_anything(box: Daemon, query: str) -> None:
    assert box.get("/logs" + query).status_code == 200


def test_reading_a_log(tmp_path: Path) -> None:
    path = tmp_path / "shammah.log"
    assert tail(path, 100) == ("", 0)
    assert since(path, 5) == ("", 0)
    first, second = LINE.format(level="INFO", text="one"), LINE.format(level="ERROR", text="two\nmore")
    path.write_text(first + second + "2026-11-26 04:29")
    text, end = tail(path, 10_000)
    assert [record.text for record in records(text)] == ["one", "two\nmore"]
    assert end == len(first + second)
    # From the middle of a line on, only whole records.
    assert [record.text for record in records(tail(path, len(second) + 25)[0])] == ["two\nmore"]
    with path.open("a") as file:
        file.write(":54,000 INFO x: three\n")
    text, end = since(path, end)
    assert [record.text for record in records(text)] == ["three"]
    path.write_text(first)  # begun anew
    assert since(path, end)[0] == first
    assert list(records("no head\n")) == []
    (odd,) = records("2026-99-99 99:99:99,999 INFO x: y")
    assert odd.at == 0.0
    path.write_text(first * 50_000)
    text, end = since(path, 0)
    assert len(text) <= READ_BYTES < end


def test_what_is_wanted() -> None:
    (record,) = records(LINE.format(level="WARNING", text="Straße"))
    assert Wanted("WARNING", "STRASSE").fits(record)
    assert Wanted("DEBUG", "appliance.app").fits(record)
    assert not Wanted("ERROR").fits(record)
    assert not Wanted("INFO", "elsewhere").fits(record)


# -- audit trail --------------------------------------------------------------------------------


def test_audit_trail(box: Daemon, open_page: OpenPage) -> None:
    with opened(box.home) as store:
        store.audit.add(NASTY, NASTY, {"detail": NASTY, "address": NASTY})
        store.audit.add("appliance", "adapter.withdraw", {"adapter": "A", "reason": NASTY})
        for number in range(150):
            store.audit.add("owner", "key.created", {"name": f"device {number}"})
    page = open_page(box.url + "/audit", scripts=False)
    acts = page.locator(".trail li")
    expect(acts).to_have_count(100)
    expect(acts.first).to_contain_text("Gave a key to device 149")
    page.get_by_role("link", name="Older").click()
    expect(acts.first).to_contain_text("device 49")
    expect(page.get_by_role("link", name="Newest")).to_be_visible()
    page.get_by_label("Who").select_option("appliance")
    page.get_by_label("About").select_option("adapters")
    page.get_by_role("button", name="Show").click()
    expect(acts).to_have_count(1)
    expect(acts).to_contain_text(f"Withdrew A: {NASTY}")
    page.goto(box.url + "/audit?search=onerror")
    expect(acts).to_have_count(2)


def test_audit_trail_is_sound(box: Daemon, open_page: OpenPage) -> None:
    check_sound(open_page(box.url + "/audit"), "audit")


@pytest.mark.parametrize("query", ["?before=x", "?before=-1", f"?before={'9' * 60}", "?who=nobody&about=x"])
def test_audit_trail_of_anything(box: Daemon, query: str) -> None:
    assert box.get("/audit" + query).status_code == 200


# -- backup -------------------------------------------------------------------------------------


def test_backup(box: Daemon, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(box.url + "/backup", scripts=False)
    expect(page.get_by_text("No backup yet.")).to_be_visible()
    page.get_by_role("button", name="Back up now").click()
    expect(page.locator(".flash-good")).to_contain_text("is made")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "copy")
    assert len(gzip.decompress((tmp_path / "copy").read_bytes())) > 10_000
    with opened(box.home) as store:
        assert {entry.action for entry in store.audit.list(2)} == {
            "console.backup.created",
            "console.backup.downloaded",
        }
    # What was kept elsewhere can be brought back, without scripts too; anything else is refused.
    page.get_by_text("Delete").first.click()
    page.get_by_role("button", name="Yes, delete").click()
    expect(page.get_by_text("No backup yet.")).to_be_visible()
    for name, content, said in (
        ("copy.tar.gz", (tmp_path / "copy").read_bytes(), "is here, and is whole"),
        ("other.tar.gz", b"something else", "not a backup of Shammah"),
        ("half.tar.gz", (tmp_path / "copy").read_bytes()[:-2000], "damaged"),
    ):
        file = FilePayload(name=name, mimeType="application/gzip", buffer=content)
        page.get_by_label("File").set_input_files(file)
        page.get_by_role("button", name="Upload").click()
        expect(page.locator(".flash-good, .flash-bad")).to_contain_text(said)
    assert [path.name for path in box.home.backups.iterdir()] == [page.locator(".file").inner_text()]
    page.get_by_role("link", name="Restore").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Restore this backup?")
    page.get_by_role("button", name="Check it").click()
    expect(page.get_by_role("heading", name="A restore waits")).to_be_visible()
    page.get_by_role("button", name="Do not restore").click()
    expect(page.get_by_role("heading", name="A restore waits")).to_have_count(0)


def test_a_backup_is_restored_by_a_restart(
    start_daemon: StartDaemon, bundle: Bundle, open_page: OpenPage
) -> None:
    box = start_daemon("[console]\nname = 'Before'\n[lora]\nenabled = false\n")
    give_past(box.home, bundle)
    with opened(box.home) as store:
        set_password(store, "correct horse battery")
    page = open_page(box.url)

    def log_in() -> None:
        page.get_by_label("Password").fill("correct horse battery")
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#home")).to_be_visible()

    log_in()
    page.goto(box.url + "/backup")
    page.get_by_role("button", name="Back up now").click()
    expect(page.locator(".flash-good")).to_contain_text("is made")
    # What happens afterwards is undone by the restore.
    page.goto(box.url + "/adapters")
    confirm(page, f"Promote… {FIRST}")
    expect(page.locator(".flash-good")).to_contain_text("in service")
    box.home.config.write_text("[console]\nname = 'After'\n[lora]\nenabled = false\n")
    pid = box.pid
    page.goto(box.url + "/backup")
    page.get_by_role("link", name="Restore").click()
    page.get_by_role("button", name="Check it").click()
    page.get_by_role("button", name="Restart now").click()
    # The page waits for the box; sessions do not come back with a backup.
    log_in()
    expect(page.locator(".brand")).to_contain_text("Before")
    expect(page.locator("#home article").first).to_contain_text("Base model")
    expect(page.locator("#happened")).to_contain_text("Put a backup in place")
    assert box.pid == pid
    assert box.ask("Are you there?")
    page.goto(box.url + "/backup")
    expect(page.get_by_role("heading", name="What was here before")).to_be_visible()


def test_backup_is_sound(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(box.url + "/backup")
    page.get_by_role("button", name="Back up now").click()
    expect(page.locator(".flash-good")).to_contain_text("is made")
    (box.home.backups / "backup_20260101T000000Z.tar.gz").write_bytes(b"damaged")
    page.reload()
    expect(page.get_by_text("Damaged")).to_be_visible()
    check_sound(page, "backup")
    page.get_by_role("link", name="Restore").first.click()
    check_sound(page, "restore")
    page.goto(box.url + "/backup/restore/backup_20260101T000000Z.tar.gz")
    expect(page.locator(".flash-bad")).to_contain_text("not a backup of Shammah")
    row = page.locator("li").filter(has_text="backup_20260101T000000Z.tar.gz")
    row.locator("summary").click()
    row.get_by_role("button", name="Yes, delete").click()
    expect(page.locator(".flash-good")).to_contain_text("Deleted")
    expect(row).to_have_count(0)


@pytest.mark.parametrize(
    "path", ["/backup/file/..%2Fstore.db", "/backup/file/x", "/backup/file/%2Fetc%2Fpasswd"]
)
def test_no_other_file_can_be_fetched(box: Daemon, path: str) -> None:
    assert box.get(path).status_code == 404
