"""Runs: the list at length, the page of one, and a real run followed, stopped and tried again."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
from browsing import FIRST, NASTY, PHONE, REPORT, check_sound, opened
from daemons import Daemon, StartDaemon
from playwright.sync_api import Page, expect

from appliance.home import Home
from appliance.store import Store
from appliance.store.examples import NewExample
from appliance.store.runs import Run

OpenPage = Callable[..., Page]
ENDS = ("promoted", "rejected", "failed", "cancelled", "parked", "accepted")
MANY = 1000
STEPS = 900


@dataclass(frozen=True)
class Past:
    """Runs to show: one with all there can be, the one before it, one whose files are gone."""

    box: Daemon
    shown: Run
    earlier: Run
    gone: Run

    @property
    def url(self) -> str:
        return f"{self.box.url}/runs"


def example(store: Store, number: int) -> str:
    query = f"Question {number} about the bin {NASTY}"
    return store.examples.add(
        NewExample(
            kind="automatic",
            query=query,
            response=f"Answer {number}.",
            target=f"Answer {number}.",
            weight=1.0,
            messages=[{"role": "user", "content": query}],
        )
    ).id


def write_files(home: Home, run: str, examples: list[str]) -> None:
    """What a run leaves on disk; the trainer was killed in the middle of a line, and went on."""
    directory = home.runs / run
    directory.mkdir()
    lines = [json.dumps({"event": "start", "steps": STEPS, "examples": 30})]
    for step in range(1, STEPS + 1):
        heldout = 2.0 if step % 150 == 0 and step < STEPS else None
        loss = 1 + 2 * math.exp(-step / 300)
        lines.append(
            json.dumps({"event": "step", "step": step, "steps": STEPS, "loss": loss, "heldout": heldout})
        )
        if step == 400:
            lines += ['{"event": "step", "st', json.dumps({"event": "resumed", "step": 400, "steps": STEPS})]
    lines.append(json.dumps({"event": "done", "heldout_before": 3.25, "heldout_after": 1.75}))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "cut o')
    splits = ("train", "heldout", "replay")
    (directory / "examples.jsonl").write_text(
        "".join(
            json.dumps({"id": ident, "messages": [], "split": splits[number % 3]}) + "\n"
            for number, ident in enumerate(examples)
        )
    )
    (directory / "log").write_text("".join(f"{line} {NASTY}\n" for line in range(800)))


@pytest.fixture(scope="module")
def past(box: Daemon) -> Past:
    clock = itertools.count(time.time() - MANY * 3600, 3600)
    with opened(box.home) as store:
        with store.transaction(), pytest.MonkeyPatch.context() as patch:
            # One an hour, or a thousand would have to be told apart by a number after the same second.
            patch.setattr("appliance.store.runs.time", SimpleNamespace(time=lambda: next(clock)))
            for number in range(MANY - store.runs.count() - 3):
                state = ENDS[number % len(ENDS)]
                run = store.runs.create("threshold", 100 + number % 7)
                store.runs.update(
                    run.id,
                    state=state,
                    started=run.created,
                    ended=run.created + 480,
                    adapter=FIRST if state == "promoted" else None,
                    reason=f"because {number}",
                    metrics={"heldout_before": 2.5, "heldout_after": 2.0 + number % 9 / 10},
                    report=REPORT if state in ("promoted", "rejected") else None,
                )
        ids = [example(store, number) for number in range(30)]
        earlier, shown, gone = (
            store.runs.create(trigger, 30, parent=FIRST, attempt=attempt)
            for trigger, attempt in (("timeout", 1), ("retry", 2), ("person", 1))
        )
        now = time.time()
        store.runs.update(earlier.id, state="failed", started=now - 900, ended=now - 800, reason="It died.")
        metrics = {
            "retry_of": earlier.id,
            "failed": ["perplexity"],
            "peak_mb": 1234,
            "steps": STEPS,
            "heldout_before": 3.25,
            "heldout_after": 1.75,
            "left_out": {"duplicate": 3},
            "repeated": 10,
            "resumed": [400],
            "stopped": STEPS,
            "anew": True,
        }
        shown = store.runs.update(
            shown.id,
            state="rejected",
            started=now - 700,
            ended=now - 100,
            reason=f"Rejected. {NASTY}",
            adapter=FIRST,
            report={**REPORT, "summary": f"Rejected. {NASTY}"},
            metrics=metrics,
        )
        store.settings.set("learning.canary", json.dumps({"adapter": FIRST, "since": now - 300}))
        used = [example(store, number) for number in (100, 101)]
        store.examples.hold(gone.id, used)
        store.examples.mark_used(gone.id)
        gone = store.runs.update(gone.id, state="promoted", started=now - 90, ended=now - 50, adapter=FIRST)
        for ident in ids[:-2]:
            store.examples.update(ident, state="excluded")  # nothing that could be tried again
        for ident in ids[-2:]:
            store.database._writer.execute("DELETE FROM examples WHERE id = ?", (ident,))
    write_files(box.home, shown.id, ids)
    return Past(box, shown, earlier, gone)


def weighed(response: httpx.Response) -> int:
    assert response.status_code == 200
    return len(gzip.compress(response.content))


def test_a_thousand_runs_are_turned_in_pages(past: Past, open_page: OpenPage) -> None:
    page = open_page(past.url)
    rows = page.locator(".run-list > li")
    expect(rows).to_have_count(25)
    expect(page.locator("#runs")).to_contain_text(f"1\u201325 of {MANY:,}")
    expect(rows.nth(0)).to_contain_text("you asked for it")
    expect(rows.nth(0)).to_contain_text("Learned")  # the adapter that came of it
    expect(rows.nth(1)).to_contain_text("attempt 2, took 10 min")
    expect(rows.nth(1)).to_contain_text(f"Rejected. {NASTY}")
    expect(rows.nth(2)).to_contain_text("Failed")
    expect(
        page.get_by_role("img", name="Loss on examples kept out of training. Before the run: ")
    ).to_be_visible()
    assert page.locator("main img").count() == 0
    assert weighed(past.box.get("/runs")) < 100_000
    check_sound(page, "runs")


def test_filter_and_pages_without_scripts(past: Past, open_page: OpenPage) -> None:
    page = open_page(past.url, PHONE, scripts=False)
    rows = page.locator(".run-list > li")
    page.get_by_role("link", name=re.compile(r"^Failed \d")).click()
    expect(page.get_by_role("link", name=re.compile(r"^Failed \d"))).to_have_attribute("aria-current", "page")
    expect(rows.locator(".chip")).to_have_text(["Failed"] * 25)
    seen = set(rows.evaluate_all("rows => rows.map(row => row.id)"))
    while page.get_by_role("link", name="Older").count():
        page.get_by_role("link", name="Older").click()
        more = set(rows.evaluate_all("rows => rows.map(row => row.id)"))
        assert not more & seen
        seen |= more
    with opened(past.box.home) as store:
        assert seen == {run.id for run in store.runs.list(MANY, state="failed")}
    page.get_by_role("link", name="Newer").click()
    expect(rows).to_have_count(25)
    # Beyond the last page is the last page; and the row leads to the run.
    page.goto(f"{past.url}?page=9999")
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    page.get_by_role("link", name="Newer").click()
    ident = rows.first.get_attribute("id")
    rows.first.get_by_role("link").click()
    expect(page).to_have_url(f"{past.url}/{ident}")


@pytest.mark.parametrize(
    "query", ["state=nonsense", "page=0", "page=-1", "page=x", "page=\u00b2", "page=99999999"]
)
def test_bad_addresses_get_a_clear_error(past: Past, query: str) -> None:
    answer = past.box.get(f"/runs?{query}")
    assert answer.status_code == 400
    assert "That did not work" in answer.text


def test_runs_that_do_not_exist(past: Past) -> None:
    for path in ("/runs/run_none", "/runs/run_none/course", "/runs/run_none/log", "/runs/..%2f..%2fetc/log"):
        assert past.box.get(path).status_code == 404, path
    assert past.box.get(f"/runs/{past.gone.id}/log").status_code == 404
    assert past.box.get(f"/runs/{past.shown.id}?page=nonsense").status_code == 400


def test_the_page_of_a_run(past: Past, open_page: OpenPage) -> None:
    page = open_page(f"{past.url}/{past.shown.id}")
    course = page.locator("#course")
    for text in (
        "another try", "10 earlier examples", "10 min", "1.2 GB", "3.250 before, 1.750 after",
        f"at step {STEPS}", "went on from step 400", "3: 3 duplicates", "Compared with",
        "on a share of the requests",
    ):  # fmt: skip
        expect(course).to_contain_text(text)
    expect(course.locator("div", has_text="Tried before").last.get_by_role("link")).to_have_attribute(
        "href", f"/runs/{past.earlier.id}"
    )
    # The curve: thinned out, over what makes no sense; and the same in words and figures.
    chart = course.get_by_role("img")
    expect(chart).to_have_attribute(
        "aria-label",
        re.compile(r"Training: 2\.99 at 3, 1\.11 at 900;.*Kept out of training: 3\.25 at 0, 1\.75 at 900;"),
    )
    assert (chart.locator(".line.tone-1").get_attribute("d") or "").count("L") == 299
    expect(course).to_contain_text("A point stands for 3 steps.")
    course.get_by_text("Figures").click()
    expect(course.get_by_role("row", name="150 ")).to_contain_text("2")
    # What the gate said stands there once.
    account = page.locator("#account")
    expect(page.get_by_text(f"Rejected. {NASTY}", exact=True)).to_have_count(1)
    expect(account.get_by_role("row", name="Held-out loss")).to_contain_text("Passed")
    expect(account.get_by_role("row", name="Generic text")).to_contain_text("Failed")
    expect(account.locator(".pair").first).to_contain_text("It depends.")
    assert page.locator("main img").count() == 0
    check_sound(page, "run")
    assert weighed(past.box.get(f"/runs/{past.shown.id}")) < 100_000


def test_examples_of_a_run_and_its_log_without_scripts(past: Past, open_page: OpenPage) -> None:
    page = open_page(f"{past.url}/{past.shown.id}", PHONE, scripts=False)
    items = page.locator(".given > li")
    expect(items).to_have_count(20)
    expect(items.nth(0)).to_contain_text(f"Question 0 about the bin {NASTY}")
    expect(items.nth(0)).to_contain_text("was to be learned, taken out, automatic")
    expect(items.nth(1)).to_contain_text("kept out of training")
    expect(items.nth(2)).to_contain_text("repeated from earlier")
    assert re.fullmatch(r"/queue/ex_\w+", items.nth(0).get_by_role("link").get_attribute("href") or "")
    page.get_by_role("navigation", name="Pages of examples").get_by_role("link", name="Next").click()
    expect(items).to_have_count(10)
    expect(items.last).to_contain_text("deleted since")
    expect(items.last.get_by_role("link")).to_have_count(0)
    page.get_by_role("link", name="Previous").click()
    expect(items).to_have_count(20)
    page.goto(f"{past.url}/{past.shown.id}?page=7")
    page.get_by_role("link", name="Go to the first").click()
    expect(items).to_have_count(20)
    log = page.get_by_role("group", name="Log of the run")
    expect(log).to_contain_text(f"799 {NASTY}")
    text = log.text_content() or ""
    assert len(text) < 20_000
    assert re.match(r"\d+ <script>", text)  # from a line's beginning
    with page.expect_download() as download:
        page.get_by_role("link", name="Whole log").click()
    kept = download.value.path().read_text()
    assert (download.value.suggested_filename, kept.count("\n")) == (f"{past.shown.id}.log", 800)
    answer = past.box.get(f"/runs/{past.shown.id}/log")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_run_whose_files_are_gone(past: Past, open_page: OpenPage) -> None:
    page = open_page(f"{past.url}/{past.gone.id}")
    expect(page.locator("#course")).to_contain_text("its files were removed from the box")
    expect(page.locator(".given > li")).to_have_count(2)
    expect(page.locator("#examples")).to_contain_text("The files of this run are not on the box any more")
    expect(page.locator("#account")).to_contain_text("There is no log of this run")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)  # it was promoted
    page.goto(f"{past.url}/{past.earlier.id}")
    expect(page.locator("#examples")).to_contain_text("not known any more")
    expect(page.locator("#course")).to_contain_text("Tried again")


def test_acts_that_cannot_be_done_say_why(past: Past, open_page: OpenPage) -> None:
    page = open_page(f"{past.url}/{past.shown.id}", scripts=False)
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("alert")).to_contain_text(
        f"None of the examples of {past.shown.id} waits any more"
    )
    expect(page).to_have_url(f"{past.url}/{past.shown.id}")
    headers = {"Origin": past.box.url}
    with httpx.Client(base_url=past.box.url, headers=headers, follow_redirects=True) as client:
        assert "was promoted" in client.post(f"/runs/{past.gone.id}/retry").text
        assert "There is no run" in client.post("/runs/run_none/retry").text
        assert "No run is going on" in client.post("/runs/cancel", data={"run": past.gone.id}).text
        assert client.post("/runs/cancel", headers={"Origin": "http://evil.example"}).status_code == 403
    with opened(past.box.home) as store:
        assert store.runs.count() == MANY
        assert not [
            entry for entry in store.audit.list() if entry.action in ("console.retry", "console.cancel")
        ]


CONFIG = """
[lora]
auto_train_threshold = 1000
[train]
nice = 0
epochs = 1
layers = 0.1
rank = 4
anchor_weight = 0
drift_weight = 0
batch_tokens = 64
[resources]
max_load_per_core = 1000
min_free_memory_mb = 0
"""


@pytest.mark.slow
def test_a_real_run_is_followed_stopped_and_tried_again(
    start_daemon: StartDaemon, open_page: OpenPage
) -> None:
    box = start_daemon(CONFIG)
    page = open_page(f"{box.url}/runs")
    expect(page.locator("#runs")).to_contain_text("No run yet.")
    expect(page.get_by_role("button", name="Train now")).to_be_disabled()
    expect(page.locator("figure")).to_have_count(0)
    with opened(box.home) as store:
        given = {example(store, number) for number in range(4)}
    page.reload()
    page.get_by_role("button", name="Train now").click()
    card = page.locator("#going-on")
    expect(card).to_contain_text("Run in progress")
    # What is done before the first step has a name, and moves.
    told: list[tuple[str, float]] = []
    while not (now := box.get("/v1/training/status").json()["run"]) or not now["step"]:
        if now and (now["doing"], now["fraction"]) not in told:
            told.append((now["doing"], now["fraction"]))
        page.wait_for_timeout(100)
    assert {"Loading the model", "Measuring the model as it is"} <= {doing for doing, _ in told}
    assert len({fraction for _, fraction in told}) >= 6, told
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    expect(card).to_contain_text("Learning")
    expect(page.locator(".run-list > li")).to_have_count(1)
    card.get_by_role("link", name="Watch this run").click()

    # It goes on before one's eyes: step for step, the curve grows, and nothing is moved about.
    course, chart = page.locator("#course"), page.locator("#course figure svg")
    expect(chart).to_be_visible()
    page.evaluate("window.stays = true")
    boxes = [page.locator(selector).bounding_box() for selector in (".losses", "#account")]
    line = chart.locator(".line.tone-1")
    before = line.get_attribute("d") or ""
    expect(line).not_to_have_attribute("d", before)
    page.wait_for_function(
        "!document.querySelector('#course figure svg').ariaLabel.includes('Training: nothing')"
    )
    assert [page.locator(selector).bounding_box() for selector in (".losses", "#account")] == boxes
    expect(course).to_contain_text(re.compile(r"Step\s*\d+ of \d+"))
    first = page.url.rpartition("/")[2]
    expect(page.locator(".given > li")).to_have_count(4)

    # Nothing else may begin; stopping is asked twice; and the page says by itself that it has ended.
    with httpx.Client(base_url=box.url, headers={"Origin": box.url}, follow_redirects=True) as client:
        assert f"{first} is going on" in client.post(f"/runs/{first}/retry").text
        assert "is not going on any more" in client.post("/runs/cancel", data={"run": "run_other"}).text
    course.get_by_text("Stop this run").click()
    assert page.evaluate("window.stays")
    course.get_by_role("button", name="Yes, stop it").click()
    expect(page.locator(".flash-good")).to_contain_text("being stopped")
    expect(course.locator(".chip").first).to_have_text("Stopped")
    expect(course).to_contain_text("A person stopped it. Its examples are in the queue again.")
    expect(page.locator(".given")).to_contain_text("was to be learned, waits in the queue")
    expect(page.locator(".given")).not_to_contain_text(re.compile("(?<!to be )learned"))
    assert "The last run was stopped" in box.get("/runs").text
    assert "did not succeed" not in box.get("/runs").text
    expect(course.get_by_role("button", name="Retry")).to_be_visible()
    expect(chart).to_be_visible()
    with opened(box.home) as store:
        assert {item.id for item in store.examples.list("pending")} == given
        example(store, 9)  # a newer one is no business of the run that is tried again

    # The same examples again, now without scripts.
    quiet = open_page(page.url, PHONE, scripts=False)
    quiet.get_by_role("button", name="Retry").click()
    expect(quiet.locator(".flash-good")).to_contain_text("Trying 4 of its examples again")
    second = quiet.url.rpartition("/")[2]
    assert second != first
    expect(page.locator("#course")).to_contain_text("Tried again")  # the first run's page follows
    with opened(box.home) as store:
        assert {item.id for item in store.examples.list("training")} == given
    while not quiet.locator("#course svg[role=img]").count():
        quiet.wait_for_timeout(500)
        quiet.reload()
    quiet.get_by_text("Stop this run").click()
    quiet.get_by_role("button", name="Yes, stop it").click()
    expect(quiet.locator(".flash-good")).to_contain_text("being stopped")
    with opened(box.home) as store:
        while store.runs.get(second).ended is None:
            quiet.wait_for_timeout(200)
        run = store.runs.get(second)
        assert (run.state, run.trigger, run.attempt) == ("cancelled", "person", 1)
        done = [
            (entry.action, entry.detail.get("run"))
            for entry in store.audit.list()
            if "console" in entry.action
        ]
        assert done == [
            ("console.cancel", second),
            ("console.retry", second),
            ("console.cancel", first),
            ("console.train", first),
        ]
    # Removing a run's files takes nothing but what they held.
    shutil.rmtree(box.home.runs / second)
    quiet.reload()
    expect(quiet.locator("#course")).to_contain_text("its files were removed from the box")
    expect(quiet.locator("#course")).to_contain_text("Tried before")
