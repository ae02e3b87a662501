"""When something is asked again, how long is waited, and what is raised when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from deeprec import retrying
from deeprec.errors import ClientError
from deeprec.retrying import Again, keep_asking, keep_asking_async, retry_after


class Script:
    """Attempts that raise or return one outcome after the other, the last over and over; ``at`` is when they began."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes)
        self.at: list[float] = []

    def __call__(self) -> Any:
        self.at.append(time.monotonic())
        outcome = self._outcomes[0] if len(self._outcomes) == 1 else self._outcomes.pop(0)
        if isinstance(outcome, Again):
            raise outcome from KeyError("the cause")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


Ask = Callable[[Script, float], Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """``ask(attempts, seconds)`` in either world."""
    if request.param == "sync":
        return keep_asking

    def run(attempts: Script, seconds: float) -> Any:
        async def attempt() -> Any:
            return attempts()

        return asyncio.run(keep_asking_async(attempt, seconds))

    return run


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.01)


def busy(after: float | None = None) -> Again:
    return Again(ClientError("busy"), after)


def test_it_is_asked_again_until_it_is_answered(ask: Ask) -> None:
    attempts = Script(busy(), busy(), "answer")
    assert ask(attempts, 60) == "answer"
    assert len(attempts.at) == 3


def test_the_pause_that_is_asked_for_is_made(ask: Ask) -> None:
    attempts = Script(busy(after=0.3), "answer")
    assert ask(attempts, 60) == "answer"
    assert attempts.at[1] - attempts.at[0] >= 0.3


def test_without_time_for_the_pause_the_error_comes_at_once_with_its_cause(ask: Ask) -> None:
    attempts = Script(busy(after=30))
    with pytest.raises(ClientError, match="busy") as raised:
        ask(attempts, 20)
    assert isinstance(raised.value.__cause__, KeyError)
    assert (len(attempts.at), time.monotonic() - attempts.at[0] < 15) == (1, True)


def test_it_is_given_up_when_the_time_is_over(ask: Ask) -> None:
    attempts = Script(busy())
    with pytest.raises(ClientError, match="busy"):
        ask(attempts, 0.5)
    assert len(attempts.at) > 3
    assert attempts.at[-1] - attempts.at[0] < 0.5


def test_without_any_time_it_is_asked_once(ask: Ask) -> None:
    attempts = Script(busy())
    with pytest.raises(ClientError, match="busy"):
        ask(attempts, 0.0)
    assert len(attempts.at) == 1


def test_other_errors_are_not_asked_again(ask: Ask) -> None:
    attempts = Script(ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        ask(attempts, 60)
    assert len(attempts.at) == 1


def test_pauses_double_up_to_the_longest(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_PAUSE", 0.08)
    monkeypatch.setattr(retrying.random, "uniform", lambda low, high: high)
    attempts = Script(*[busy()] * 5, "answer")
    ask(attempts, 60)
    pauses = [later - earlier for earlier, later in zip(attempts.at, attempts.at[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08, 0.08), strict=True))


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [(None, None, None), ("7", 7, 7), ("soon", None, None), (formatdate(0, usegmt=True), 0, 0), ("-3", None, None)],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, least: float | None, most: float | None) -> None:
    found = retry_after(header)
    assert (found is None) == (least is None)
    assert found is None or (least is not None and most is not None and least <= found <= most)
    later = retry_after(formatdate(time.time() + 100, usegmt=True))
    assert later is not None
    assert 90 < later <= 101
