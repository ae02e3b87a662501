"""The TRM behind a server of its own (``deeprec serve trm``), for a recommender that is given its address.

The same answers as from the TRM in this process: filters, exclusions, ``allow_seen`` and queries without a history
included. Two forms for its two callers: ``RemoteRetriever`` is awaited, and given up by cancelling it;
``BlockingRetriever`` is the loop's port, and has the loop's deadline. ``serving.max_deadline_ms`` bounds both.

Every answer names the bundle that gave it, and one of another bundle is refused (``OtherBundle``): items, scores and
preferences of different bundles do not compare. So while an update reaches one server before the other, the
recommender answers by popularity and says why; nothing is mixed, and nothing has to be restarted in order. A server
that is away costs the first request a moment, and those after it none, until it answers again.

Limits: histories hold catalogue items only. Both servers are taken to have the same ``serving.max_history``, ``max_k``,
``max_instances`` and ``max_body_bytes``; of an exclusion beyond that, fewer than k items may be left.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Self

from deeprec.client import AsyncClient, Client
from deeprec.client.exchange import ServerUnreachable
from deeprec.client.questions import TRM
from deeprec.config import ServingConfig
from deeprec.errors import ClientError, TrmError
from deeprec.types import JsonDict, Query, RetrievedItem

_AGAIN_SECONDS, _AWAY_SECONDS = 0.3, 2.0
"""How long a call is repeated; and how long it is not, after one that got no answer."""
_FRAME_BYTES = 64
"""Of a body, beside its requests."""


class OtherBundle(TrmError):
    """The TRM server has another bundle; the message may be shown to whoever asked."""


class RemoteRetriever:
    """The TRM at ``url``, awaited; one pool of connections for each event loop that uses it.

    Args:
        url: the TRM server's address.
        version: the bundle that has to answer.
        serving: limits.
    """

    def __init__(self, url: str, version: str, serving: ServingConfig) -> None:
        self._trm = _Trm(url, version, serving)
        self._connections = serving.max_waiting
        self._used: tuple[asyncio.AbstractEventLoop, AsyncClient] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def retrieve(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        """The best ``k`` items, best first.

        Raises:
            TrmError: the server cannot be asked, refuses, is late, or has another bundle.
        """
        seconds = self._trm.seconds(None)
        try:
            request, again = self._trm.request(query, k), self._trm.again()
            [answer] = await self._client().predict(TRM, [request], timeout=seconds, again=again)
        except ClientError as error:
            raise self._trm.failed(error) from error
        return self._trm.items(answer, query, k)

    def close(self) -> None:
        """Close the connections of the event loop that runs now; nothing is asked afterwards."""
        used, self._used = self._used, None
        if used is not None and used[0].is_running():
            self._closing = used[0].create_task(used[1].close())

    def _client(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        if self._used is None or self._used[0] is not loop:
            self._used = loop, AsyncClient(self._trm.url, connections=self._connections)
        return self._used[1]


class BlockingRetriever:
    """The TRM at ``url`` as the loop's ``Retriever``; queries of one call share a body. Arguments as above."""

    def __init__(self, url: str, version: str, serving: ServingConfig) -> None:
        self._trm = _Trm(url, version, serving)
        self._client = Client(url)
        self._deadline: float | None = None

    def until(self, deadline: float) -> Self:
        """The same, for work that is of no use after ``deadline`` (``time.monotonic`` seconds)."""
        bounded = copy.copy(self)
        bounded._deadline = deadline
        return bounded

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        """The best ``k`` items for each query; see ``types.Retriever``.

        Raises:
            TrmError: the server cannot be asked, refuses, is late, or has another bundle.
        """
        answers: list[Any] = []
        end = time.monotonic() + self._trm.seconds(self._deadline)
        for part in self._trm.parts([self._trm.request(query, k) for query in queries]):
            try:
                left = max(end - time.monotonic(), 0.001)
                answers += self._client.predict(TRM, part, timeout=left, again=self._trm.again())
            except ClientError as error:
                raise self._trm.failed(error) from error
        return [self._trm.items(answer, query, k) for answer, query in zip(answers, queries, strict=True)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Trm:
    """Queries as requests, and answers as items."""

    def __init__(self, url: str, version: str, serving: ServingConfig) -> None:
        self.url = url.rstrip("/")
        self._version, self._serving = version, serving
        self._away = -math.inf
        """When the server was last found to be away, in ``time.monotonic`` seconds."""

    def again(self) -> float:
        """Seconds for which a call may be sent again: a moment, and none while the server is known to be away."""
        return 0.0 if time.monotonic() - self._away < _AWAY_SECONDS else _AGAIN_SECONDS

    def seconds(self, deadline: float | None) -> float:
        """How long may be waited now."""
        left = math.inf if deadline is None else deadline - time.monotonic()
        return max(min(left, self._serving.max_deadline_ms / 1000), 0.001)

    def request(self, query: Query, k: int) -> JsonDict:
        """The query as the server takes it; what it would exclude by itself is not sent."""
        history, barred = self._told(query)
        most = self._serving.max_history
        return {
            "history": list(history),
            "preference": list(query.preference),
            "k": min(k + max(len(barred) - most, 0), max(k, self._serving.max_k)),
            "filters": [asdict(condition) for condition in query.filters],
            "exclude": barred[:most],
            "allow_seen": query.allow_seen,
        }

    def parts(self, requests: Sequence[JsonDict]) -> Iterator[list[JsonDict]]:
        """The requests in order, in as few bodies as the server's limits allow."""
        part: list[JsonDict] = []
        room = 0
        for request in requests:
            size = len(json.dumps(request)) + 1
            if part and (len(part) == self._serving.max_instances or size > room):
                yield part
                part = []
            room = (room if part else self._serving.max_body_bytes - _FRAME_BYTES) - size
            part.append(request)
        if part:
            yield part

    def items(self, answer: Any, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        """The answer's items, if it is the TRM's, of the right bundle.

        Raises:
            TrmError: it is not.
        """
        try:
            version, path = str(answer["bundle"]), answer["path"]
            found = [RetrievedItem(str(item["id"]), float(item["score"])) for item in answer["items"]]
        except (KeyError, TypeError, ValueError) as error:
            raise TrmError(f"the TRM at {self.url} answered with something else than items: {error!r}") from error
        if version != self._version:
            raise OtherBundle(
                f"the TRM server has bundle {version} and this recommender {self._version}, and parts of different "
                f"bundles are not used together"
            )
        if path != "trm" and (query.history or query.preference):
            raise TrmError(f"the TRM at {self.url} answered by {path}: {answer.get('reason')}")
        unsent = set(self._told(query)[1][self._serving.max_history :])
        return tuple(item for item in found if item.item_id not in unsent)[:k]

    def failed(self, error: ClientError) -> TrmError:
        """The error for a server that cannot be asked, or refuses."""
        if isinstance(error, ServerUnreachable):
            self._away = time.monotonic()
        return TrmError(f"the TRM cannot be asked: {error}")

    def _told(self, query: Query) -> tuple[tuple[str, ...], list[str]]:
        """The newest items of the history, as many as are taken, and further items that must not be answered."""
        newest = query.history[-self._serving.max_history :]
        barred = set(query.exclude)
        if not query.allow_seen:
            barred = (barred | set(query.history)) - set(newest)
        return newest, sorted(barred)
