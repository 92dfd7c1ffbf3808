from __future__ import annotations

import pytest

from appliance.console.login import Throttle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("appliance.console.login.time.monotonic", lambda: now[0])
    return now


def test_some_attempts_are_free_then_each_waits_longer(clock: list[float]) -> None:
    throttle = Throttle(free=5)
    assert [throttle.attempt("a") for _ in range(5)] == [0.0] * 5
    first = throttle.attempt("a")
    assert first > 0
    clock[0] += first
    assert throttle.attempt("a") == 0.0
    assert throttle.attempt("a") > first


def test_guessing_at_once_gains_nothing(clock: list[float]) -> None:
    throttle = Throttle(free=5)
    assert sum(throttle.attempt("a") == 0.0 for _ in range(1000)) == 5


def test_a_day_of_guessing_is_few_guesses(clock: list[float]) -> None:
    throttle = Throttle(free=5, longest=900)
    guesses = 0
    end = clock[0] + 86_400
    while clock[0] < end:
        wait = throttle.attempt("a")
        guesses += wait == 0.0
        clock[0] += wait
    assert guesses < 150


def test_one_address_does_not_lock_out_another(clock: list[float]) -> None:
    throttle = Throttle(free=5)
    for _ in range(20):
        throttle.attempt("guesser")
    assert throttle.attempt("owner") == 0.0


def test_many_addresses_together_are_slowed(clock: list[float]) -> None:
    throttle = Throttle(free=5, free_overall=50)
    assert sum(throttle.attempt(f"10.0.0.{n}") == 0.0 for n in range(250)) == 50


def test_success_forgets(clock: list[float]) -> None:
    throttle = Throttle(free=5)
    for _ in range(5):
        throttle.attempt("owner")
    throttle.succeeded("owner")
    assert [throttle.attempt("owner") for _ in range(5)] == [0.0] * 5


def test_refusals_are_noted_once_a_wait(clock: list[float]) -> None:
    """Who is refused a thousand times a second must not push everything else out of the audit trail."""
    throttle = Throttle(free=5)
    noted = 0
    end = clock[0] + 3600
    while clock[0] < end:
        if throttle.attempt("guesser") > 0:
            noted += throttle.worth_noting("guesser")
        clock[0] += 0.1
    assert 1 <= noted < 20


def test_refusals_of_many_addresses_are_noted_once_a_wait(clock: list[float]) -> None:
    throttle = Throttle(free=5, free_overall=50)
    refused = [f"10.0.{n // 250}.{n % 250}" for n in range(3000)]
    noted = sum(throttle.worth_noting(address) for address in refused if throttle.attempt(address) > 0)
    assert noted == 1
