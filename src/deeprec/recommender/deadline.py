"""One request's time: when it came, and when it has to be answered.

A server that is busy reads a request some time before it comes to answer it, and the deadline counts that: whatever
takes requests in says so with ``arriving``, and the clocks made within it start then.
"""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

APART_SECONDS = 0.003
"""What an answer takes of the event loop until it is sent, so that this many seconds lie between two ends."""
SENDING_SECONDS = 0.03
"""What an answer's way to the caller may take: so long before its deadline a request ends at the latest."""
MOST_EARLY = 0.35
"""Share of a request's time that it may end early, for both of these."""

_ARRIVED: ContextVar[tuple[float, str] | None] = ContextVar("arrived", default=None)


@contextmanager
def arriving(at: float | None = None, client: str = "") -> Iterator[None]:
    """A request of ``client`` came at ``at``, ``time.monotonic`` seconds, or now: clocks made in this context say so.

    Tasks begun in it have the same context.
    """
    token = _ARRIVED.set((time.monotonic() if at is None else at, client))
    try:
        yield
    finally:
        _ARRIVED.reset(token)


class RequestClock:
    """Starts when the request arrived, or when it is made where nobody has said that.

    Attributes:
        at: seconds since 1970.
        deadline_ms: milliseconds it has.
        deadline: when they are over, in ``time.monotonic`` seconds.
        client: who asks, as far as that is known: what one client sends is to hold up no other.
    """

    def __init__(self, deadline_ms: int) -> None:
        now = time.monotonic()
        self._started, self.client = _ARRIVED.get() or (now, "")
        self.at = time.time() - (now - self._started)
        self.deadline_ms, self.deadline = deadline_ms, self._started + deadline_ms / 1000

    @property
    def passed(self) -> float:
        """Milliseconds since the request came."""
        return round(1000 * (time.monotonic() - self._started), 2)

    @property
    def left(self) -> float:
        """Seconds until it has to be answered, 0 or more."""
        return max(self.deadline - time.monotonic(), 0.0)


class Ends:
    """The ends of the requests under way: a little before their deadlines, a little apart from one another.

    A deadline is when the answer is wanted, so that its way has to be over by then. Requests that come together would
    end together, and their answers wait for one another to be written. So one that finds its end taken ends before
    those that have it.
    """

    def __init__(self) -> None:
        self._taken: list[float] = []

    @contextmanager
    def kept(self, clock: RequestClock) -> Iterator[None]:
        """Bring the clock's deadline forward to the latest end that is free, and keep that one meanwhile."""
        earliest = clock.deadline - MOST_EARLY * clock.deadline_ms / 1000
        end = clock.deadline - SENDING_SECONDS
        place = bisect_right(self._taken, end + APART_SECONDS)
        while place > 0 and end - self._taken[place - 1] < APART_SECONDS:
            place -= 1
            end = self._taken[place] - APART_SECONDS
        clock.deadline = max(end, earliest)
        insort(self._taken, clock.deadline)
        try:
            yield
        finally:
            self._taken.remove(clock.deadline)
