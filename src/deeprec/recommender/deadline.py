"""One request's time: when it came, and when it has to be answered.

Whatever takes requests in says whose a request is, and when it came, with ``arriving``; the clocks made within it start
then. A deadline is when the answer is wanted, so that its way has to be over by then: work ends a little before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SENDING_SECONDS = 0.03
"""What an answer's way to the caller may take: so long before the deadline work ends."""
SENDING_SHARE = 0.1
"""Of the deadline, where that is less."""

_ARRIVED: ContextVar[tuple[float, str, str] | None] = ContextVar("arrived", default=None)


@contextmanager
def arriving(at: float | None = None, client: str = "", request_id: str = "") -> Iterator[None]:
    """A request of ``client`` came at ``at``, ``time.monotonic`` seconds, or now: clocks made in this context say so.

    Tasks begun in it have the same context.
    """
    token = _ARRIVED.set((time.monotonic() if at is None else at, client, request_id))
    try:
        yield
    finally:
        _ARRIVED.reset(token)


class RequestClock:
    """Starts when the request arrived, or when it is made where nobody has said that.

    Attributes:
        at: seconds since 1970.
        deadline_ms: milliseconds it has.
        deadline: when work has to end, in ``time.monotonic`` seconds.
        client: who asks, as far as that is known: what one client sends is to hold up no other.
        request_id: the request's name, as far as it has one.
        stages: seconds that each of its stages took that has ended.
    """

    def __init__(self, deadline_ms: int) -> None:
        now = time.monotonic()
        self._started, self.client, self.request_id = _ARRIVED.get() or (now, "", "")
        self.stages: dict[str, float] = {}
        self.at = time.time() - (now - self._started)
        seconds = deadline_ms / 1000
        self.deadline_ms = deadline_ms
        self.deadline = self._started + seconds - min(SENDING_SECONDS, SENDING_SHARE * seconds)

    @property
    def passed(self) -> float:
        """Milliseconds since the request came."""
        return round(1000 * (time.monotonic() - self._started), 2)

    @property
    def left(self) -> float:
        """Seconds until work has to end, 0 or more."""
        return max(self.deadline - time.monotonic(), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time this block as a stage of the request, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = time.monotonic() - began

    def share(self, share: float) -> float:
        """Seconds that something may take which may have this share of the whole time, and no more than is left."""
        return min(share * self.deadline_ms / 1000, self.left)
