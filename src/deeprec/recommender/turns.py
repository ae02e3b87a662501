"""Few at a time in one turn of the event loop, so that what becomes ready together does not keep it for long.

asyncio runs all that is ready before it looks at timers and sockets again. Where hundreds of requests arrive together,
or a batch of the TRM lets 64 go on at once, that is a tenth of a second and more in which nobody else is heard.
"""

from __future__ import annotations

import asyncio


class Turns:
    """Lets at most ``most`` go on in one turn of the event loop; the others in the turns after it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._gone = 0

    async def wait(self) -> None:
        """Return in a turn of the event loop in which there is room."""
        while self._gone >= self._most:
            await asyncio.sleep(0)
        if self._gone == 0:
            asyncio.get_running_loop().call_soon(self._next)
        self._gone += 1

    def _next(self) -> None:
        self._gone = 0
