"""Text of requests, encoded apart: no client's new phrases hold up the models or another client's.

Contract: ``encode`` returns at the latest after the seconds it was given, with the phrases whose vectors are there.
What is known costs nothing. Of the others one is encoded at a time, in a process of its own (``worker.encoder``), of
the client that has had the least of the encoder's time lately; so a client waits for at most one phrase that has begun,
however many another has waiting. What a request will not get in its time, and what a client asks beyond ``share`` of
the encoder's time while others use it too, is left out at once. What nobody waits for any more is not encoded.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

MEMORY_SECONDS = 5.0
"""How fast it fades what a client took: by a factor of e in so long."""
MOST_CLIENTS = 4096
_NOTHING = 0.001
"""Seconds of the encoder's time that do not count as use."""
_FIRST_GUESS = 0.0005
"""Seconds that a character takes, before any was encoded."""
_NEWEST = 0.1
"""Weight of the newest text in what a character takes."""


class KnownTexts(Protocol):
    """Port: which texts have vectors at hand. Implemented by ``trm.text.CachedEmbedder``."""

    def knows(self, text: str) -> bool:
        """Whether the text's vector is at hand; it is then kept for longer."""
        ...


class TextEncoder(Protocol):
    """Port: makes a text's vector known. Implemented by ``worker.encoder.EncoderProcess``."""

    @property
    def available(self) -> bool:
        """Whether it can be asked now."""
        ...

    @property
    def restarts(self) -> int:
        """How often what encodes had to be started again."""
        ...

    def encode(self, text: str) -> Future[float]:
        """Returns at once; the result, once the vector is known, is the seconds of a core that it took."""
        ...

    async def loaded(self, timeout: float) -> None:
        """Wait until it has loaded.

        Raises:
            DeepRecError: it could not, or not within ``timeout`` seconds.
        """
        ...

    def close(self) -> None:
        """Encode nothing more, and end what waits; returns at once."""
        ...


@dataclass(eq=False)
class _Asked:
    """Phrases that a request waits for; ``done`` ends with the last of them, or is cancelled."""

    left: deque[str]
    made: set[str] = field(default_factory=set)
    done: Future[None] = field(default_factory=Future)


class PhraseEncoder:
    """Encodes phrases for concurrent requests; callers may come from any event loop.

    Args:
        known: which texts need no encoding.
        encoder: encodes the others.
        share: of the encoder's time, over some ``MEMORY_SECONDS``, that one client may take while others use it too.
        clock: seconds.
    """

    def __init__(
        self,
        known: KnownTexts,
        encoder: TextEncoder,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known, self.encoder, self._share, self._clock = known, encoder, share, clock
        self._taken: dict[str, tuple[float, float]] = {}
        """Seconds of a core that a client took, which fade, and when that was so."""
        self._by_all = (0.0, 0.0)
        """The same of all clients."""
        self._waiting: dict[str, deque[_Asked]] = {}
        self._busy = self._closed = False
        self._character = _FIRST_GUESS
        self._lock = threading.RLock()

    async def loaded(self, timeout: float) -> None:
        """Wait until the encoder has loaded.

        Raises:
            DeepRecError: it could not, or not within ``timeout`` seconds.
        """
        await self.encoder.loaded(timeout)

    def knows(self, phrases: Sequence[str]) -> bool:
        """Whether none of the phrases needs the encoder."""
        return all(map(self._known.knows, phrases))

    @property
    def waiting(self) -> int:
        """Requests whose new phrases wait to be encoded."""
        return sum(map(len, list(self._waiting.values())))

    async def encode(self, phrases: Sequence[str], client: str, seconds: float) -> tuple[str, ...]:
        """Those of the phrases whose vectors are there within ``seconds``, in order."""
        missing = [phrase for phrase in phrases if not self._known.knows(phrase)]
        if not missing:
            return tuple(phrases)
        asked = self._ask(missing, client, seconds)
        made: set[str] = set()
        if asked is not None:
            try:
                await asyncio.wait([asyncio.wrap_future(asked.done)], timeout=seconds)
            finally:  # also where whoever asked has gone
                asked.done.cancel()
            made = asked.made
        return tuple(phrase for phrase in phrases if phrase not in missing or phrase in made)

    def close(self) -> None:
        """Encode nothing more; what waits is left out."""
        with self._lock:
            self._closed = True
        self._leave_out()
        self.encoder.close()

    # ------------------------------------------------------------------------------------------------- what is taken

    def _ask(self, missing: Sequence[str], client: str, seconds: float) -> _Asked | None:
        """Let as many of the phrases wait as there is time for; None for none."""
        with self._lock:
            if self._closed or not self.encoder.available:
                return None
            waiting = deque(asked for asked in self._waiting.get(client, ()) if not asked.done.done())
            before = sum(self._cost(phrase) for asked in waiting for phrase in asked.left)
            room = min(seconds, self._allowed(client)) - before
            taken: deque[str] = deque()
            for phrase in missing:
                if room <= 0:
                    break
                room -= self._cost(phrase)
                taken.append(phrase)
            if not taken:
                return None
            asked = _Asked(taken)
            waiting.append(asked)
            self._waiting[client] = waiting
        self._go_on()
        return asked

    def _cost(self, phrase: str) -> float:
        """What encoding it is expected to take, in seconds of a core."""
        return self._character * max(len(phrase), 1)

    def _allowed(self, client: str) -> float:
        """Seconds of the encoder's time that are left to the client."""
        took = self._took(client)
        alone = self._faded(self._by_all) - took < _NOTHING
        return math.inf if alone else self._share * MEMORY_SECONDS - took

    def _took(self, client: str) -> float:
        """Seconds that encoding for this client took lately."""
        return self._faded(self._taken.get(client, (0.0, 0.0)))

    def _faded(self, taken: tuple[float, float]) -> float:
        seconds, at = taken
        return seconds * math.exp((at - self._clock()) / MEMORY_SECONDS)

    def _charge(self, client: str, seconds: float) -> None:
        now = self._clock()
        self._taken[client] = self._took(client) + seconds, now
        self._by_all = self._faded(self._by_all) + seconds, now
        if len(self._taken) > MOST_CLIENTS:
            most = sorted(self._taken, key=self._took, reverse=True)[: MOST_CLIENTS // 2]
            self._taken = {one: self._taken[one] for one in most}

    # ------------------------------------------------------------------------------------------------ what is encoded

    def _go_on(self) -> None:
        """Have the next phrase encoded, unless one is being."""
        with self._lock:
            found = None if self._busy else self._next()
            if found is None:
                return
            self._busy = True
            client, phrase, asked = found
            cost = self._cost(phrase)
            self._charge(client, cost)
        encoding = self.encoder.encode(phrase)
        encoding.add_done_callback(lambda done: self._on_done(done, client, phrase, asked, cost))

    def _next(self) -> tuple[str, str, _Asked] | None:
        """A phrase that somebody waits for, of the client that has taken the least; None for none."""
        while self._waiting:
            client = min(self._waiting, key=self._took)
            waiting = self._waiting[client]
            while waiting:
                asked = waiting[0]
                while asked.left and not asked.done.done():
                    phrase = asked.left.popleft()
                    if not self._known.knows(phrase):
                        return client, phrase, asked
                    self._made(asked, phrase)
                waiting.popleft()
            del self._waiting[client]
        return None

    def _on_done(self, encoding: Future[float], client: str, phrase: str, asked: _Asked, cost: float) -> None:
        made = encoding.exception() is None
        with self._lock:
            self._busy = False
            if made:
                seconds = encoding.result()
                self._charge(client, seconds - cost)
                self._character += _NEWEST * (seconds / max(len(phrase), 1) - self._character)
            self._made(asked, phrase if made else None)
        if self.encoder.available:
            self._go_on()
        else:
            self._leave_out()

    def _made(self, asked: _Asked, phrase: str | None) -> None:
        """A phrase that was asked for is there, or will not be."""
        if phrase is not None:
            asked.made.add(phrase)
        if not asked.left and not asked.done.done() and asked.done.set_running_or_notify_cancel():
            asked.done.set_result(None)

    def _leave_out(self) -> None:
        """What waits is not waited for any longer."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for asked in (asked for several in waiting.values() for asked in several):
            asked.done.cancel()
