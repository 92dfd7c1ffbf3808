"""The queue's pages: what is found, what is done to it, and what is said of it."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from browsing import FIRST, NASTY, PHONE, check_sound, opened
from daemons import Daemon
from playwright.sync_api import Page, expect

from appliance.console.queue import SIZE
from appliance.store import Store
from appliance.store.browse import Filter
from appliance.store.example import Example
from appliance.store.examples import NewExample

OpenPage = Callable[..., Page]
OWN = {"Sec-Fetch-Site": "same-origin"}
MANY = 100_000


@pytest.fixture
def store(box: Daemon) -> Iterator[Store]:
    with opened(box.home) as store:
        yield store


@pytest.fixture
def client(box: Daemon) -> Iterator[httpx.Client]:
    """A browser's requests from one of our own pages."""
    with httpx.Client(base_url=box.url, headers=OWN, timeout=120, follow_redirects=True) as client:
        yield client


def add(store: Store, query: str, response: str = "So.", **fields: Any) -> Example:
    created = fields.pop("created", None)
    given = {
        "kind": "automatic",
        "target": response,
        "weight": 1.0,
        "messages": [{"role": "user", "content": query}],
    } | fields
    return store.examples.add(NewExample(query=query, response=response, **given), created=created)


def rows(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".asked").all_text_contents()]


def test_what_is_found_without_scripts(box: Daemon, store: Store, open_page: OpenPage) -> None:
    hall, _ = store.keys.create(f"Hall {NASTY}"[:60])
    now = time.time()
    for number in range(SIZE + 10):
        add(store, f"Lamp {number:02}?", device=hall.id if number < 3 else None, created=now - 1000 + number)
    add(store, "Lamp of old?", kind="praise", weight=5.0, created=now - 86_400 * 30)
    add(store, "Lamp learned?", state="used", masked={"e-mail": 1})
    page = open_page(box.url + "/queue", PHONE, scripts=False)
    page.get_by_label("Search in questions").fill("lamp")
    page.get_by_role("button", name="Search").click()
    assert rows(page) == [f"Lamp {number:02}?" for number in range(SIZE + 9, 9, -1)]
    expect(page.locator("#queue-top")).to_contain_text(f"{SIZE + 11} match")
    page.get_by_role("link", name="Next").click()
    assert rows(page) == [*(f"Lamp {number:02}?" for number in range(9, -1, -1)), "Lamp of old?"]
    page.get_by_role("link", name="Previous").click()
    assert rows(page)[0] == f"Lamp {SIZE + 9}?"
    page.locator("summary", has_text="Filter and sort").click()
    page.get_by_label("Device").select_option(label=hall.name)
    page.get_by_label("Sort").select_option(label="Oldest first")
    page.get_by_role("button", name="Show").click()
    assert rows(page) == ["Lamp 00?", "Lamp 01?", "Lamp 02?"]
    # All of it is in the address; the form shows what it says.
    for part in ("q=lamp", f"device={hall.id}", "sort=oldest"):
        assert part in page.url
    expect(page.get_by_label("Device")).to_have_value(hall.id)
    expect(page.locator(".device").first).to_contain_text(hall.name[:30])
    page.get_by_role("link", name="All").click()
    assert rows(page) == ["Lamp 00?", "Lamp 01?", "Lamp 02?"]
    page.get_by_role("link", name="Clear").click()
    assert "q=" not in page.url and "state=all" in page.url
    page.goto(f"{box.url}/queue?q=lamp&kind=praise&kind=critique&weight_from=4,5&weight_to=5")
    assert rows(page) == ["Lamp of old?"]
    day = time.strftime("%Y-%m-%d", time.gmtime(now - 86_400 * 30))
    page.goto(f"{box.url}/queue?q=lamp&since={day}&until={day}&zone=UTC")
    assert rows(page) == ["Lamp of old?"]
    page.goto(f"{box.url}/queue?state=used&q=lamp&masked=yes")
    assert rows(page) == ["Lamp learned?"]
    page.goto(f"{box.url}/queue?q=nowhere+to+be+found")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("state=lost", "lost"),
        ("weight_from=heavy", "A weight is a number, not &#39;heavy&#39;"),
        ("weight_to=nan", "finite"),
        ("since=yesterday", "Write a date like"),
        ("until=9999-12-31", "no such day"),
        ("masked=perhaps", "yes or no"),
        ("sort=prettiest", "newest"),
        ("kind=gossip", "gossip"),
        ("at=xyz", "start at its first page"),
        ("q=" + "x" * 201, "200 characters"),
    ],
)
def test_what_cannot_be_asked_is_said(client: httpx.Client, query: str, message: str) -> None:
    answer = client.get(f"/queue?{query}")
    assert answer.status_code == 400
    assert message in answer.text
    assert 'role="alert"' in answer.text
    assert 'action="/queue"' in answer.text  # the form is there, to mend it


def test_days_are_those_of_the_viewer(box: Daemon, store: Store, open_page: OpenPage) -> None:
    page = open_page(box.url + "/queue")
    zone = page.evaluate("Intl.DateTimeFormat().resolvedOptions().timeZone")
    expect(page.locator("[data-zone]")).to_have_value(zone)
    add(store, "Midnight in Auckland?", created=1_700_000_000.0)  # 14 Nov 2023, 22:13 in UTC
    page.goto(f"{box.url}/queue?since=2023-11-15&until=2023-11-15&zone=Pacific/Auckland")
    assert rows(page) == ["Midnight in Auckland?"]
    for elsewhere in ("UTC", "../../etc/passwd", "Nowhere/Land"):
        page.goto(f"{box.url}/queue?since=2023-11-15&until=2023-11-15&zone={elsewhere}")
        assert rows(page) == []


def test_the_chosen_are_changed_after_a_question(box: Daemon, store: Store, open_page: OpenPage) -> None:
    kept, first, second = (add(store, f"Chosen {number}? {NASTY}") for number in range(3))
    used = add(store, "Chosen and learned?", state="used")
    page = open_page(f"{box.url}/queue?state=all&q=chosen", scripts=False)
    page.get_by_role("button", name="Exclude").click()
    expect(page.get_by_role("alert")).to_contain_text("Tick some examples first")
    for example in (first, second, used):
        page.locator(f'input[value="{example.id}"]').check()
    page.get_by_role("button", name="Exclude").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Exclude 2 examples?")
    expect(page.locator("main")).to_contain_text("1 learned already")
    expect(page.locator(".named")).to_contain_text(NASTY)
    assert store.examples.get(first.id).state == "pending"  # nothing was done yet
    page.get_by_label("Why").fill("nonsense")
    page.get_by_role("button", name="Exclude").click()
    expect(page.get_by_role("status").first).to_contain_text(
        "2 examples excluded. Left as they were: 1 learned"
    )
    assert "q=chosen" in page.url
    assert [store.examples.get(example.id).state for example in (kept, first, second, used)] == [
        "pending", "excluded", "excluded", "used",
    ]  # fmt: skip
    assert store.examples.get(first.id).note == "nonsense"
    (entry,) = store.audit.list(1)
    assert (entry.action, entry.actor, entry.detail["count"]) == ("console.examples.exclude", "owner", 2)
    assert set(entry.detail["examples"]) == {first.id, second.id, used.id}
    # And back again.
    page.get_by_role("link", name="Excluded").click()
    page.locator(f'input[value="{first.id}"]').check()
    page.get_by_role("button", name="Put back").click()
    page.get_by_role("button", name="Put back").click()
    expect(page.get_by_role("status").first).to_contain_text("1 example put back")
    assert store.examples.get(first.id).state == "pending"


def test_all_that_match_are_exactly_as_many_as_were_said(
    box: Daemon, store: Store, open_page: OpenPage
) -> None:
    added = [add(store, f"Every one {number}?") for number in range(SIZE + 5)]
    page = open_page(f"{box.url}/queue?q=every+one")
    page.get_by_label("To which").select_option("all")
    page.get_by_role("button", name="Set weight").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Set the weight of {SIZE + 5} examples")
    # What comes in later was not meant; what is gone makes it another number.
    later = add(store, "Every one, later?")
    page.get_by_label("Weight").fill("2,5")
    page.get_by_role("button", name="Set weight").click()
    expect(page.get_by_role("status").first).to_contain_text(f"{SIZE + 5} examples given the new weight")
    assert {store.examples.get(example.id).weight for example in added} == {2.5}
    assert store.examples.get(later.id).weight == 1.0
    page.get_by_label("To which").select_option("all")
    page.get_by_role("button", name="Set weight").click()
    store.bulk.exclude([added[0].id])
    page.get_by_role("button", name="Set weight").click()
    expect(page.get_by_role("alert")).to_contain_text(f"Meanwhile it would be {SIZE + 5} examples")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Set the weight of {SIZE + 5} examples")
    assert store.examples.get(added[1].id).weight == 2.5
    page.get_by_label("Weight").fill("heavy")
    page.get_by_role("button", name="Set weight").click()
    expect(page.get_by_role("alert")).to_contain_text("above 0 and up to 1000")
    store.bulk.exclude([example.id for example in [*added, later]])


def test_an_example_is_read_and_edited(box: Daemon, store: Store, open_page: OpenPage) -> None:
    messages = [
        {"role": "system", "content": f"Be brief. {NASTY}"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": f"Who feeds the cat? {NASTY}"}]},
    ]
    device, _ = store.keys.create(f"Phone {NASTY}"[:64])
    fields = {"messages": messages, "masked": {"e-mail": 2}, "finish_reason": "length", "device": device.id}
    example = add(store, f"Who feeds the cat? {NASTY}", f"Nobody. {NASTY}", **fields)
    page = open_page(f"{box.url}/queue?q=feeds", scripts=False)
    page.get_by_role("link", name="Who feeds").click()
    for text in ("Hello", "Hi.", f"Nobody. {NASTY}", "e-mail 2", device.name, "cut off", "Nobody yet."):
        expect(page.locator("main")).to_contain_text(text)
    for wrong, message in ((" ", "Write the answer"), (f"Nobody. {NASTY}", "")):
        page.get_by_label("Answer to learn").fill(wrong)
        page.get_by_label("Weight").fill("0" if message == "" else "1")
        page.get_by_role("button", name="Save").click()
        if message or wrong.strip():
            expect(page.locator("main")).to_contain_text(message or "above 0")
    assert store.examples.get(example.id) == example
    page.get_by_label("Answer to learn").fill(f"Aunt Rosa.\nAlways. {NASTY}")
    page.get_by_label("Weight").fill("7.5")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("It is a correction now")
    expect(page.locator(".said-wrong")).to_contain_text("Nobody.")
    now = store.examples.get(example.id)
    assert (now.kind, now.target, now.weight) == ("correction", f"Aunt Rosa.\nAlways. {NASTY}", 7.5)
    assert store.examples.is_rejected(now.query, now.response)
    assert store.audit.list(1)[0].action == "console.examples.edit"
    page.get_by_role("link", name="Exclude").click()
    page.get_by_role("button", name="Exclude").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Who feeds")
    page.get_by_role("link", name="Put back").click()
    page.get_by_role("button", name="Put back").click()
    assert store.examples.get(example.id).state == "pending"
    page.get_by_role("link", name="Queue", exact=True).last.click()
    assert rows(page) == [f"Who feeds the cat? {NASTY}"]


def learned(box: Daemon, store: Store, *examples: Example) -> str:
    """A run that ended with the adapter FIRST; its id."""
    run = store.runs.create("person", len(examples))
    store.examples.hold(run.id, [example.id for example in examples])
    directory = box.home.runs / run.id
    directory.mkdir()
    lines = [json.dumps({"id": example.id, "query": example.query}) for example in examples]
    (directory / "examples.jsonl").write_text("\n".join(lines) + "\n")
    store.examples.mark_used(run.id)
    store.runs.update(run.id, state="promoted", adapter=FIRST)
    row = store.adapters.get(FIRST)
    assert row is not None
    store.adapters.upsert(replace(row, run_id=run.id))
    return run.id


def test_deleting_is_forgetting_and_offers_to_train_anew(
    box: Daemon, store: Store, open_page: OpenPage
) -> None:
    example, other = add(store, "Where is the xylophone kept?"), add(store, "Where is the drum kept?")
    run = learned(box, store, example, other)
    page = open_page(f"{box.url}/queue/{example.id}", PHONE, scripts=False)
    expect(page.locator("main")).to_contain_text(run)
    expect(page.locator("main")).to_contain_text(FIRST)
    # Not while a run goes on.
    going = store.runs.create("person", 1)
    page.get_by_role("link", name="Forget").click()
    expect(page.locator("main")).to_contain_text(f"{going.id} is going on")
    expect(page.get_by_role("button", name="Forget")).to_be_disabled()
    store.runs.update(going.id, state="cancelled")
    page.reload()
    expect(page.locator("main")).to_contain_text(FIRST)
    going = store.runs.create("person", 1)
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_role("alert")).to_contain_text("try again when it has ended, or cancel it first")
    assert store.examples.get(example.id).state == "used"
    store.runs.update(going.id, state="cancelled")
    # First the text alone, then what was learned from it.
    page.reload()
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_role("status").first).to_contain_text(f"1 adapter had learned from it before: {FIRST}")
    assert store.forgotten.known([example.id]) == {example.id}
    assert "xylophone" not in (box.home.runs / run / "examples.jsonl").read_text()
    page.goto(f"{box.url}/queue/{example.id}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Forgotten already")
    page.get_by_label("Give it up, too").check()
    page.get_by_role("button", name="Give up").click()
    expect(page.get_by_role("status").first).to_contain_text(
        "1 adapter that had learned from it was given up. 1 example of the others wait"
    )
    assert not (box.home.adapters / f"{FIRST}.safetensors").exists()
    assert store.examples.get(other.id).state == "pending"
    assert [entry.action for entry in store.audit.list(2)] == ["examples.forget"] * 2
    page.goto(f"{box.url}/queue/{example.id}")
    expect(page.locator("main")).to_contain_text("No adapter that is left has learned from it")
    page.goto(f"{box.url}/queue/ex_{'0' * 24}")
    expect(page.locator("main")).to_contain_text("There is no example")


def test_all_that_match_are_forgotten(box: Daemon, store: Store, client: httpx.Client) -> None:
    for number in range(3):
        add(store, f"Which secret number {number}?", state="excluded")
    form = {"act": "forget", "scope": "all", "state": "excluded", "q": "secret number"}
    asked = client.get("/queue/act", params=form).text
    assert "Forget 3 examples?" in asked
    before = re.search(r'name="before" value="([^"]+)"', asked)
    assert before
    form |= {"before": before[1]}
    assert "Meanwhile it would be 3" in client.post("/queue/act", data=form | {"count": "2"}).text
    assert store.browse.count(Filter(search="secret number")).count == 3
    done = client.post("/queue/act", data=form | {"count": "3"})
    assert "3 examples forgotten" in done.text
    assert store.browse.count(Filter(search="secret number")).count == 0


@pytest.mark.parametrize(
    "form", [{}, {"act": "burn", "id": "x"}, {"act": "exclude", "id": "x", "before": "now"}]
)
def test_acts_that_make_no_sense(client: httpx.Client, form: dict[str, str]) -> None:
    assert client.post("/queue/act", data=form).status_code == 400
    assert "No example is named" in client.post("/queue/act", data={"act": "forget"}).text


def test_out_and_in(box: Daemon, store: Store, client: httpx.Client) -> None:
    for number in range(450):
        add(store, f"Shelf {number}? {NASTY}", f"Ü {number}")
    answer = client.get("/queue/export?q=shelf")
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="examples-')
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    lines = answer.text.splitlines()
    assert [json.loads(line)["query"] for line in lines] == [
        f"Shelf {number}? {NASTY}" for number in range(450)
    ]
    assert store.audit.list(1)[0].action == "console.examples.export"

    def bring(text: str) -> str:
        files = {"file": ("x.jsonl", text.encode(), "application/jsonl")}
        return client.post("/queue/import", files=files).text

    assert "Choose a file" in bring("")
    count = store.examples.count()
    good = '{"kind": "automatic", "query": "Shed?", "response": "Green."}'
    refused = bring(f'{good}\n{{"kind": "{NASTY[:8]}"}}\n')
    assert "Line 2: " in refused and "Nothing was imported" in refused
    assert "Line 1: The example" in bring(lines[0])
    assert store.examples.count() == count
    assert "2 examples imported" in bring(f"\ufeff{good}\r\n\r\n{good.replace('Shed', 'Barn')}")
    assert store.examples.count() == count + 2
    assert store.audit.list(1)[0].detail["count"] == 2


def test_a_file_that_is_too_large_is_told_before_it_is_sent(box: Daemon, open_page: OpenPage) -> None:
    page = open_page(f"{box.url}/queue/import")
    expect(page.locator("main")).to_contain_text("up to 8 MB")
    field = page.get_by_label("File")
    field.set_input_files({"name": "x.jsonl", "mimeType": "application/jsonl", "buffer": bytes(8_000_000)})
    assert page.evaluate("document.querySelector('[type=file]').validationMessage").startswith(
        "This file is larger"
    )
    page.get_by_role("button", name="Import").click()
    expect(page).to_have_url(f"{box.url}/queue/import")
    # Without scripts the box says so.
    plain = open_page(f"{box.url}/queue/import", scripts=False)
    large = b"x" * 9_000_000
    plain.get_by_label("File").set_input_files({"name": "x.jsonl", "mimeType": "text/plain", "buffer": large})
    plain.get_by_role("button", name="Import").click()
    expect(plain.locator("main")).to_contain_text("larger than 8 MB")
    field.set_input_files({"name": "x.jsonl", "mimeType": "application/jsonl", "buffer": b"{}"})
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("alert")).to_contain_text("Line 1: ")


def test_new_ones_are_told_and_no_row_moves(box: Daemon, store: Store, open_page: OpenPage) -> None:
    page = open_page(box.url + "/queue")
    before = rows(page)
    page.locator(".examples input").first.check()
    box.ask("Name an animal that can fly.")
    link = page.get_by_role("link", name="1 new: show")
    expect(link).to_be_visible()
    assert rows(page) == before
    expect(page.locator(".examples input").first).to_be_checked()
    link.click()
    expect(page.locator(".asked").first).to_have_text("Name an animal that can fly.")
    page.locator("[data-tick-all] input").check()
    assert page.locator(".examples input:checked").count() == len(rows(page))


def test_pages_are_sound(box: Daemon, store: Store, open_page: OpenPage) -> None:
    device, _ = store.keys.create(f"Tab {NASTY}"[:64])
    long = "Donaudampfschifffahrt" * 20
    example = add(store, f"{long} {NASTY}", long, device=device.id, kind="correction", target=f"No. {NASTY}")
    ids = [example.id, *(add(store, f"Sound {number}? {NASTY}").id for number in range(2))]
    page = open_page(f"{box.url}/queue?state=all&since=2020-01-01")
    assert page.locator("img").count() == 0
    check_sound(page, "queue")
    page.goto(f"{box.url}/queue/{example.id}")
    check_sound(page, "example")
    page.goto(f"{box.url}/queue/act?act=forget&" + "&".join(f"id={id}" for id in ids))
    expect(page.get_by_role("heading", level=1)).to_have_text("Forget 3 examples?")
    check_sound(page, "forget")


@pytest.mark.slow
def test_deep_in_a_hundred_thousand(box: Daemon, store: Store, client: httpx.Client) -> None:
    text = "question of some length, about this and that in the house "

    def row(number: int) -> tuple[Any, ...]:
        said = f"{number} {text * (20 if abs(number - MANY / 2) < 1000 else 1)}"
        return f"ex_{number:024x}", 1.0 + number, said, json.dumps([{"role": "user", "content": said}])

    with store.database.transaction("examples") as tx:
        tx.executemany(
            "INSERT INTO examples (id, created, kind, state, query, response, target, weight,"
            " messages, finish_reason, source, query_key, response_key, context_key)"
            " VALUES (?1, ?2, 'automatic', 'used', ?3, ?3, ?3, 1.0, ?4, 'stop', 'api', '', '', '')",
            map(row, range(MANY)),
        )
    filter, cursor = Filter(states=("used",)), None
    while len(ids := store.browse.page(filter, cursor=cursor, size=500, count=False).examples) == 500:
        cursor = store.browse.page(filter, cursor=cursor, size=500, count=False).next
        if ids[-1].created < MANY / 2:
            break
    wanted = store.browse.page(filter, cursor=cursor, size=SIZE)
    page = client.get("/queue", params={"state": "used", "at": cursor}).text
    found = re.findall(r'name="id" value="(ex_\w+)"', page)
    assert found == [example.id for example in wanted.examples]
    assert len(found) == SIZE
    assert wanted.total is not None
    assert f"{wanted.total.count:,} examples" in page
    assert len(gzip.compress(page.encode())) < 100_000
    following = re.search(r'href="([^"]+)">Next', page)
    assert following
    after = client.get(following[1].replace("&amp;", "&")).text
    previous = re.search(r'rel="prev" href="([^"]+)"', after)
    assert previous
    again = client.get(previous[1].replace("&amp;", "&")).text
    assert re.findall(r'name="id" value="(ex_\w+)"', again) == found
    later = store.browse.page(filter, cursor=wanted.next, size=SIZE).examples
    assert re.findall(r'name="id" value="(ex_\w+)"', after) == [example.id for example in later]
