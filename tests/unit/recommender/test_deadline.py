"""A request's time: from its arrival, to an end that it shares with no other."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.recommender.deadline import APART_SECONDS, MOST_EARLY, SENDING_SECONDS, Ends, RequestClock, arriving


def clock(deadline_ms: int, began: float) -> RequestClock:
    with arriving(began):
        return RequestClock(deadline_ms)


def test_a_clock_starts_when_the_request_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deeprec.recommender.deadline.time", SimpleNamespace(monotonic=lambda: 10.0, time=lambda: 5000.0)
    )
    late = clock(500, 9.8)
    assert late.deadline == pytest.approx(10.3)
    assert late.passed == pytest.approx(200)
    assert late.left == pytest.approx(0.3)
    assert late.at == pytest.approx(4999.8)
    fresh = RequestClock(500)
    assert (fresh.deadline, fresh.passed, fresh.at) == (10.5, 0, 5000), "nobody has said when it came"


def test_tasks_know_when_their_own_request_arrived() -> None:
    async def deadline() -> float:
        await asyncio.sleep(0)
        return RequestClock(100).deadline

    async def both() -> list[float]:
        tasks = []
        for came in (1.0, 2.0):
            with arriving(came):
                tasks.append(asyncio.create_task(deadline()))
        return await asyncio.gather(*tasks)

    assert asyncio.run(both()) == [1.1, 2.1]


def test_requests_that_come_together_end_one_after_the_other() -> None:
    ends, came = Ends(), 100.0
    clocks = [clock(300, came) for _ in range(10)]
    with ExitStack() as stack:
        for one in clocks:
            stack.enter_context(ends.kept(one))
        assert clocks[0].deadline == came + 0.3 - SENDING_SECONDS, "the first ends when its answer can be there on time"
        gaps = [before.deadline - after.deadline for before, after in pairwise(clocks)]
        assert gaps == pytest.approx([APART_SECONDS] * 9)
    with ends.kept(again := clock(300, came)):
        assert again.deadline == came + 0.3 - SENDING_SECONDS, "their ends are free again"


def test_an_end_between_two_others_is_taken() -> None:
    ends, came = Ends(), 100.0
    with ends.kept(clock(300, came)), ends.kept(clock(316, came)), ends.kept(between := clock(308, came)):
        assert between.deadline == came + 0.308 - SENDING_SECONDS
        with ends.kept(later := clock(309, came)):
            expected = came + 0.308 - SENDING_SECONDS - APART_SECONDS
            assert later.deadline == pytest.approx(expected), "before the one it would meet, after the other"


@given(deadlines=st.lists(st.integers(10, 400), min_size=1, max_size=120))
def test_no_end_is_late_or_much_too_early_and_none_meets_another_that_can_avoid_it(deadlines: list[int]) -> None:
    ends = Ends()
    taken: list[float] = []
    with ExitStack() as stack:
        for deadline_ms in deadlines:
            one = clock(deadline_ms, 50.0)
            earliest = one.deadline - MOST_EARLY * deadline_ms / 1000
            latest = max(one.deadline - SENDING_SECONDS, earliest)
            stack.enter_context(ends.kept(one))
            assert earliest <= one.deadline <= latest
            apart = min((abs(one.deadline - other) for other in taken), default=1.0)
            assert apart > APART_SECONDS - 1e-9 or one.deadline == earliest
            taken.append(one.deadline)
