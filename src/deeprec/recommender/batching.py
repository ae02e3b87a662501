"""Requests that arrive together share one call: while a batch runs in its thread, the next gathers.

Nothing waits for company: a request that finds the thread idle is a batch of one. Callers may come from any event
loop. A caller that stops waiting before its batch begins is left out of it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from deeprec.errors import DeepRecError
from deeprec.recommender.turns import Turns
from deeprec.types import Query, RetrievedItem, Retriever

MOST_WAITING = 4096
"""Asked and not begun, those included whose callers have gone; beyond, a stuck model would fill the memory."""

TURN_SECONDS = 0.004
"""Of one turn of the event loop, for callers of a batch that go on and make their answers."""

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Overloaded(DeepRecError):
    """What is asked cannot take more."""


class AsyncRetriever(Protocol):
    """Port: retrieval as the recommender asks for it. Implemented by ``Batcher``."""

    async def retrieve(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        """The best ``k`` items, best first; see ``types.Retriever``."""
        ...

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at what it is at; 0 for nothing."""
        ...

    @property
    def waiting(self) -> int:
        """What was asked and has not begun."""
        ...

    def close(self) -> None:
        """Give back what is held; nothing is asked afterwards."""
        ...


class MicroBatcher(Generic[Ask, Answer]):
    """One function of many, called by many for one each.

    Args:
        work: answers several at once, in their order; called from one thread.
        most: asked at once at most.
        name: the thread's.
        alone: ask again one by one when a batch fails, so that one that fails does not spoil the others' answers.
    """

    def __init__(
        self, work: Callable[[Sequence[Ask]], Sequence[Answer]], most: int, name: str, *, alone: bool = True
    ) -> None:
        self._work, self._most, self._alone = work, most, alone
        self._waiting: queue.SimpleQueue[tuple[Ask, Future[Answer]] | None] = queue.SimpleQueue()
        self._closed, self._lock = False, threading.Lock()
        self._began: float | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at the batch that it is at; 0 for none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def waiting(self) -> int:
        """What was asked and has not begun, those included whose callers have gone."""
        return self._waiting.qsize()

    async def ask(self, one: Ask) -> Answer:
        """This one's answer.

        Raises:
            Overloaded: it is closed, or too much waits.
            Exception: what ``work`` raises.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise Overloaded("it was shut down")
            if self._waiting.qsize() >= MOST_WAITING:
                raise Overloaded(f"{MOST_WAITING} requests wait")
            self._waiting.put((one, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)

    def _run(self) -> None:
        while (batch := self._gather())[-1] is not None:
            self._answer([pair for pair in batch if pair is not None])
        self._answer([pair for pair in batch if pair is not None])

    def _gather(self) -> list[tuple[Ask, Future[Answer]] | None]:
        """What waits, at least one; it ends with None when nothing comes after it."""
        batch = [self._waiting.get()]
        with suppress(queue.Empty):
            while batch[-1] is not None and len(batch) < self._most:
                batch.append(self._waiting.get_nowait())
        return batch

    def _answer(self, gathered: Sequence[tuple[Ask, Future[Answer]]]) -> None:
        batch = [(one, future) for one, future in gathered if future.set_running_or_notify_cancel()]
        self._began = time.monotonic()
        if batch and not self._served(batch, last=not self._alone):
            for pair in batch:
                self._served([pair], last=True)
        self._began = None

    def _served(self, batch: Sequence[tuple[Ask, Future[Answer]]], *, last: bool) -> bool:
        """Whether the callers have been told: not when a batch fails that is to be tried again."""
        try:
            answers = list(zip(batch, self._work([one for one, _ in batch]), strict=True))
        except Exception as error:
            if len(batch) > 1 and not last:
                return False
            for _, future in batch:
                future.set_exception(error)
            return True
        for (_, future), answer in answers:
            future.set_result(answer)
        return True


class Batcher:
    """A retriever for concurrent callers. Those of a batch share one ``retrieve`` for the largest k among them."""

    def __init__(self, retriever: Retriever, most: int) -> None:
        self._retriever = retriever
        self._calls: MicroBatcher[tuple[Query, int], tuple[RetrievedItem, ...]] = MicroBatcher(self._all, most, "trm")
        self._turns = Turns(TURN_SECONDS)

    async def retrieve(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        """The best ``k`` items, best first; see ``types.Retriever``, whose errors it raises."""
        found = await self._calls.ask((query, k))
        await self._turns.wait()
        return found

    @property
    def busy_seconds(self) -> float:
        """See ``MicroBatcher``."""
        return self._calls.busy_seconds

    @property
    def waiting(self) -> int:
        """See ``MicroBatcher``."""
        return self._calls.waiting

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._calls.close()

    def _all(self, asked: Sequence[tuple[Query, int]]) -> list[tuple[RetrievedItem, ...]]:
        found = self._retriever.retrieve([query for query, _ in asked], max(k for _, k in asked))
        return [items[:k] for items, (_, k) in zip(found, asked, strict=True)]
