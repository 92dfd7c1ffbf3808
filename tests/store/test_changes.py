from __future__ import annotations

import pytest

from appliance.errors import InvalidRequest, NotFound
from appliance.home import Home
from appliance.store import Store
from appliance.store.changes import Difference

RANK = Difference("train.rank", 16, 8)


def undo(store: Store, change_id: int) -> int:
    taken = store.changes.get(change_id)
    back = [Difference(item.key, item.new, item.old) for item in taken.differences]
    return store.changes.add("owner", back, undoes=change_id).id


def test_kept_as_they_were(store: Store, home: Home) -> None:
    values = (Difference("a.b", "", "ä"), Difference("a.c", True, False), Difference("a.d", 60, 0.5))
    first = store.changes.add("owner", values)
    second = store.changes.add("kitchen tablet", [RANK], undoes=first.id)
    store.close()
    store = Store.open(home)
    found = store.changes.list()
    assert [item.id for item in found] == [second.id, first.id]
    assert found[1].differences == values
    assert [type(item.new) for item in found[1].differences] == [str, bool, float]
    assert (found[0].actor, found[0].undoes, found[0].undone) == ("kitchen tablet", first.id, False)
    assert found[1].undone
    assert store.changes.get(second.id) == found[0] == second
    assert store.changes.list(1, offset=1) == found[1:]
    assert store.changes.count() == 2
    store.close()


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        store.changes.get(1)
    assert caught.value.param == "id"
    assert store.changes.list() == []


def test_only_what_json_can_hold(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        store.changes.add("owner", [Difference("a.b", 1, float("inf"))])
    assert store.changes.count() == 0


def test_numbers_are_not_given_twice(store: Store) -> None:
    gone = store.changes.add("owner", [RANK]).id
    with store.database.transaction() as tx:
        tx.execute("DELETE FROM changes")
    assert store.changes.add("owner", [RANK]).id > gone


def test_an_undone_undo_leaves_the_change_standing(store: Store) -> None:
    first = store.changes.add("owner", [RANK]).id
    second = undo(store, first)
    assert store.changes.get(first).undone
    third = undo(store, second)
    assert not store.changes.get(first).undone
    assert store.changes.get(second).undone
    undo(store, third)
    assert store.changes.get(first).undone
    assert not store.changes.get(second).undone


def test_a_change_that_was_taken_back_stands_no_more(store: Store) -> None:
    def standing(change_id: int) -> list[int]:
        return [item.id for item in store.changes.standing_after(change_id)]

    zero = store.changes.add("owner", [Difference("train.seed", 0, 1)]).id
    first = store.changes.add("owner", [RANK]).id
    second = store.changes.add("owner", [Difference("train.rank", 8, 4)]).id
    assert standing(first) == [second]
    third = undo(store, second)
    assert standing(first) == []
    assert standing(second) == [third]
    again = undo(store, third)
    assert standing(first) == [second]
    undo(store, again)
    # What takes back an earlier one is a change of its own for those in between.
    last = undo(store, zero)
    assert standing(first) == [last]
    assert store.changes.get(zero).undone
