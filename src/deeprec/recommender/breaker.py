"""A circuit breaker: what keeps failing is not asked for a while, so that nobody waits for it.

Closed, everything is let through. After ``failures`` in a row it opens: nothing is, until a pause has passed; then one
caller at a time tries. A success closes it; another failure doubles the pause, up to ``longest``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """For use in one event loop, or under a lock of its own.

    Args:
        name: what it stands before, for the log, which is told of every opening and closing.
        failures: in a row, with which it opens.
        pause: seconds before the first try.
        longest: seconds between two tries at most.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        failures: int = 5,
        pause: float = 1.0,
        longest: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._most, self._first, self._longest, self._clock = name, failures, pause, longest, clock
        self._failed = 0
        self._pause = pause
        self._tried, self._trying = 0.0, False
        self.open = False
        """Whether it keeps callers away."""

    def allows(self) -> bool:
        """Whether a caller may ask now; whoever is let through says ``succeeded`` or ``failed``."""
        if not self.open:
            return True
        if self._clock() - self._tried < self._pause:
            return False
        self._tried, self._trying = self._clock(), True
        return True

    def succeeded(self) -> None:
        """An answer came in time."""
        if self.open:
            logger.warning("%s answers again", self._name)
        self.open, self._trying, self._failed, self._pause = False, False, 0, self._first

    def failed(self) -> None:
        """None did. Of those that were let through before it opened nothing more is learnt."""
        self._failed += 1
        if self._trying:
            self._pause, self._trying, self._tried = min(2 * self._pause, self._longest), False, self._clock()
        elif not self.open and self._failed >= self._most:
            self.open, self._tried = True, self._clock()
            logger.error("%s failed %d times in a row; it is asked now and then only", self._name, self._failed)
