"""A request's time: from its arrival, to an end a little before its deadline."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.recommender.deadline import SENDING_SECONDS, SENDING_SHARE, RequestClock, arriving


def clock(deadline_ms: int, began: float) -> RequestClock:
    with arriving(began):
        return RequestClock(deadline_ms)


def test_a_clock_starts_when_the_request_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deeprec.recommender.deadline.time", SimpleNamespace(monotonic=lambda: 10.0, time=lambda: 5000.0)
    )
    late = clock(500, 9.8)
    assert late.deadline == pytest.approx(10.27)
    assert late.passed == pytest.approx(200)
    assert late.left == pytest.approx(0.27)
    assert late.at == pytest.approx(4999.8)
    fresh = RequestClock(500)
    assert (fresh.deadline, fresh.passed, fresh.at) == (10.47, 0, 5000), "nobody has said when it came"


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

    assert asyncio.run(both()) == pytest.approx([1.09, 2.09])


@given(deadline_ms=st.integers(1, 60_000))
def test_work_ends_a_little_before_the_answer_is_wanted(deadline_ms: int) -> None:
    one = clock(deadline_ms, 50.0)
    early = 50.0 + deadline_ms / 1000 - one.deadline
    assert 0 < early <= SENDING_SECONDS + 1e-9
    assert early <= SENDING_SHARE * deadline_ms / 1000 + 1e-9


def test_a_share_of_the_time_is_no_more_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: 10.0, time=lambda: 5000.0)
    monkeypatch.setattr("deeprec.recommender.deadline.time", now)
    assert clock(1000, 10.0).share(0.2) == pytest.approx(0.2)
    assert clock(1000, 9.1).share(0.2) == pytest.approx(0.07)
    assert clock(1000, 8.0).share(0.2) == 0
