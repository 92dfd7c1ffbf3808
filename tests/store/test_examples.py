from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.errors import Conflict, InvalidRequest, NotFound
from appliance.store import Store
from appliance.store.examples import NewExample

New = Callable[..., NewExample]


def ids(examples: list) -> list[str]:
    return [example.id for example in examples]


def conversation(first: str, then: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": then},
    ]


def test_add_and_read_back(store: Store, new: New) -> None:
    messages = [
        {"role": "system", "content": "\u00fc \U0001f600 \x00"},
        {"role": "user", "content": ["x", 1]},
    ]
    added = store.examples.add(new("Q", "A", feedback="F", messages=messages, device="d", rating="up"))
    assert store.examples.get(added.id) == added
    assert added.state == "pending"
    with pytest.raises(NotFound):
        store.examples.get("ex_none")


def test_pages_and_counts(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}")) for number in range(5)]
    store.examples.update(added[1].id, state="excluded")
    assert ids(store.examples.list(limit=2)) == ids([added[4], added[3]])
    assert ids(store.examples.list(limit=2, offset=1, newest_first=False)) == ids(added[1:3])
    assert ids(store.examples.list("excluded")) == [added[1].id]
    assert ids(store.examples.pending(2)) == ids([added[0], added[2]])
    assert store.examples.count() == 5
    assert store.examples.count("excluded", "review") == 1
    assert store.examples.counts()["pending"] == 4
    assert store.examples.counts()["parked"] == 0
    assert store.examples.oldest_pending() == added[0].created


def test_empty_store(store: Store) -> None:
    assert store.examples.oldest_pending() is None
    assert store.examples.pending() == store.examples.replay(5, 0, ()) == store.examples.review() == []
    assert store.examples.count() == 0


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"query": "\ud800"}, "query"),
        ({"response": "\udfff"}, "response"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"x": float("nan")}]}, "messages"),
        ({"messages": [{"x": object()}]}, "messages"),
    ],
)
def test_what_cannot_be_stored_is_refused(store: Store, new: New, fields: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        store.examples.add(new(**fields))
    assert caught.value.param == param
    assert store.examples.count() == 0


def test_no_target_is_never_trainable(store: Store, new: New) -> None:
    critique = store.examples.add(new(kind="critique", target=None, state="review"))
    with pytest.raises(Exception, match="CHECK"):
        store.examples.update(critique.id, state="pending")
    with pytest.raises(Exception, match="CHECK"):
        store.examples.add(new(target=None))


def test_update_checks(store: Store, new: New) -> None:
    added = store.examples.add(new())
    with pytest.raises(NotFound):
        store.examples.update("ex_none", state="excluded")
    with pytest.raises(Conflict):
        store.examples.update(added.id, expect="review", state="excluded")
    with pytest.raises(TypeError):
        store.examples.update(added.id, **{"id = 'x' --": 1})
    assert store.examples.update(added.id, expect="pending", weight=3.0, note="n").weight == 3.0


def test_a_batch_is_used(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}")) for number in range(3)]
    run = store.runs.create("person", 2)
    held = store.examples.hold(run.id, ids(added[:2]))
    assert ids(held) == ids(added[:2]) == ids(store.examples.held(run.id))
    assert {example.state for example in held} == {"training"}
    other = store.runs.create("person", 2)
    assert store.examples.hold(other.id, ids(added)) == [store.examples.get(added[2].id)]
    assert store.examples.mark_used(run.id) == 2
    assert store.examples.mark_used(run.id) == store.examples.release(run.id) == 0
    assert store.examples.get(added[0].id).state == "used"
    assert store.examples.get(added[0].id).run_id == run.id


def test_a_batch_comes_back_or_is_parked(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}")) for number in range(2)]
    run = store.runs.create("threshold", 2)
    store.examples.hold(run.id, ids(added))
    assert store.examples.release(run.id) == 2
    assert [example.run_id for example in store.examples.pending()] == [None, None]
    assert ids(store.examples.pending()) == ids(added)
    store.examples.hold(run.id, ids(added))
    assert store.examples.park(run.id) == 2
    assert store.examples.counts()["parked"] == 2
    with pytest.raises(NotFound):
        store.examples.hold("run_none", ids(added))


def test_what_a_run_leaves_out_is_neither_lost_nor_repeated(store: Store, new: New) -> None:
    kept, out = (store.examples.add(new(f"Q{number}")) for number in range(2))
    run = store.runs.create("person", 2)
    store.examples.leave_out(run.id, {out.id: "loop"})
    assert store.examples.get(out.id).left_out is None  # the run does not hold it
    for give_back in (store.examples.release, store.examples.park):
        store.examples.hold(run.id, ids([kept, out]))
        store.examples.leave_out(run.id, {out.id: "loop"})
        assert store.examples.get(out.id).remark == "left out: loop"
        assert give_back(run.id) == 2
        assert store.examples.get(out.id).left_out is None
    for example in (kept, out):
        store.examples.update(example.id, state="pending")
    store.examples.hold(run.id, ids([kept, out]))
    store.examples.leave_out(run.id, {out.id: "loop"})
    assert store.examples.mark_used(run.id) == 2
    assert ids(store.examples.replay(9, 0, [run.id])) == [kept.id]


def test_masked_texts_are_found_by_what_was_said(store: Store, new: New) -> None:
    said = new("Write to a@b.example", "Done, a@b.example")
    masked = replace(said, query="Write to [e-mail]", target="Done, [e-mail]", masked={"e-mail": 2})
    stored = store.examples.add(masked, unmasked=said)
    assert store.examples.get(stored.id) == stored
    assert (stored.query, stored.masked) == ("Write to [e-mail]", {"e-mail": 2})
    kept = store.examples.add(new("Write to a@b.example", "No."))
    assert store.examples.supersede("write to a@b.example", kept.id) == 1
    assert store.examples.get(stored.id).state == "superseded"


def test_supersede_is_by_normalised_query(store: Store, new: New) -> None:
    same = store.examples.add(new("what is 2+2", "5"))
    reviewed = store.examples.add(new("What is 2+2?!", "5", kind="critique", target=None, state="review"))
    other = store.examples.add(new("What is 2+3?", "5"))
    keep = store.examples.add(new("What is 2+2?", "5", kind="correction", target="4", correction="4"))
    assert store.examples.supersede("  WHAT is 2+2 ", keep.id) == 2
    assert {store.examples.get(e.id).state for e in (same, reviewed)} == {"superseded"}
    assert store.examples.get(same.id).superseded_by == keep.id
    assert ids(store.examples.pending()) == [other.id, keep.id]
    assert store.examples.supersede("What is 2+2?", keep.id) == 0


def test_superseded_while_a_run_holds_it(store: Store, new: New) -> None:
    wrong = store.examples.add(new("Q", "wrong"))
    fine = store.examples.add(new("R", "fine"))
    run = store.runs.create("threshold", 2)
    store.examples.hold(run.id, ids([wrong, fine]))
    keep = store.examples.add(new("Q", "wrong", kind="correction", target="right"))
    assert store.examples.supersede("Q", keep.id) == 0
    assert store.examples.get(wrong.id).state == "training"
    assert store.examples.release(run.id) == 1
    assert store.examples.get(wrong.id).state == "superseded"
    assert ids(store.examples.pending()) == [fine.id, keep.id]


def test_what_people_taught_in_another_conversation_stays(store: Store, new: New) -> None:
    cats, dogs = conversation("I like cats.", "Why?"), conversation("I like dogs.", "Why?")
    taught = store.examples.add(new("Why?", "x", kind="correction", target="Cats purr.", messages=cats))
    automatic = store.examples.add(new("Why?", "x", messages=cats))
    keep = store.examples.add(new("Why?", "x", kind="correction", target="Dogs bark.", messages=dogs))
    assert store.examples.supersede("Why?", keep.id) == 1
    assert store.examples.get(taught.id).state == "pending"
    assert store.examples.get(automatic.id).state == "superseded"


def test_rejected_answers(store: Store, new: New) -> None:
    example = store.examples.add(new())
    store.examples.reject_answer("What is 2+2?", "**Five.**", example.id)
    store.examples.reject_answer("What is 2+2?", "five", example.id)
    assert store.examples.rejected_answers("what is 2+2") == {"five"}
    assert store.examples.rejected_answers("What is 2+3?") == set()
    store.examples.accept_answer("what is 2+2", "Five!")
    assert store.examples.rejected_answers("What is 2+2?") == set()


def test_replay_is_deterministic_and_leaves_out_what_was_disowned(store: Store, new: New) -> None:
    added = [store.examples.add(new(f"Q{number}", f"A{number}")) for number in range(20)]
    run = store.runs.create("threshold", 20)
    store.examples.hold(run.id, ids(added))
    store.examples.mark_used(run.id)
    sample = store.examples.replay(5, seed=1, runs=[run.id])
    assert ids(sample) == ids(store.examples.replay(5, seed=1, runs=[run.id]))
    assert ids(sample) != ids(store.examples.replay(5, seed=2, runs=[run.id]))
    assert len(store.examples.replay(100, seed=1, runs=[run.id])) == 20
    assert store.examples.replay(-1, seed=1, runs=[run.id]) == []
    keep = store.examples.add(new("Q0", "A0", kind="correction", target="B"))
    store.examples.supersede("Q0", keep.id)
    store.examples.reject_answer("Q1", "A1", None)
    assert ids(store.examples.replay(100, seed=1, runs=[run.id])) == ids(added[2:])


def test_replay_is_mostly_what_people_taught(store: Store, new: New) -> None:
    for number in range(10):
        store.examples.add(new(f"Q{number}", "No.", kind="correction", target="Yes."))
    for number in range(40):
        store.examples.add(new(f"R{number}"))
    run = store.runs.create("threshold", 50)
    store.examples.hold(run.id, ids(store.examples.pending()))
    store.examples.mark_used(run.id)
    for count, taught in ((8, 6), (12, 9), (20, 10), (45, 10), (50, 10), (60, 10)):
        kinds = [example.kind for example in store.examples.replay(count, seed=0, runs=[run.id])]
        assert len(kinds) == min(count, 50)
        assert kinds.count("correction") == taught


def test_review_lists_what_a_person_should_see(store: Store, new: New) -> None:
    store.examples.add(new())
    open_ = store.examples.add(new(kind="critique", target=None, state="review"))
    drafted = store.examples.add(new(kind="critique", target="4", note="draft: by the model"))
    store.examples.add(new(kind="critique", target="4", note="reviewed"))
    assert ids(store.examples.review()) == [drafted.id, open_.id]
    assert store.examples.review_count() == 2
