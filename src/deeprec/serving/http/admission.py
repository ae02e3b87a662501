"""Who is being answered: how many requests at a time, and which of them came before a given moment.

Contract: ``enter`` admits a body or raises ``Overloaded`` at once, and waits for nothing; ``hold`` takes places for the
requests that the body turns out to have; ``leave`` gives all of its places back. What costs next to nothing (health,
metrics) is followed but takes no place. One value per server, used in its event loop only.
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
        on_shed: called for every body that found too few.
    """

    def __init__(self, serving: ServingConfig, on_shed: Callable[[], None] | None = None) -> None:
        self._most = serving.max_waiting
        self._on_shed = on_shed
        self._open: dict[int, int] = {}
        self._next = 0
        self.waiting = 0
        """Places that are taken."""
        self.accepted = 0
        """Bodies that were given a place since the start."""
        self.started = False
        """Whether the server has been ready once."""
        self.closing = False
        """Whether the server was told to stop: it answers, and is not ready."""

    def enter(self, counted: bool) -> int:
        """Admit a body and return its ticket; a ``counted`` one takes a place.

        Raises:
            Overloaded: there is no place left.
        """
        if counted:
            self._take(1)
        self._next += 1
        self._open[self._next] = int(counted)
        self.accepted += counted
        return self._next

    def hold(self, ticket: int, places: int) -> None:
        """Let a body that was admitted take ``places`` in all.

        Raises:
            Overloaded: there are too few left.
        """
        more = places - self._open[ticket]
        if more > 0:
            self._take(more)
            self._open[ticket] = places

    def leave(self, ticket: int) -> None:
        """Give the places of an answered body back."""
        self.waiting -= self._open.pop(ticket)

    async def settled(self) -> None:
        """Return when every body that was admitted before this call has been answered."""
        last = self._next
        while any(ticket <= last for ticket in self._open):
            await asyncio.sleep(_LOOK_SECONDS)

    def _take(self, places: int) -> None:
        if self.waiting + places > self._most:
            if self._on_shed is not None:
                self._on_shed()
            raise Overloaded(f"this server is answering {self.waiting} requests, of the {self._most} that it takes")
        self.waiting += places
