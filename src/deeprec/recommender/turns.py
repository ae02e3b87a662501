"""Little at a time in one turn of the event loop, so that what becomes ready together does not keep it for long.

asyncio runs all that is ready before it looks at timers and sockets again. Where hundreds of requests arrive together,
or a batch of the TRM lets 64 go on at once, that is a tenth of a second and more in which nobody else is heard.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Turns:
    """Lets callers go on while those before them have not taken ``seconds`` of this turn of the event loop.

    The others go on in the turns after it, in order, one in each; until then they cost nothing. What a caller does
    until it next waits for something counts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._queue: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return in a turn of the event loop in which there is time."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = time.monotonic()
            loop.call_soon(self._next)
            return
        if not self._queue and time.monotonic() - self._began <= self._seconds:
            return
        future = loop.create_future()
        self._queue.append(future)
        await future

    def _next(self) -> None:
        """A turn has ended; let the next caller go on in the one that begins."""
        while self._queue:
            future = self._queue.popleft()
            if not future.done():  # a caller that was cancelled is
                future.set_result(None)
                self._began = time.monotonic()
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._began = None
