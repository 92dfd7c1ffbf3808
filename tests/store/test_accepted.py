"""The adapters that can be asked for: accepted, of one base, the newest."""

from __future__ import annotations

from appliance.store import Store
from appliance.store.adapters import AdapterRow


def test_the_newest_accepted_ones_of_a_base(store: Store) -> None:
    for number in range(5):
        store.adapters.upsert(
            AdapterRow(
                f"a{number}",
                float(number),
                f"{number}",
                1,
                "base",
                1,
                None,
                None,
                "accepted",
                {"passed": True},
            )
        )
    store.adapters.upsert(AdapterRow("strange", 9.0, "s", 1, "other", 1, None, None, "accepted", None))
    store.adapters.set_state("a4", "rejected")
    store.adapters.withdraw("a3", "3", "complaints")

    def names(limit: int, *also: str) -> list[str]:
        return [row.name for row in store.adapters.accepted("base", limit, also)]

    assert names(10) == ["a3", "a2", "a1", "a0"]
    assert names(2) == ["a3", "a2"]
    assert names(2, "a0", "a2", "a4", "strange", "unknown") == ["a3", "a2", "a0"]
    first = store.adapters.accepted("base", 1)[0]
    assert first == store.adapters.get("a3")
    assert first.withdrawn == "complaints"
