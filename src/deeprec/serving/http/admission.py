"""Who is being answered: how many requests at a time, and which of them came before a given moment.

Contract: ``enter`` admits a request or raises ``Overloaded`` at once, and waits for nothing; ``leave`` gives its place
back. Requests that cost next to nothing (health, metrics) are followed but take no place. One value per server, used
in its event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deeprec.config import ServingConfig
from deeprec.recommender.batching import Overloaded

_LOOK_SECONDS = 0.02


class Admission:
    """The places of one server.

    Args:
        serving: ``max_waiting`` places.
        on_shed: called for every request that found none.
    """

    def __init__(self, serving: ServingConfig, on_shed: Callable[[], None] | None = None) -> None:
        self._most = serving.max_waiting
        self._on_shed = on_shed
        self._open: dict[int, bool] = {}
        self._next = 0
        self.waiting = 0
        """Requests that hold a place."""
        self.accepted = 0
        """Requests that were given a place since the start."""
        self.closing = False
        """Whether the server was told to stop: it answers, and is not ready."""

    def enter(self, counted: bool) -> int:
        """Admit a request and return its ticket; a ``counted`` one takes a place.

        Raises:
            Overloaded: there is no place left.
        """
        if counted and self.waiting >= self._most:
            if self._on_shed is not None:
                self._on_shed()
            raise Overloaded(f"this server is answering {self.waiting} requests, as many as it takes")
        self._next += 1
        self._open[self._next] = counted
        self.waiting += counted
        self.accepted += counted
        return self._next

    def leave(self, ticket: int) -> None:
        """Give the place of an answered request back."""
        self.waiting -= self._open.pop(ticket)

    async def settled(self) -> None:
        """Return when every request that was admitted before this call has been answered."""
        last = self._next
        while any(ticket <= last for ticket in self._open):
            await asyncio.sleep(_LOOK_SECONDS)
