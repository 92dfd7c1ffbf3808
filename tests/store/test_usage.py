from __future__ import annotations

import sqlite3
import time

import pytest

from appliance.home import Home
from appliance.store import Store
from appliance.store.migrations import STEPS, migrate
from appliance.store.usage import DAY, HOUR, KEPT_DAYS, KEYLESS, UsagePoint, floor

NOW = 1_800_000_000 // DAY * DAY + 14 * HOUR + 1234


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(NOW))


def asked(ago: float, requests: int = 1) -> UsagePoint:
    """So many requests, a while ago."""
    return UsagePoint(NOW - ago, requests, requests * 100, requests * 10, requests * 2.0)


def test_counts_add_up(store: Store, home: Home) -> None:
    store.usage.add([("dev_a", asked(0)), ("dev_a", asked(600, 2)), (KEYLESS, asked(0))])
    store.usage.add([("dev_a", UsagePoint(NOW, refused=3))])
    store.close()
    store = Store.open(home)
    hour = floor(NOW, HOUR)
    assert store.usage.totals(NOW) == {
        "dev_a": UsagePoint(hour, 3, 300, 30, 6.0, 3),
        KEYLESS: UsagePoint(hour, 1, 100, 10, 2.0),
    }
    point = store.usage.totals(NOW)["dev_a"]
    assert (point.tokens, point.speed) == (330, 5.0)
    assert UsagePoint(0).speed == 0.0
    store.close()


def test_totals_begin_with_an_hour(store: Store) -> None:
    store.usage.add([("dev_a", asked(0)), ("dev_a", asked(HOUR)), ("dev_b", asked(2 * HOUR))])
    assert store.usage.totals(NOW - HOUR)["dev_a"].requests == 2
    assert set(store.usage.totals(NOW - HOUR)) == {"dev_a"}
    assert set(store.usage.totals(0)) == {"dev_a", "dev_b"}
    assert store.usage.totals(NOW + HOUR) == {}


def test_a_day_by_the_hour(store: Store) -> None:
    store.usage.add([("dev_a", asked(0)), ("dev_a", asked(5 * HOUR, 4)), ("dev_b", asked(5 * HOUR))])
    points = store.usage.series(NOW - 23 * HOUR, HOUR)
    assert [point.at for point in points] == [floor(NOW, HOUR) - ago * HOUR for ago in range(23, -1, -1)]
    assert {index: point.requests for index, point in enumerate(points) if point.requests} == {23: 1, 18: 5}
    mine = store.usage.series(NOW - 23 * HOUR, HOUR, "dev_a")
    assert [(point.requests, point.completion_tokens) for point in mine if point.requests] == [
        (4, 40),
        (1, 10),
    ]
    assert len(mine) == 24
    assert not any(point.requests for point in store.usage.series(NOW - 23 * HOUR, HOUR, KEYLESS))


def test_a_month_by_the_day(store: Store) -> None:
    # Just before midnight UTC, just after, and before the first day shown.
    midnight = NOW % DAY
    store.usage.add(
        [("a", asked(midnight + 1)), ("a", asked(midnight)), ("a", asked(midnight + 29 * DAY + 1))]
    )
    points = store.usage.series(NOW - 29 * DAY, DAY)
    assert len(points) == 30
    assert all(point.at % DAY == 0 for point in points)
    assert [point.requests for point in points[-3:]] == [0, 1, 1]
    assert sum(point.requests for point in points) == 2


@pytest.mark.parametrize("seconds", [0, 60, HOUR + 1])
def test_only_whole_hours_are_known(store: Store, seconds: int) -> None:
    with pytest.raises(ValueError, match="hour"):
        store.usage.series(NOW - DAY, seconds)


def test_what_is_old_goes(store: Store) -> None:
    store.usage.add([("a", asked(KEPT_DAYS * DAY))])
    assert store.usage.totals(0)["a"].requests == 1
    store.usage.add([("a", asked((KEPT_DAYS + 1) * DAY)), ("a", asked(0, 2))])
    assert store.usage.totals(0)["a"].requests == 3
    assert store.database.value("SELECT count(*) FROM usage") == 2


def test_one_transaction_for_all(store: Store) -> None:
    told: list[frozenset[str]] = []
    store.on_change(told.append)
    store.usage.add([(f"dev_{number}", asked(0)) for number in range(50)])
    assert told == [{"usage"}]


def test_devices_of_before_have_no_limits(home: Home) -> None:
    home.ensure()
    connection = sqlite3.connect(home.store, isolation_level=None)
    migrate(connection, STEPS[:6])
    connection.execute("INSERT INTO devices (id, name, sha256, created) VALUES ('dev_a', 'Hall', 'x', 1)")
    connection.close()
    store = Store.open(home)
    device = store.keys.get("dev_a")
    assert (device.name, device.models, device.rate) == ("Hall", None, None)
    store.close()


def test_a_busy_year_is_read_at_once(store: Store) -> None:
    rows = [
        (floor(NOW, HOUR) - hour * HOUR, f"dev_{device}", 1, 100, 10, 1.0, 0)
        for hour in range(KEPT_DAYS * 24)
        for device in range(10)
    ]
    with store.database.transaction() as tx:
        tx.executemany("INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    began = time.perf_counter()
    assert store.usage.series(NOW - 29 * DAY, DAY, "dev_3")[-2].requests == 24
    assert store.usage.totals(NOW - 29 * DAY)["dev_3"].requests == 29 * 24 + 1
    assert time.perf_counter() - began < 0.5
