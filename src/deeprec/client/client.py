"""The two clients: what is asked and how a call goes on is the same for both; only the sending and the waiting differ.

A call, retries included, takes ``timeout`` seconds at most, and no longer than the deadline in its question where it
names one; of events each body does. Limits: it is each wait on the network that is bounded, so an answer that trickles
in can take longer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx

from deeprec.client import questions
from deeprec.client.exchange import Call, Exchange, Reply, Send, is_here, unreachable
from deeprec.client.stream import Step, StepReader
from deeprec.errors import ClientError
from deeprec.retrying import keep_asking, keep_asking_async
from deeprec.types import JsonDict
from deeprec.wire.events import Event, Stored
from deeprec.wire.questions import RecommendQuestion, TrmOnlyQuestion
from deeprec.wire.recommendation import Recommendation

Answer = TypeVar("Answer")
Connections = TypeVar("Connections", httpx.Client, httpx.AsyncClient)

TIMEOUT, CONNECT_SECONDS = 10.0, 5.0
CONNECTIONS = 100
"""Of an ``AsyncClient`` at a time."""
IDLE_SECONDS = 30.0
"""Seconds after which an idle connection is closed: sooner than the servers close theirs."""


class _Server:
    """A server's address and name, and the longest that a call of it may take, seconds."""

    def __init__(self, url: str, timeout: float, name: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ClientError(f"{url!r} is no address of a server; name one such as http://recommender:8080")
        self.url = url.rstrip("/")
        self.timeout, self.name = timeout, name

    def _exchange(self, call: Call[Answer]) -> Exchange[Answer]:
        return Exchange(call, self.url, self.timeout)

    def _request(self, http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
        timeout = httpx.Timeout(step.timeout, connect=min(step.timeout, CONNECT_SECONDS))
        return http.build_request(step.method, f"{self.url}{step.path}", content=step.content, timeout=timeout)

    def _broken(self, error: httpx.TransportError) -> ClientError:
        return unreachable(error, f"{self.url}{questions.EXPLORE}", self.timeout)

    def _connections(self, kind: type[Connections], most: int | None, headers: Mapping[str, str] | None) -> Connections:
        """At most so many; by the environment's proxies, unless the server is on this machine."""
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=IDLE_SECONDS)
        told = {"Content-Type": "application/json", **(headers or {})}
        try:
            return kind(limits=limits, headers=told, trust_env=not is_here(self.url))
        except (ImportError, ValueError) as error:
            raise ClientError(
                f"the environment's proxy cannot be used ({error}); correct HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, add "
                f"the server's host to NO_PROXY, or, for a SOCKS proxy, install httpx[socks]"
            ) from error


class Client(_Server):
    """Calls that block. Safe to use from several threads; a context manager, else ended with ``close``.

    There are as many connections as calls at a time, and no bound to them: with one, a thread that needs a connection
    may close another's while that waits for its answer (encode/httpcore#1110).

    Args:
        url: the server's address, such as ``http://recommender:8080``.
        timeout: seconds that a call may take, retries included.
        headers: sent with every request, such as ``Authorization``, or the ``Host`` that an ingress routes by.
        name: of the recommender, where its ``serving.name`` is another; its TRM's is ``NAME-trm``.

    Every method raises ``ClientError``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        headers: Mapping[str, str] | None = None,
        name: str = questions.NAME,
    ) -> None:
        super().__init__(url, timeout, name)
        self._http = self._connections(httpx.Client, None, headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def recommend(self, **question: Unpack[RecommendQuestion]) -> Recommendation:
        """The recommender's answer; see ``RecommendQuestion``."""
        return self._run(questions.recommend(question, self.name))

    def retrieve(self, **question: Unpack[TrmOnlyQuestion]) -> Recommendation:
        """The TRM's answer, without the policy; see ``TrmOnlyQuestion``."""
        return self._run(questions.retrieve(question, self.name))

    def explore(self, **question: Unpack[RecommendQuestion]) -> Iterator[Step]:
        """The recommender's answer step by step, as the policy explores; the last step has the recommendation."""
        reply = self._run(questions.explore(question))
        reader = StepReader(reply)
        try:
            for line in reply.iter_lines():
                step = reader.read(line)
                if step is not None:
                    yield step
        except httpx.TransportError as error:
            raise self._broken(error) from error
        finally:
            reply.close()
        reader.finish()

    def send(self, events: Iterable[Event | Mapping[str, Any]]) -> Stored:
        """Store interactions, so that the next recommendation knows them. RequestRefused where none is accepted.

        Any number: they go in bodies of ``MAX_EVENTS``, one after the other, each within the client's timeout. Where
        one fails, those before are stored; sending all again counts them once.
        """
        delivery = questions.Delivery(events, self.url)
        for call in delivery.calls():
            self._run(call)
        return delivery.stored()

    def ready(self, model: str | None = None) -> bool:
        """Whether the server answers for a model now, the recommender unless named; False too where nobody does."""
        return questions.is_ready(self._send(questions.ready(model or self.name, self.timeout)))

    def predict(self, model: str, instances: Sequence[JsonDict], *, timeout: float | None = None) -> list[JsonDict]:
        """Any model's answers to requests of JSON, sent in one body: KServe's V1 protocol as it is."""
        return self._run(questions.predict(model, instances, timeout))

    def _run(self, call: Call[Answer]) -> Answer:
        exchange = self._exchange(call)
        return keep_asking(lambda: exchange.answer(self._send(exchange.request())), exchange.seconds)

    def _send(self, step: Send) -> Reply:
        try:
            reply = self._http.send(self._request(self._http, step), stream=step.stream)
            if step.stream and not reply.is_success:
                reply.read()
        except httpx.TransportError as error:
            return error
        return reply


class AsyncClient(_Server):
    """``Client`` for an event loop: the same calls, awaited. It belongs to the loop in which it is first used.

    ``connections`` are open at a time at most; further calls wait for one. Other arguments as above.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        connections: int = CONNECTIONS,
        headers: Mapping[str, str] | None = None,
        name: str = questions.NAME,
    ) -> None:
        super().__init__(url, timeout, name)
        self._http = self._connections(httpx.AsyncClient, connections, headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def recommend(self, **question: Unpack[RecommendQuestion]) -> Recommendation:
        """See ``Client.recommend``."""
        return await self._run(questions.recommend(question, self.name))

    async def retrieve(self, **question: Unpack[TrmOnlyQuestion]) -> Recommendation:
        """See ``Client.retrieve``."""
        return await self._run(questions.retrieve(question, self.name))

    async def explore(self, **question: Unpack[RecommendQuestion]) -> AsyncIterator[Step]:
        """See ``Client.explore``."""
        reply = await self._run(questions.explore(question))
        reader = StepReader(reply)
        try:
            async for line in reply.aiter_lines():
                step = reader.read(line)
                if step is not None:
                    yield step
        except httpx.TransportError as error:
            raise self._broken(error) from error
        finally:
            await reply.aclose()
        reader.finish()

    async def send(self, events: Iterable[Event | Mapping[str, Any]]) -> Stored:
        """See ``Client.send``."""
        delivery = questions.Delivery(events, self.url)
        for call in delivery.calls():
            await self._run(call)
        return delivery.stored()

    async def ready(self, model: str | None = None) -> bool:
        """See ``Client.ready``."""
        return questions.is_ready(await self._send(questions.ready(model or self.name, self.timeout)))

    async def predict(
        self, model: str, instances: Sequence[JsonDict], *, timeout: float | None = None
    ) -> list[JsonDict]:
        """See ``Client.predict``."""
        return await self._run(questions.predict(model, instances, timeout))

    async def _run(self, call: Call[Answer]) -> Answer:
        exchange = self._exchange(call)

        async def attempt() -> Answer:
            return exchange.answer(await self._send(exchange.request()))

        return await keep_asking_async(attempt, exchange.seconds)

    async def _send(self, step: Send) -> Reply:
        try:
            reply = await self._http.send(self._request(self._http, step), stream=step.stream)
            if step.stream and not reply.is_success:
                await reply.aread()
        except httpx.TransportError as error:
            return error
        return reply
