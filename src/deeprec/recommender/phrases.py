"""Text of requests, encoded in a thread of its own: no client's new phrases hold up the TRM or another client's.

Contract: ``encode`` returns at the latest after the seconds it was given, with the phrases whose vectors are there.
What is known costs nothing. Of the others one is encoded at a time, a client's after another's in turn, so that a
client waits for at most one phrase of each other client before each of its own. A client that has ``most`` phrases
waiting, or has taken more than ``share`` of the time lately, is not given more: they are left out at once. What nobody
waits for any more is not encoded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

from deeprec.types import FloatArray

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 5.0
"""How fast it fades what a client took: by a factor of e in so long."""
MOST_CLIENTS = 4096
NICE = 5
"""Between the server's and the policy's."""


class TextVectors(Protocol):
    """Port: vectors of texts, some of which are known. Implemented by ``trm.text.CachedEmbedder``."""

    def knows(self, text: str) -> bool:
        """Whether the text's vector is at hand; it is then kept for longer."""
        ...

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width) vectors; see ``types.Embedder``."""
        ...


class PhraseEncoder:
    """Encodes phrases for concurrent requests; callers may come from any event loop.

    Args:
        vectors: knows and makes vectors; asked to make them from one thread only.
        most: phrases of one client that may wait.
        share: of the thread's time, over some ``MEMORY_SECONDS``, that one client may take.
        clock: seconds.
    """

    def __init__(
        self, vectors: TextVectors, most: int, share: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.vectors = vectors
        self._most, self._share, self._clock = most, share, clock
        self._taken: dict[str, tuple[float, float]] = {}
        """Seconds that a client took, which fade, and when that was so."""
        self._turns: deque[str] = deque()
        """Clients that have something waiting, the next first."""
        self._waiting: dict[str, deque[tuple[str, Future[None]]]] = {}
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="phrases", daemon=True).start()

    async def encode(self, phrases: Sequence[str], client: str, seconds: float) -> tuple[str, ...]:
        """Those of the phrases whose vectors are there within ``seconds``, in order."""
        missing = [phrase for phrase in phrases if not self.vectors.knows(phrase)]
        if not missing:
            return tuple(phrases)
        asked = {phrase: future for phrase in missing if (future := self._put(phrase, client)) is not None}
        try:
            if asked:
                await asyncio.wait(list(map(asyncio.wrap_future, asked.values())), timeout=seconds)
            done = {phrase for phrase, future in asked.items() if _is_made(future)}
        finally:  # also where whoever asked has gone
            for future in asked.values():
                future.cancel()
        return tuple(phrase for phrase in phrases if phrase not in missing or phrase in done)

    def close(self) -> None:
        """Encode nothing more; what waits is left out."""
        with self._changed:
            self._closed = True
            for _, future in (pair for waiting in self._waiting.values() for pair in waiting):
                future.cancel()
            self._changed.notify()

    def _put(self, phrase: str, client: str) -> Future[None] | None:
        with self._changed:
            waiting = self._waiting.setdefault(client, deque())
            for pair in [pair for pair in waiting if pair[1].cancelled()]:
                waiting.remove(pair)
            if self._closed or len(waiting) >= self._most or self._took(client) > self._share * MEMORY_SECONDS:
                if not waiting:
                    del self._waiting[client]
                return None
            future: Future[None] = Future()
            waiting.append((phrase, future))
            if client not in self._turns:
                self._turns.append(client)
            self._changed.notify()
            return future

    def _took(self, client: str) -> float:
        """Seconds that encoding for this client took lately."""
        seconds, at = self._taken.get(client, (0.0, 0.0))
        return seconds * math.exp((at - self._clock()) / MEMORY_SECONDS)

    def _charge(self, client: str, seconds: float) -> None:
        with self._changed:
            self._taken[client] = self._took(client) + seconds, self._clock()
            if len(self._taken) > MOST_CLIENTS:
                del self._taken[next(iter(self._taken))]

    def _next(self) -> tuple[str, str, Future[None]] | None:
        """A client and its next phrase that somebody waits for, by turns; None when it is closed."""
        with self._changed:
            while not self._closed:
                while self._turns:
                    client = self._turns.popleft()
                    waiting = self._waiting.pop(client, deque())
                    while waiting:
                        phrase, future = waiting.popleft()
                        if future.set_running_or_notify_cancel():
                            if waiting:
                                self._waiting[client] = waiting
                                self._turns.append(client)
                            return client, phrase, future
                self._changed.wait()
        return None

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere a priority is that of the whole process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (found := self._next()) is not None:
            client, phrase, future = found
            began = self._clock()
            failure: Exception | None = None
            try:
                self.vectors.embed([phrase])
            except Exception as error:
                logger.warning("a phrase cannot be encoded: %s", error)
                failure = error
            self._charge(client, self._clock() - began)
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)


def _is_made(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
