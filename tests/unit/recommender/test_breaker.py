"""The circuit breaker, over time that is made up here."""

from __future__ import annotations

from deeprec.recommender.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("it", failures=3, pause=1.0, longest=3.0, clock=clock)


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    breaker = made(Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert not breaker.open
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert breaker.open
    assert not breaker.allows()


def test_one_at_a_time_tries_again_after_pauses_that_grow_to_a_limit() -> None:
    clock = Clock()
    breaker = made(clock)
    for _ in range(3):
        breaker.failed()
    for pause in (1.0, 2.0, 3.0, 3.0):
        clock.now += pause - 0.01
        assert not breaker.allows()
        clock.now += 0.02
        assert breaker.allows()
        assert not breaker.allows(), "one at a time"
        breaker.failed()
    clock.now += 3.1
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()
    for _ in range(3):
        breaker.failed()
    clock.now += 1.01
    assert breaker.allows(), "the first pause is short again"


def test_those_that_were_let_through_before_it_opened_do_not_make_its_pause_longer() -> None:
    clock = Clock()
    breaker = made(clock)
    for _ in range(30):
        assert breaker.allows()
    for _ in range(30):
        breaker.failed()
    clock.now += 1.01
    assert breaker.allows(), "thirty at once were one failure, and not thirty tries"


def test_a_try_that_nobody_ends_is_followed_by_another() -> None:
    clock = Clock()
    breaker = made(clock)
    for _ in range(3):
        breaker.failed()
    for _ in range(3):
        clock.now += 1.01
        assert breaker.allows()
