from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import InvalidRequest
from appliance.home import Home
from appliance.store import Store
from appliance.store.browse import COUNTED, SORTS, Browse, Filter, Page, Total
from appliance.store.db import Database
from appliance.store.example import STATES
from appliance.store.examples import NewExample
from appliance.store.migrations import STEPS, migrate

New = Callable[..., NewExample]
MANY = 100_000


def ids(page: Page) -> list[str]:
    return [example.id for example in page.examples]


def found(store: Store, **wanted: Any) -> list[str]:
    """Queries of what a filter lets through, oldest first."""
    page = store.browse.page(Filter(**wanted), sort="oldest")
    assert page.total == Total(len(page.examples), False)
    assert page.next is page.previous is None
    assert page.examples == list(store.browse.each(Filter(**wanted)))
    return [example.query for example in page.examples]


# -- what is found ------------------------------------------------------------------------------


def test_every_state_is_listed(store: Store, new: New) -> None:
    for state in STATES:
        store.examples.add(new(state, state=state))
    assert found(store) == list(STATES)
    assert found(store, states=("parked", "used")) == ["used", "parked"]
    assert found(store, states=["training"]) == ["training"]


def test_filters(store: Store, new: New) -> None:
    store.examples.add(new("a"), created=100.0)
    store.examples.add(new("b", device="hall", weight=3.0), created=200.0)
    store.examples.add(new("c", device="hall", kind="praise", masked={"e-mail": 1}), created=300.0)
    store.examples.add(new("d", device="den", kind="correction", weight=10.0), created=400.0)
    assert found(store, device="hall") == ["b", "c"]
    assert found(store, device="") == ["a"]
    assert found(store, device="attic") == []
    assert found(store, kinds=("correction", "praise")) == ["c", "d"]
    assert found(store, weight_from=3.0) == ["b", "d"]
    assert found(store, weight_to=3.0) == ["a", "b", "c"]
    assert found(store, since=200.0, until=400.0) == ["b", "c"]
    assert found(store, masked=True) == ["c"]
    assert found(store, masked=False, device="hall") == ["b"]
    assert found(store, kinds=("automatic",), states=("pending",), weight_from=2, since=150) == ["b"]


def test_search(store: Store, new: New) -> None:
    store.examples.add(new("Wo ist die Große Tür?", "Im\n\n  FLUR."))
    store.examples.add(new("x", "y", kind="correction", target="Straße Ω", correction="corr"))
    store.examples.add(new("z", "100% of \x00 it_s", feedback="feed", note="noted"))
    for search in ("grosse tür", "TÜR gro", "im flur", "flur", "  Flur\tdie "):
        assert found(store, search=search) == ["Wo ist die Große Tür?"], search
    for search in ("strasse", "ω", "CORR", "rr y"):
        assert found(store, search=search) == ["x"], search
    for search in ("0%", "\x00 it_s", "feed noted", "100%"):
        assert found(store, search=search) == ["z"], search
    assert found(store, search="tür strasse") == found(store, search="t_r") == found(store, search="%%") == []
    assert len(found(store, search=" ")) == 3
    assert found(store, search="noted", kinds=("correction",)) == []


def test_search_follows_every_change(store: Store, new: New) -> None:
    example = store.examples.add(new("q", "first", kind="critique", target=None, state="review"))
    store.examples.update(example.id, target="second", note="third", state="pending")
    assert found(store, search="first second third") == ["q"]
    store.examples.update(example.id, note=None)
    assert found(store, search="third") == []
    answered = store.examples.add(new("r", completion_id="c1"))
    store.completions.record("c1", 1.0, None, "m", "adapter_x", "r", "s", [], "stop", 1, 1)
    store.examples.exclude_answers("adapter_x")
    assert found(store, search="rolled back") == [answered.query]


@pytest.mark.parametrize(
    "wanted, param",
    [
        ({"search": "x" * 201}, "search"),
        ({"search": "\ud800"}, "search"),
        ({"device": "\ud800"}, "device"),
        ({"states": ("pending", "lost")}, "states"),
        ({"kinds": ("' OR 1 --",)}, "kinds"),
        ({"weight_from": float("nan")}, "weight_from"),
        ({"until": float("inf")}, "until"),
    ],
)
def test_a_filter_that_cannot_be(wanted: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Filter(**wanted)
    assert caught.value.param == param


# -- deleting is real ---------------------------------------------------------------------------


def test_deleted_text_is_in_no_table_and_no_byte_of_the_files(store: Store, home: Home, new: New) -> None:
    secret, folded = "XYLOPHONE-Straße", "xylophone-strasse"

    def holding() -> set[str]:
        return {
            word
            for word in (secret, folded)
            for path in home.root.glob("store.db*")
            if word.encode() in path.read_bytes()
        }

    kept = store.examples.add(new("Who plays?", "Anna."))
    gone = [store.examples.add(new(f"Where is {secret} {number}? " * 40)) for number in range(30)]
    told = store.examples.add(new("And now?", kind="critique", target=None, state="review", feedback=secret))
    assert len(found(store, search=folded)) == 31
    assert holding() == {secret, folded}
    store.forgotten.erase(store.forgotten.traces([example.id for example in (*gone, told)]), {})
    assert found(store, search=folded) == []
    assert store.database.value("SELECT count(*) FROM example_texts") == 1
    assert holding() == {secret, folded}  # in the WAL, or the test would prove nothing
    store.database.scrub()
    assert holding() == set()
    assert found(store, search="ANNA") == [kept.query]


def test_whoever_deletes_takes_the_searched_text_along(store: Store, home: Home, new: New) -> None:
    example = store.examples.add(new("Where is the key?"))
    other = sqlite3.connect(home.store)
    other.execute("DELETE FROM examples WHERE id = ?", (example.id,))
    other.commit()
    other.close()
    assert store.database.all("SELECT * FROM example_texts") == []


def test_examples_of_earlier_releases_are_found(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, STEPS[:4])
    old.execute(
        "INSERT INTO examples (id, created, kind, state, query, response, weight, messages, finish_reason,"
        " source, query_key, response_key, context_key) VALUES"
        " ('ex_1', 1.0, 'critique', 'review', 'WO IST ÄNNE?', 'Da.', 1.0, '[]', 'stop', 'api', '', '', '')"
    )
    old.close()
    database = Database(path)
    page = Browse(database).page(Filter(search="änne da"))
    database.close()
    assert ids(page) == ["ex_1"]


# -- many ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browse]:
    """A hundred thousand examples: most used, a few of every other state, most of one weight."""
    database = Database(tmp_path_factory.mktemp("many") / "store.db")

    def row(number: int) -> tuple[Any, ...]:
        state = STATES[number % len(STATES)] if number % 20 == 0 else "used"
        text = f"question {number}{' hapax' if number in (7, 50_000) else ''}"
        kind = "correction" if number % 1000 == 0 else "automatic"
        device = "hall" if number % 500 == 0 else None
        weight = 3.0 if number % 300 == 0 else 1.0
        return (f"ex_{number}", 1.0 + number, kind, state, text, weight, device)

    with database.transaction("examples") as tx:
        tx.executemany(
            "INSERT INTO examples (id, created, kind, state, query, response, target, weight, device,"
            " messages, finish_reason, source, query_key, response_key, context_key)"
            " VALUES (?1, ?2, ?3, ?4, ?5, 'So.', 'So.', ?6, ?7, '[]', 'stop', 'api', '', '', '')",
            map(row, range(MANY)),
        )
    yield Browse(database)
    database.close()


class Watch:
    """What SQLite does for the statements of a block: their plans, and the steps of its machine."""

    def __init__(self, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
        self._database = browse._db
        self._real = self._database.all
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Watch:
        self.plans: list[list[str]] = []
        self.steps = 0
        self._monkeypatch.setattr(self._database, "all", self._explained)
        return self

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.undo()

    def _explained(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        plan = [row["detail"] for row in self._real(f"EXPLAIN QUERY PLAN {sql}", values)]
        self.plans.append([line for line in plan if not line.startswith(("MERGE", "LEFT", "RIGHT"))])

        def step() -> None:
            self.steps += 100

        self._database._reader.set_progress_handler(step, 100)
        try:
            return self._real(sql, values)
        finally:
            self._database._reader.set_progress_handler(None, 0)


def middle(many: Browse, filter: Filter, sort: Any) -> str:
    """A cursor to the middle of a list, made by going there in large pages."""
    cursor = None
    for _ in range(100):
        page = many.page(filter, sort=sort, cursor=cursor, size=500, count=False)
        if page.next is None:
            break
        cursor = page.next
    assert cursor is not None
    return cursor


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(
    "filter",
    [
        Filter(),
        Filter(states=("used",)),
        Filter(states=("pending", "review", "parked")),
        Filter(states=("used",), kinds=("automatic",), device="", masked=False),
        Filter(since=100.0, until=90_000.0),
        Filter(weight_from=0.5, weight_to=5.0),
        Filter(search="question"),
    ],
    ids=["all", "state", "states", "narrow", "dates", "weights", "search"],
)
def test_a_page_neither_sorts_nor_scans(
    many: Browse, filter: Filter, sort: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, column = (
        ("examples_by_date", "created") if sort in ("newest", "oldest") else ("examples_by_weight", "weight")
    )
    deep = middle(many, filter, sort)
    for cursor in (None, deep):
        with Watch(many, monkeypatch) as watch:
            page = many.page(filter, sort=sort, cursor=cursor, count=False)
        assert len(page.examples) == 50 or cursor
        for plan in watch.plans:
            lines = [line for line in plan if not line.startswith("SEARCH x USING INTEGER PRIMARY KEY")]
            assert lines and all(line.startswith("SEARCH e USING") and name in line for line in lines), plan
            assert cursor is None or all(column in line.partition("(state=?")[2] for line in lines), (
                f"starts at the beginning of the list: {plan}"
            )
        # A slice of a search is more; but all hundred thousand would be above a million.
        assert watch.steps < (250_000 if filter.words else 40_000)


@pytest.mark.slow
def test_counting_looks_at_an_index_only(many: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    for filter in (Filter(), Filter(kinds=("correction",), device="hall", weight_from=2, masked=False)):
        with Watch(many, monkeypatch) as watch:
            assert many.count(filter).count == (MANY if filter == Filter() else 34)
        ((line,),) = watch.plans
        assert line.startswith("SEARCH e USING COVERING INDEX examples_by_date (state=?")


@pytest.mark.slow
def test_a_search_looks_at_a_slice_at_a_time(many: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    with Watch(many, monkeypatch) as watch:
        page = many.page(Filter(search="hapax"))
    assert [example.id for example in page.examples] == ["ex_50000", "ex_7"]
    assert page.total == Total(2, False)
    assert len(watch.plans) >= 2 * MANY / 5000
    assert not any("SCAN" in line or "TEMP" in line for plan in watch.plans for line in plan)
    assert many.count(Filter(search="question")) == Total(COUNTED, True)


def test_states_are_counted_and_ids_listed(store: Store, new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.browse.SLICE", 3)  # a search goes through several
    for number in range(20):
        store.examples.add(
            new(f"{'needle' if number % 3 else 'hay'} {number}", state="used" if number % 2 else "pending"),
            created=float(number // 4 + 1),
        )
    nothing = dict.fromkeys(STATES, 0)
    assert store.browse.counts() == nothing | {"used": 10, "pending": 10}
    assert store.browse.counts(Filter(states=("used",), since=3.0)) == nothing | {"used": 6}
    for filter in (
        Filter(search="needle"),
        Filter(search="needle", states=("used",)),
        Filter(),
        Filter(since=2),
    ):
        examples = list(store.browse.each(filter))
        assert store.browse.ids(filter) == [example.id for example in examples]
        counts = store.browse.counts(filter)
        assert counts == {state: sum(e.state == state for e in examples) for state in STATES}
        assert sum(counts.values()) > 5
