"""What answers without the policy: the TRM, and popularity where there is nothing to ask it or it does not answer.

Contract: nothing here fails for what a model does, and everything obeys the query's exclusions and filters. Models and
masks over the catalogue are computed in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import DeepRecError, RequestError, TrmError
from deeprec.recommender.batching import AsyncRetriever
from deeprec.recommender.deadline import RequestClock
from deeprec.recommender.outcome import Answer, Permitted, Recommended
from deeprec.trm.filters import filter_mask, read_columns
from deeprec.types import Catalogue, Filter, Query
from deeprec.wire.reason import Reason, ReasonKind

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_FAILED = Reason(kind=ReasonKind.TRM_FAILED, sentence="the TRM failed")


class Fallback:
    """The TRM and the order by popularity, (items,) training counts in catalogue order."""

    def __init__(self, catalogue: Catalogue, popularity: NDArray[np.int64], retriever: AsyncRetriever) -> None:
        self._catalogue, self._retriever = catalogue, retriever
        self._order = np.argsort(-popularity, kind="stable")
        self._scores = np.log1p(popularity) / np.log1p(max(int(popularity.max(initial=0)), 1))
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="catalogue")

    def close(self) -> None:
        """Let running work end and start none."""
        self._retriever.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def busy_seconds(self) -> float:
        """For how long the TRM has been at the batch that it is at; 0 for none."""
        return self._retriever.busy_seconds

    @property
    def waiting(self) -> int:
        """What the TRM was asked and has not begun."""
        return self._retriever.waiting

    async def mask(self, conditions: Sequence[Filter], clock: RequestClock) -> NDArray[np.bool_] | None:
        """(items,) whether an item satisfies all filters; None for no filter.

        Raises:
            RequestError: no item has the column, or an order is asked of something that is no number.
            TimeoutError: it is not there by the deadline.
        """
        if not conditions:
            return None
        try:
            async with asyncio.timeout(clock.left):
                return await self._in_thread(partial(self._mask, conditions))
        except TrmError as error:
            raise RequestError(f"filters: {error}") from error

    async def ready(self) -> None:
        """Read every column that a filter may name, so that no request waits for that."""
        await self._in_thread(partial(read_columns, self._catalogue))

    async def answer(self, query: Query, permitted: Permitted, k: int, reason: Reason | None) -> Answer:
        """The TRM's answer, with ``reason`` for its not being the policy's; popularity's whatever the TRM raises."""
        if not query.history and not query.preference:
            return self._popular(permitted, k, reason)
        try:
            found = await self._retriever.retrieve(query, k)
        except DeepRecError as error:
            logger.warning("the TRM failed: %s", error)
            return self._popular(permitted, k, _but(_FAILED, reason))
        except Exception:
            logger.exception("the TRM failed")
            return self._popular(permitted, k, _but(_FAILED, reason))
        preference = "; ".join(query.preference) or None
        items = (Recommended(item.item_id, item.score, 0, preference) for item in found)
        return Answer(permitted.first(items, k), "trm", reason)

    async def in_time(
        self, asked: asyncio.Task[Answer], permitted: Permitted, k: int, clock: RequestClock, note: Reason | None = None
    ) -> Answer:
        """What ``answer`` gives where it is there by the deadline, else popularity's, with ``note`` in its reason."""
        await asyncio.wait({asked}, timeout=clock.left)
        return asked.result() if asked.done() else self._late(permitted, k, clock, note)

    async def within(
        self, asking: Awaitable[Answer], permitted: Permitted, k: int, clock: RequestClock, note: Reason | None
    ) -> Answer:
        """As ``in_time``, for what nobody else waits for: it needs no task, and is cancelled at the deadline."""
        try:
            async with asyncio.timeout(clock.left):
                return await asking
        except TimeoutError:
            return self._late(permitted, k, clock, note)

    def _late(self, permitted: Permitted, k: int, clock: RequestClock, note: Reason | None) -> Answer:
        late = f"the TRM failed to answer within {clock.deadline_ms} ms"
        return self._popular(permitted, k, _but(Reason(kind=ReasonKind.TRM_FAILED, sentence=late), note))

    def _popular(self, permitted: Permitted, k: int, reason: Reason | None) -> Answer:
        rows, mask = self._order, permitted.mask
        if mask is not None:
            rows = rows[mask[rows]]
        items = (Recommended(self._catalogue.items[row].item_id, float(self._scores[row])) for row in rows)
        return Answer(permitted.first(items, k), "popularity", reason)

    def _mask(self, conditions: Sequence[Filter]) -> NDArray[np.bool_]:
        """(items,) whether an item satisfies all conditions."""
        mask = np.ones(len(self._catalogue), dtype=bool)
        for condition in conditions:
            mask &= filter_mask(self._catalogue, condition)
        return mask

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _but(reason: Reason, note: Reason | None) -> Reason:
    """The reason; where the feature store had failed before, its sentence says that too."""
    if note is None or note.kind is not ReasonKind.STORE_FAILED:
        return reason
    return Reason(kind=note.kind, sentence=f"{note}; {reason}")
