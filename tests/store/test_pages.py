"""Turning the pages of the list of examples: nothing twice, nothing left out, whatever happens meanwhile."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from appliance.errors import InvalidRequest
from appliance.store import Store
from appliance.store.browse import SORTS, Filter, Page, Total
from appliance.store.example import Example
from appliance.store.examples import NewExample

New = Callable[..., NewExample]


def ids(page: Page) -> list[str]:
    return [example.id for example in page.examples]


def turned(store: Store, filter: Filter, **how: Any) -> list[Example]:
    """All pages to the last, checked against the way back."""
    pages = [store.browse.page(filter, **how)]
    assert pages[0].previous is None
    while pages[-1].next is not None:
        pages.append(store.browse.page(filter, cursor=pages[-1].next, **how))
    for before, after in pairwise(pages):
        assert after.previous is not None
        again = store.browse.page(filter, cursor=after.previous, **how)
        assert (again.examples, again.next, again.previous) == (before.examples, before.next, before.previous)
    return [example for page in pages for example in page.examples]


@pytest.mark.parametrize("search", ["", "needle"])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_of_every_order(
    store: Store, new: New, sort: Any, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties in everything, sizes that do and do not divide, slices smaller than a page."""
    monkeypatch.setattr("appliance.store.browse.SLICE", 2)
    for number in range(24):
        store.examples.add(
            new(
                f"{number} {'needle' if number % 3 else 'hay'}",
                state=("used", "pending", "excluded", "parked")[number % 4],
                weight=(1.0, 3.0)[number % 5 == 0],
            ),
            created=float(number // 6 + 1),
        )
    rows = store.database.all("SELECT id, seq, created, weight, query FROM examples WHERE state != 'parked'")
    rows = [row for row in rows if search in row["query"]]
    columns = ("created", "seq") if sort in ("newest", "oldest") else ("weight", "created", "seq")
    rows.sort(key=lambda row: [row[name] for name in columns], reverse=sort in ("newest", "heaviest"))
    wanted = [row["id"] for row in rows]
    assert len(wanted) > 10
    filter = Filter(search=search, states=("pending", "used", "excluded"))
    for size in (1, 3, len(wanted) - 1, len(wanted), 500):
        assert [example.id for example in turned(store, filter, sort=sort, size=size)] == wanted


def test_bounds_of_the_order_hold_on_every_page(store: Store, new: New) -> None:
    for number in range(12):
        store.examples.add(new(str(number), weight=1.0 + number), created=float(number + 1))
    filter = Filter(since=3.0, until=11.0, weight_from=4.0, weight_to=9.0)
    for sort in SORTS:
        queries = [example.query for example in turned(store, filter, sort=sort, size=2)]
        assert sorted(queries) == ["3", "4", "5", "6", "7", "8"]


def test_nothing_is_skipped_or_repeated_while_examples_come_and_go(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}"), created=10.0 + number).id for number in range(10)]
    first = store.browse.page(size=4)
    store.examples.add(new("later"), created=99.0)
    store.forgotten.erase(store.forgotten.traces([added[6]]), {})  # the row the cursor stands on
    second = store.browse.page(size=4, cursor=first.next)
    assert ids(second) == added[5:1:-1]
    back = store.browse.page(size=4, cursor=second.previous)
    assert [example.query for example in back.examples] == ["later", "Q9", "Q8", "Q7"]
    assert back.previous is None


def test_a_cursor_whose_page_is_gone_gives_the_nearest(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}"), created=10.0 + number) for number in range(5)]
    first = store.browse.page(sort="oldest", size=2)
    second = store.browse.page(sort="oldest", size=2, cursor=first.next)
    for example in added[:2]:
        store.forgotten.erase(store.forgotten.traces([example.id]), {})
    back = store.browse.page(sort="oldest", size=2, cursor=second.previous)
    assert ([example.query for example in back.examples], back.previous) == (["Q2", "Q3"], None)
    third = store.browse.page(sort="oldest", size=2, cursor=back.next)
    for example in added[4:]:
        store.forgotten.erase(store.forgotten.traces([example.id]), {})
    last = store.browse.page(sort="oldest", size=2, cursor=back.next)
    assert ids(third) == [added[4].id]
    assert ([example.query for example in last.examples], last.next, last.previous) == (
        ["Q2", "Q3"],
        None,
        None,
    )
    for example in added[2:4]:
        store.forgotten.erase(store.forgotten.traces([example.id]), {})
    assert store.browse.page(sort="oldest", size=2, cursor=back.next) == Page([], None, None, Total(0, False))


def test_cursors_of_other_lists_are_refused(store: Store, new: New) -> None:
    for number in range(3):
        store.examples.add(new(f"Q{number}"))
    cursor = store.browse.page(Filter(states=("pending", "used")), size=1).next
    assert cursor is not None
    assert cursor.isascii() and cursor.replace("-", "").replace("_", "").isalnum()
    assert store.browse.page(Filter(states=("used", "pending")), size=2, cursor=cursor).examples
    mark, back, created, seq = json.loads(base64.urlsafe_b64decode(cursor + "=="))

    def forged(*values: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()

    filter = Filter(states=("pending", "used"))
    assert store.browse.page(filter, cursor=forged(mark, back, created, seq)).examples
    for wrong in (
        "", "x", "!!!", "é", cursor[:-4], forged(), forged(mark, back), forged(mark, 1, created, seq),
        forged("other", back, created, seq), forged(mark, back, created, "seq"),
        forged(mark, back, created, 2**70), forged(mark, back, float("nan"), seq),
        forged(mark, back, True, seq), base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            store.browse.page(filter, cursor=wrong)
        assert caught.value.param == "cursor", wrong
    for other in ({"filter": Filter()}, {"filter": filter, "sort": "oldest"}):
        with pytest.raises(InvalidRequest, match="not one of this list"):
            store.browse.page(**other, cursor=cursor)


@pytest.mark.parametrize(
    "how, param", [({"size": 0}, "size"), ({"size": 501}, "size"), ({"sort": "x"}, "sort")]
)
def test_a_page_that_cannot_be(store: Store, how: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        store.browse.page(**how)
    assert caught.value.param == param


def test_counts_of_a_search_are_capped(store: Store, new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.browse.COUNTED", 5)
    monkeypatch.setattr("appliance.store.browse.SLICE", 2)
    for number in range(9):
        store.examples.add(new(f"Q{number}"))
    assert store.browse.count(Filter(search="q")) == Total(5, True)
    assert store.browse.count(Filter(search="q", until=0.0)) == Total(0, False)
    assert store.browse.count() == Total(9, False)
    assert store.browse.page(count=False).total is None
