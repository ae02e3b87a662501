"""The door of the HTTP server: admits, bounds and checks requests before KServe reads them, and turns errors into JSON.

Every error is ``{"error": sentence}``: a 4xx for what the client can mend, a 429 with Retry-After when too few places
are left (``http.admission``; each of a body's requests takes one), a 500 without detail for what the client cannot
mend; a stack trace goes to the log only. A body must be whole within ``BODY_SECONDS`` and an answer be taken within
``SEND_SECONDS``, so that no slow client keeps a place; what is asked by a client that has gone is given up. KServe's
calls that load and unload models, explain, or name versions are closed, and headers that would switch it to
CloudEvents are dropped. The binary tensors of V2 become JSON here (``http.tensors``). Plain ASGI: nothing of KServe is
imported.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.recommender.batching import Overloaded
from deeprec.recommender.deadline import arriving
from deeprec.recommender.turns import Turns
from deeprec.serving.http.address import is_loopback
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.body import decode_json, places_of
from deeprec.serving.http.tensors import LENGTH, joined
from deeprec.serving.logs import REQUEST_ID, identified
from deeprec.types import JsonDict

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Count = Callable[[str, int, float], None]
"""Told of every request: its route as declared, its status, its seconds."""

TURN_SECONDS = 0.004
"""Of one turn of the event loop, for requests to begin."""
BODY_SECONDS = 5.0
"""After this a body that is not whole is given up."""
SEND_SECONDS = 10.0
"""After this a client that does not read its answer is given up."""
LOOK_SECONDS = 0.1
"""What is answered sooner is answered, whether or not the client is still there."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read and thrown away, so that the client comes to read the answer."""
GONE = 499
"""Status that a request is counted with whose client went away before its answer, as nginx names it."""

_DROPPED = (b"ce-", LENGTH.encode(), b"content-type")
_FREE = re.compile(r"/(metrics|openapi\.json|v1/models(/[^/]*)?|v2(/health/\w+|/models(/[^/]+(/ready)?)?)?)?")
FAILED = "the server failed on this request; its log says why"
_BY_ADDRESS = re.compile(r"/v2/health/\w+|/metrics")
"""What a kubelet and Prometheus ask of a pod, which they call by its address."""
_READINESS = re.compile(r"/v2/health/ready|/v1/models/[^/:]+|/v2/models/[^/]+/ready")
_MODEL = re.compile(r"^(/v[12]/models/)[^/:]+")
_ASKED = ("/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer", "/v1/events", "/v1/explore")
"""Routes of what may be refused before it comes to its own."""
_CLOSED = {
    re.compile(r"/v2/repository(/[\s\S]*)?"): "this server's models are loaded when it starts and cannot be changed",
    re.compile(r"/v2/models/[^/]+/versions(/[\s\S]*)?"): "a model has one version here; leave out /versions/…",
    re.compile(r"/v1/models/[^/]+:explain"): 'there is no explainer; send :predict with "explain": true',
}


class Refused(Exception):
    """A request that goes no further: the status, the sentence, and headers of the answer.

    ``unread`` says that its body was not read to the end, so that its connection cannot be used again.
    """

    def __init__(self, status: int, sentence: str, *, unread: bool = False, headers: Iterable[Header] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.unread = unread
        self.headers = tuple(headers)


class Abandoned(Exception):
    """The client does not read its answer."""


class Guard:
    """ASGI middleware; ``max_body_bytes`` of ``serving`` bounds a request's body. A request's time counts from here."""

    def __init__(self, app: App, serving: ServingConfig, admission: Admission, count: Count | None = None) -> None:
        self._app = app
        self._most = serving.max_body_bytes
        self._together = serving.most_instances
        self._retry_after = str(serving.retry_after).encode()
        self._admission = admission
        self._count = count
        self._client_header = serving.client_header.lower().encode()
        self._hosts = _hosts(serving)
        self._turns = Turns(TURN_SECONDS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        entered = self._enter(scope)
        try:
            if not _is_free(scope):
                await self._turns.wait()
            await self._begun(scope, receive, send, began, entered)
        finally:
            if isinstance(entered, int):
                self._admission.leave(entered)

    async def _begun(self, scope: Message, receive: Receive, send: Send, began: float, entered: int | str) -> None:
        with (
            identified(_header(scope, REQUEST_ID.encode())) as name,
            arriving(began, self._client(scope), name),
        ):
            answer = _Answer(send, self._admission, name)
            try:
                await self._answer(scope, receive, answer, entered)
            except Abandoned:
                answer.status = answer.status or GONE
            finally:
                if self._count is not None:
                    self._count(_route(scope), answer.status or 500, time.monotonic() - began)

    async def _answer(self, scope: Message, receive: Receive, answer: _Answer, entered: int | str) -> None:
        """The edge of the server: whatever is raised behind it is logged here, and a client reads a sentence."""
        try:
            self._check(scope)
            if isinstance(entered, str):
                raise self._full(entered, unread=not 0 <= _declared(scope) <= self._most)
            await self._pass_on(scope, receive, answer, entered)
        except Refused as refused:
            await _refuse(answer, receive, refused)
        except RequestError as error:
            await send_error(answer, error.status, str(error))
        except Abandoned:
            raise
        except Exception:
            if answer.ended:  # and told, by whoever answered
                return
            logger.exception("a request failed")
            if answer.begun:
                raise
            await send_error(answer, 500, FAILED)

    async def _pass_on(self, scope: Message, receive: Receive, answer: _Answer, ticket: int) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, answer)
            return
        body, places = await self._body(scope, receive)
        try:
            self._admission.hold(ticket, min(places, self._together))
        except Overloaded as full:
            raise self._full(str(full), unread=False) from None
        passed_on = _as_json(scope)
        try:
            await _while_there(self._app(passed_on, _replay(body, receive), answer), receive)
        finally:
            scope["route"] = passed_on.get("route")

    def _client(self, scope: Message) -> str:
        """Who asks: what ``serving.client_header`` says where it is named and sent, else the peer's address."""
        named = _header(scope, self._client_header)[:200] if self._client_header else ""
        return named or str((scope.get("client") or ("",))[0])

    def _check(self, scope: Message) -> None:
        path = scope["path"]
        host = _header(scope, b"host")
        if host and self._hosts and not _is_one_of(host, self._hosts) and not _BY_ADDRESS.fullmatch(path):
            sentence = "this server does not answer to that name (Host); serving.hosts lists those it answers to"
            raise Refused(421, sentence, unread=True)
        if self._admission.closing and scope["method"] == "GET" and _READINESS.fullmatch(path):
            raise Refused(503, "the server is shutting down")
        for closed, sentence in _CLOSED.items():
            if closed.fullmatch(path):
                raise Refused(404, sentence, unread=True)
        if b"model_version" in scope.get("query_string", b"") and path.startswith("/v2/models/"):
            raise Refused(404, "a model has one version here; leave out model_version", unread=True)

    def _enter(self, scope: Message) -> int | str:
        """A ticket, or a sentence why there is none: also who has no place is answered in a turn of the event loop.

        The error itself is not kept: it knows its frames, and they it, which only a full collection takes apart.
        """
        try:
            return self._admission.enter(not _is_free(scope))
        except Overloaded as full:
            return str(full)

    def _full(self, full: str, *, unread: bool) -> Refused:
        sentence = f"{full}; try again in {self._retry_after.decode()} s"
        return Refused(429, sentence, unread=unread, headers=[(b"retry-after", self._retry_after)])

    async def _body(self, scope: Message, receive: Receive) -> tuple[bytes, int]:
        """The body as JSON, and the requests that it holds."""
        headers = dict(scope["headers"])
        length = headers.get(LENGTH.encode(), b"")
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind != "application/json" and not (length and kind == "application/octet-stream"):
            sentence = "send the body as JSON with the header Content-Type: application/json"
            raise Refused(415, sentence, unread=True)
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Refused(415, "send the body as plain JSON, without Content-Encoding", unread=True)
        if _declared(scope) > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._whole(receive)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} s", unread=True) from error
        if length:
            try:
                body = joined(body, length)
            except ValueError as error:
                raise Refused(400, f"the body is no JSON with binary tensors behind it: {error}") from error
        return body, places_of(_checked_json(body))

    async def _whole(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the body ended early", unread=True)
            body += message.get("body", b"")
            if len(body) > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than this server's limit of {self._most} bytes", unread=True)


class _Answer:
    """The way back to one client, who is told the request's name, and to connect anew when the server is closing.

    Attributes:
        status: of the answer; 0 before it has begun.
        ended: whether the whole answer was sent.
    """

    def __init__(self, send: Send, admission: Admission, name: str) -> None:
        self._send = send
        self._admission = admission
        self._name = (REQUEST_ID.encode(), name.encode())
        self.status = 0
        self.ended = False
        self._held: Message | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has been sent anything."""
        return self.status != 0 and self._held is None

    async def __call__(self, message: Message) -> None:
        """Send it; the answer's head goes with what comes next, under one time-out for both."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            last = [(b"connection", b"close")] if self._admission.closing else []
            self._held = {**message, "headers": [*message.get("headers", ()), self._name, *last]}
            return
        head, self._held = self._held, None
        self.ended = not message.get("more_body", False)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if head is not None:
                    await self._send(head)
                await self._send(message)
        except TimeoutError as error:
            raise Abandoned from error


def _is_free(scope: Message) -> bool:
    """Whether a request costs next to nothing, and so waits for nobody and takes no place."""
    return scope["method"] != "POST" and _FREE.fullmatch(scope["path"]) is not None


async def _while_there(work: Awaitable[None], receive: Receive) -> None:
    """Await ``work`` for as long as the client is there; it is looked for once that takes longer than a moment.

    Raises:
        Abandoned: the client has gone; ``work`` was cancelled.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    looking: list[asyncio.Task[None]] = []

    async def look() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    handle = loop.call_later(LOOK_SECONDS, lambda: looking.append(loop.create_task(look())))
    try:
        await work
    except asyncio.CancelledError:
        if looking and looking[0].done() and not task.uncancel():
            raise Abandoned from None
        raise
    finally:
        handle.cancel()
        for one in looking:
            one.cancel()


def _checked_json(body: bytes) -> JsonDict:
    try:
        value = decode_json(body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object, such as {"instances": [{"user_id": "1"}]}')
    if "specversion" in value:
        raise Refused(400, "CloudEvents are not accepted; send the V1 or V2 body itself")
    return value


def _hosts(serving: ServingConfig) -> tuple[str, ...]:
    """Names that the server answers to; none for any."""
    own = (serving.host.lower(), "localhost", "127.0.0.1", "::1") if is_loopback(serving.host) else ()
    return tuple(host.lower() for host in serving.hosts) or own


def _is_one_of(host: str, names: tuple[str, ...]) -> bool:
    """Whether ``Host``, which may name a port, is one of the names; ``*.x`` is all below ``x``, ``*`` is all."""
    host = host.lower()
    bare = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return any(name in ("*", bare) or (name.startswith("*.") and bare.endswith(name[1:])) for name in names)


def _header(scope: Message, name: bytes) -> str:
    """A header's value; empty where it is not sent."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


def _route(scope: Message) -> str:
    """The request's path as it was declared: few values, whatever is asked for. ``none``: it came to no route."""
    route = getattr(scope.get("route"), "path", None)
    asked = _MODEL.sub(r"\1{model_name}", scope["path"])
    return str(route or (asked if asked in _ASKED else "none"))


def _declared(scope: Message) -> int:
    """The length that a request says its body has; -1 where it does not say."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return -1


def _as_json(scope: Message) -> Message:
    kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(_DROPPED)]
    return {**scope, "headers": [*kept, (b"content-type", b"application/json")]}


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, receive: Receive, refused: Refused) -> None:
    if not refused.unread:
        await send_error(send, refused.status, str(refused), refused.headers)
        return
    await send_error(send, refused.status, str(refused), [*refused.headers, (b"connection", b"close")], more=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


async def send_error(
    send: Send, status: int, sentence: str, headers: Iterable[Header] = (), *, more: bool = False
) -> None:
    """Answer ``{"error": sentence}``; ``more`` leaves the answer to be ended by the caller."""
    body = error_body(sentence)
    size = str(len(body)).encode()
    first = [(b"content-type", b"application/json"), (b"content-length", size)]
    await send({"type": "http.response.start", "status": status, "headers": [*first, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def error_body(sentence: str) -> bytes:
    """``{"error": sentence}`` as JSON in ASCII, whatever characters the sentence repeats."""
    return json.dumps({"error": sentence}).encode()
