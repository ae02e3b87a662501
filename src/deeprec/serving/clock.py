"""One request's time: when it came, and when it has to be answered."""

from __future__ import annotations

import time


class RequestClock:
    """Starts when it is made.

    Attributes:
        at: seconds since 1970.
        deadline_ms: milliseconds it has.
        deadline: when they are over, in ``time.monotonic`` seconds.
    """

    def __init__(self, deadline_ms: int) -> None:
        self.at, self._started = time.time(), time.monotonic()
        self.deadline_ms, self.deadline = deadline_ms, self._started + deadline_ms / 1000

    @property
    def passed(self) -> float:
        """Milliseconds since the request came."""
        return round(1000 * (time.monotonic() - self._started), 2)

    @property
    def left(self) -> float:
        """Seconds until it has to be answered, 0 or more."""
        return max(self.deadline - time.monotonic(), 0.0)
