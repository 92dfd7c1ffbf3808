"""The settings in a real browser: changed and seen to count, refused as typed, undone, written as text."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from browsing import DESKTOP, NASTY, PHONE, check_sound, opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.config import Config, load_config
from appliance.console.setting_fields import LEADS, TITLES, find_keys, label, limits, quiet, shown
from appliance.settings.form import keys
from appliance.store.changes import Difference

OpenPage = Callable[..., Page]
OWN = {"Sec-Fetch-Site": "same-origin"}
START = "# ours\n[lora]\nenabled = false\n\n[model]\ndefault_max_tokens = 40  # short\n"


@pytest.fixture(autouse=True)
def file(daemon: Daemon) -> Iterator[None]:
    """Each test begins with the same file, and the daemon goes by it."""
    daemon.home.config.write_text(START)
    httpx.post(f"{daemon.url}/settings/reload", headers=OWN)
    yield


def on_disk(daemon: Daemon) -> Config:
    return load_config(daemon.home.config)


def look(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^Look at the change")).click()


# -- words ----------------------------------------------------------------------------------------


def test_every_section_and_setting_has_a_name() -> None:
    assert set(TITLES) == set(LEADS) == set(Config.model_fields)
    for section in TITLES:
        labels = [label(name) for name in keys() if name.startswith(f"{section}.")]
        assert len(set(labels)) == len(labels), "two of one name on a page"
        assert [text for text in labels if "_" in text or not text[0].isupper()] == []


def test_words() -> None:
    assert shown("lora.enabled", False) == "off"
    assert shown("train.memory_limit_mb", 6144) == "6144 MB"
    assert shown("train.ort_python", "") == "empty"
    assert shown("resources.quiet_hours", "22:00-07:00") == "22:00 to 07:00"
    assert shown("train.dropped_by_a_release", 3) == "3"
    assert limits(keys()["model.top_p"]) == "More than 0, at most 1."
    assert limits(keys()["model.slots"]) == "From 1 to 64."
    assert limits(keys()["console.name"]) == ""
    assert [key.name for key in find_keys("TEMPERATURE sampling")] == ["model.temperature"]


def test_what_quiet_hours_mean() -> None:
    import time

    at = time.mktime((2026, 11, 22, 21, 10, 0, 0, 0, -1))
    assert quiet("22:00-07:00", at) == (
        "No runs between 22:00 and 07:00; it is 21:10 on this box, so runs may start."
    )
    assert "so it is quiet now" in (quiet("21:00-07:00", at) or "")
    assert "no quiet hours" in (quiet("21:10-21:10", at) or "")
    assert "any time" in (quiet("", at) or "")
    assert quiet("22:00-", at) is None


# -- in the browser -------------------------------------------------------------------------------


def test_a_change_is_looked_at_saved_counted_and_undone(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings")
    page.get_by_role("link", name="This console").click()
    page.get_by_label("Name of the box").fill("Kitchen box")
    look(page)
    expect(page.get_by_role("heading", name="Look at the changes")).to_be_visible()
    expect(page.locator("del")).to_have_text("Shammah")
    expect(page.locator("ins")).to_have_text("Kitchen box")
    expect(page.locator(".diff")).to_contain_text("Counts at once")
    assert on_disk(daemon).console.name == "Shammah"

    page.get_by_role("button", name="Go on editing").click()
    expect(page.get_by_label("Name of the box")).to_have_value("Kitchen box")
    look(page)
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("1 setting counts from now on")
    expect(page).to_have_title("This console · Kitchen box")
    assert daemon.home.config.read_text() == f'{START}\n[console]\nname = "Kitchen box"\n'
    with opened(daemon.home) as store:
        entry = store.audit.list(1)[0]
        assert (entry.actor, entry.action) == ("owner", "settings.save")

    page.goto(f"{daemon.url}/settings/history")
    first = page.locator(".entry").first
    expect(first).to_contain_text("Name of the box: Shammah")
    first.get_by_role("link").click()
    expect(page.locator("#undo-title + p")).to_contain_text("leaves all other settings")
    page.get_by_role("button", name="Undo this change").click()
    expect(page.locator(".flash-good")).to_contain_text("Undone: 1 setting counts from now on")
    expect(page).to_have_title("History of settings · Shammah")
    expect(page.locator(".entry").nth(1)).to_contain_text("Undone")
    assert daemon.home.config.read_text().rstrip() == START.rstrip()


def test_wrong_values_are_told_as_they_are_typed(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings/lora", PHONE)
    weight = page.get_by_label("High weight")
    weight.fill("0")
    weight.blur()
    said = page.locator("#said-lora-high_weight")
    expect(said).to_have_text("This must be at least 0.01.")
    # And when it is sent all the same, which this browser would not; what is right beside it is kept.
    weight.evaluate("field => field.removeAttribute('min')")
    page.get_by_label("Examples for a run").fill("7")
    look(page)
    expect(page.get_by_role("alert")).to_contain_text("Nothing was saved.")
    expect(weight).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Examples for a run")).to_have_value("7")
    check_sound(page, "settings-wrong")
    weight.fill("12")
    weight.blur()
    expect(said).to_have_text("")
    # The browser itself does not send what is outside of the limits.
    page.get_by_label("Examples for a run").fill("0")
    look(page)
    assert page.get_by_label("Examples for a run").evaluate("field => field.validity.rangeUnderflow")
    expect(page).to_have_url(re.compile("/console/shown/"))
    assert daemon.home.config.read_text() == START


def test_quiet_hours(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings", PHONE)
    said = page.locator("#said-resources-quiet_hours")
    expect(said).to_contain_text("at any time")
    page.get_by_label("From").fill("22:00")
    page.get_by_label("to", exact=True).fill("07:00")
    page.get_by_label("to", exact=True).blur()
    expect(said).to_contain_text("No runs between 22:00 and 07:00; it is ")
    look(page)
    expect(page.locator("ins")).to_have_text("22:00 to 07:00")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("Saved")
    assert on_disk(daemon).resources.quiet_hours == "22:00-07:00"
    page.get_by_label("From").fill("")
    look(page)
    expect(page.get_by_role("alert")).to_contain_text("This must look like 22:00-07:00.")
    expect(page.get_by_label("to", exact=True)).to_have_value("07:00")


def test_without_scripts(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings?q=learn from use", PHONE, scripts=False)
    page.get_by_role("link", name="Learning").click()
    expect(page).to_have_url(f"{daemon.url}/settings/lora#lora-enabled")
    page.get_by_label("Learning", exact=True).check()
    look(page)
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("Saved")
    assert on_disk(daemon).lora.enabled
    page.get_by_label("Learning", exact=True).uncheck()
    look(page)
    expect(page.locator("ins")).to_have_text("off")
    page.get_by_role("button", name="Save").click()
    assert not on_disk(daemon).lora.enabled
    page.goto(f"{daemon.url}/settings/history")
    page.locator(".entry a").first.click()
    page.get_by_role("button", name="Undo this change").click()
    assert on_disk(daemon).lora.enabled
    page.goto(f"{daemon.url}/settings/text")
    page.get_by_label("config.toml").fill(START)
    look(page)
    page.get_by_role("button", name="Save").click()
    assert daemon.home.config.read_text() == START


def test_what_waits_for_a_restart(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings/model")
    page.get_by_label("Slots").fill("3")
    page.get_by_label("Temperature").fill("0.5")
    look(page)
    expect(page.locator(".diff > li").first).to_contain_text("Needs a restart")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_have_text(
        "Saved: 1 setting counts from now on; Slots counts from the next start."
    )
    notice = page.locator("#restart-notice")
    expect(notice).to_contain_text("A change waits for a restart: model.slots.")
    expect(notice.get_by_role("button", name="Restart now")).to_be_enabled()


def test_a_file_that_changed_meanwhile(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings/model")
    daemon.home.config.write_text("[model]\ntemperature = 1.5\ntop_p = 0.8\n")
    page.get_by_label("Temperature").fill("0.5")
    look(page)
    expect(page.get_by_role("alert")).to_contain_text("was changed while you were typing")
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    expect(page.locator("#model-temperature")).to_contain_text("In the file meanwhile: 1.5")
    # What was not touched is the file's, and stays so.
    expect(page.get_by_label("Top-p")).to_have_value("0.8")
    expect(page.locator(".notice")).to_contain_text("changed outside the console")
    look(page)
    # Once more, between the look and the save.
    daemon.home.config.write_text("[model]\ntemperature = 1.6\ntop_p = 0.7\n")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#model-temperature")).to_contain_text("In the file meanwhile: 1.6")
    look(page)
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("from now on")
    assert daemon.home.config.read_text() == "[model]\ntemperature = 0.5\ntop_p = 0.7\n"


def test_use_what_an_editor_wrote(daemon: Daemon, open_page: OpenPage) -> None:
    daemon.home.config.write_text("[console]\nname = 'Attic box'\n")
    page = open_page(f"{daemon.url}/settings")
    expect(page).to_have_title("Settings · Shammah")
    expect(page.locator(".notice")).to_contain_text("Name of the box")
    page.get_by_role("button", name="Use it now").click()
    expect(page).to_have_title("Settings · Attic box")
    expect(page.locator(".notice")).to_have_count(0)


def test_text(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings/text")
    field = page.get_by_label("config.toml")
    expect(field).to_have_value(START)
    wrong = START.replace("enabled", "enabeld") + f"# {NASTY}\n[gate]\nmax_empty = 2\n"
    field.fill(wrong)
    look(page)
    problems = page.locator(".problems li")
    expect(problems.nth(0)).to_contain_text("Line 3 enabeld = false")
    expect(problems.nth(0)).to_contain_text("did you mean `enabled`?")
    expect(problems.nth(1)).to_contain_text("Line 9 max_empty = 2")
    expect(field).to_have_value(wrong)
    right = wrong.replace("enabeld", "enabled").replace("max_empty = 2", "max_empty = 0.2")
    field.fill(right)
    look(page)
    expect(page.locator(".diff")).to_contain_text("gate.max_empty")
    expect(page.locator(".lines .added").first).to_contain_text(f"# {NASTY}")
    check_sound(page, "settings-text-preview")
    # Somebody is faster.
    daemon.home.config.write_text("# faster\n")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("was changed since")
    expect(field).to_have_value(right)
    expect(page.locator("pre")).to_have_text("# faster\n")
    look(page)
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_contain_text("Saved")
    assert daemon.home.config.read_text() == right


def test_a_broken_file(daemon: Daemon, open_page: OpenPage) -> None:
    daemon.home.config.write_text(f"[lora]\n# {NASTY}\nenabled = = 1\n")
    page = open_page(f"{daemon.url}/settings")
    expect(page.get_by_role("alert")).to_contain_text("line 3")
    check_sound(page, "settings-broken")
    page.goto(f"{daemon.url}/settings/lora")
    expect(page.get_by_label("Examples for a run")).to_be_disabled()
    page.goto(f"{daemon.url}/settings/text")
    expect(page.locator(".problems li")).to_contain_text("Line 3 enabled = = 1")
    check_sound(page, "settings-text-broken")
    page.get_by_role("button", name="Use what the box has now").click()
    expect(page.get_by_role("main")).to_contain_text("No value changes, only the text.")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".flash-good")).to_be_visible()
    assert not on_disk(daemon).lora.enabled
    assert "= = 1" in (daemon.home.root / "config.toml.broken").read_text()
    # What is in the file is wrong, but can be read.
    daemon.home.config.write_text("[console]\nname = ' '\n[train]\nrank = 'many'\nflux = 1\n")
    page.goto(f"{daemon.url}/settings/train")
    expect(page.get_by_label("LoRA rank")).to_have_value("many")


def test_an_undo_that_cannot_be(daemon: Daemon, open_page: OpenPage) -> None:
    with opened(daemon.home) as store:
        change = store.changes.add(NASTY, [Difference("console.name", NASTY, "Elsewhere")])
        emptied = store.changes.add("owner", [])
        for number in range(25):
            store.changes.add("owner", [Difference("train.seed", number, number + 1)])
    page = open_page(f"{daemon.url}/settings/history/{change.id}")
    expect(page.get_by_role("main")).to_contain_text("changed in the file since, to Shammah")
    expect(page.get_by_role("button", name="Undo this change")).to_have_count(0)
    check_sound(page, "settings-change")
    response = httpx.post(f"{daemon.url}/settings/history/{change.id}/undo", headers=OWN)
    assert response.headers["location"] == f"/settings/history/{change.id}"
    assert daemon.home.config.read_text() == START
    page.goto(f"{daemon.url}/settings/history/{emptied.id}")
    expect(page.get_by_role("main")).to_contain_text("only the text of the file")
    page.goto(f"{daemon.url}/settings/history")
    assert page.locator(".entry").count() == 20
    check_sound(page, "settings-history")
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("main")).to_contain_text("21\u2013")
    assert daemon.get("/settings/history/99999").status_code == 404
    assert daemon.get("/settings/history?page=99").status_code == 200


def test_pages_are_sound_and_small(daemon: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{daemon.url}/settings", DESKTOP)
    for name in ("", *TITLES, "text"):
        page.goto(f"{daemon.url}/settings/{name}".rstrip("/"))
        if name in ("", "model", "resources", "text"):
            check_sound(page, f"settings-{name}".rstrip("-"))
        assert len(gzip.compress(page.content().encode())) < 20_000
        patterns = page.eval_on_selector_all("[pattern]", "all => all.map(field => field.pattern)")
        for pattern in patterns:  # a browser passes over a pattern that it cannot read
            page.evaluate("pattern => new RegExp(pattern, 'v')", pattern)


def test_bad_input(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url, headers=OWN, timeout=60) as client:
        assert client.get("/settings/flux").status_code == 404
        assert client.post("/settings/preview", data={"section": "flux"}).status_code == 404
        assert client.post("/settings/check?key=train.flux", data={}).status_code == 404
        assert client.post("/settings/save", data={"section": "train"}).status_code == 409
        etag = re.search(r'name="etag" value="(\w+)"', client.get("/settings/train").text)
        assert etag is not None
        good = {"section": "train", "etag": etag[1]}
        for value in ("", "1.5", "many", "0", NASTY, "9" * 5000, "\x00"):
            answer = client.post("/settings/save", data={**good, "train.rank": value, "was.train.rank": "16"})
            assert answer.status_code == 400
            assert NASTY not in answer.text
        answer = client.post("/settings/save", data={**good, "train.rank": "16", "train.flux": "1"})
        assert answer.status_code == 303  # unknown fields are not looked at
        assert client.post("/settings/text", data={"text": "x" * 300_000, **good}).status_code == 400
        assert client.post("/settings/text", content=b"text=%ff%fe", headers={
            "Content-Type": "application/x-www-form-urlencoded"
        }).status_code in (400, 409)  # fmt: skip
    assert daemon.home.config.read_text() == START
