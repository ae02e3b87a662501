"""Asking a server again: one policy for every client of ours, on Tenacity.

An attempt that failed in a way that may pass raises ``Again`` with the error that is to be raised when there is no time
for another attempt. Pauses double, are shortened at random so that clients do not come back together, and are what the
server asks for where it names a time (``Retry-After``). Contract: no pause ends after the time is over; the last
attempt's error is raised at once instead. Whatever else an attempt raises is raised as it is.

Limits: how long one attempt takes is the attempt's own business.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, stop_before_delay
from tenacity.wait import wait_exponential

Answer = TypeVar("Answer")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts: doubled after each, and shortened by up to a half at random."""
BUSY = frozenset({429, 503})
"""Statuses of a server that sheds load or is not ready: the same request may be answered later."""
BUSY_BEHIND_A_GATEWAY = BUSY | {502, 504}
"""And those that a gateway gives while the server behind it starts, for requests that take a gateway's time."""


class Again(Exception):
    """An attempt failed, and another may not.

    Args:
        error: what is raised when there is no time for another; raise this one ``from`` what caused it.
        after: seconds that the server asks to wait; None where it does not say.
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


def keep_asking(attempt: Callable[[], Answer], seconds: float) -> Answer:
    """What ``attempt`` returns, called again for as long as it raises ``Again`` and the next call begins in time.

    Args:
        seconds: after which no attempt begins; the first always does.

    Raises:
        Exception: the ``error`` of the last ``Again``, or anything else that ``attempt`` raises.
    """
    return Retrying(**_policy(seconds))(attempt)


async def keep_asking_async(attempt: Callable[[], Awaitable[Answer]], seconds: float) -> Answer:
    """``keep_asking`` for an event loop."""
    answer: Answer = await AsyncRetrying(**_policy(seconds))(attempt)
    return answer


def retry_after(value: str | None) -> float | None:
    """Seconds from now that a ``Retry-After`` header names, as a number or a date; None for none or another text."""
    if value is None or value.isdecimal():
        return None if value is None else float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _policy(seconds: float) -> dict[str, Any]:
    doubled = wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)

    def pause(state: RetryCallState) -> float:
        asked = _again(state).after
        return doubled(state) * random.uniform(0.5, 1.0) if asked is None else asked

    return {
        "retry": retry_if_exception_type(Again),
        "wait": pause,
        "stop": stop_before_delay(seconds),
        "retry_error_callback": _give_up,
    }


def _again(state: RetryCallState) -> Again:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Again)
    return error


def _give_up(state: RetryCallState) -> NoReturn:
    again = _again(state)
    raise again.error from again.__cause__
