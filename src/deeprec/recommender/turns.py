"""Little at a time in one turn of the event loop, so that what becomes ready together does not keep it for long.

asyncio runs all that is ready before it looks at timers and sockets again. Where hundreds of requests arrive together,
or a batch of the TRM lets 64 go on at once, that is a tenth of a second and more in which nobody else is heard.
"""

from __future__ import annotations

import asyncio
import time


class Turns:
    """Lets callers go on while those before them have not taken ``seconds`` of this turn of the event loop.

    The others go on in the turns after it. What a caller does until it next waits for something counts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    async def wait(self) -> None:
        """Return in a turn of the event loop in which there is time."""
        while self._began is not None and time.monotonic() - self._began > self._seconds:
            await asyncio.sleep(0)
        if self._began is None:
            self._began = time.monotonic()
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._began = None
