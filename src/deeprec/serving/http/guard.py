"""The door of the HTTP server: admits, bounds and checks requests before KServe reads them, and turns errors into JSON.

Every error is ``{"error": sentence}``: a 4xx for what the client can mend, a 429 with Retry-After when every place is
taken (``http.admission``), a 500 without detail for what the client cannot mend; a stack trace goes to the log
only. A body must be whole within ``BODY_SECONDS`` and an answer be taken within ``SEND_SECONDS``, so that no slow
client keeps a place. KServe's calls that load and unload models, explain, or name versions are closed, and headers
that would switch it to CloudEvents or binary tensors are dropped. Plain ASGI: nothing of KServe is imported here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.recommender.batching import Overloaded
from deeprec.recommender.deadline import arriving
from deeprec.serving.http.admission import Admission

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

ARRIVED = "deeprec.arrived"
"""Key of a scope's state, where whoever read the request may say when: ``time.monotonic`` seconds."""
BODY_SECONDS = 5.0
"""After this a body that is not whole is given up."""
SEND_SECONDS = 10.0
"""After this a client that does not read its answer is given up."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read and thrown away, so that the client comes to read the answer."""

_DROPPED = (b"ce-", b"inference-header-content-length", b"content-type")
_FREE = re.compile(r"/(metrics|openapi\.json|v1/models(/[^/]*)?|v2(/health/\w+|/models(/[^/]+(/ready)?)?)?)?")
_READINESS = re.compile(r"/v2/health/ready|/v1/models/[^/:]+|/v2/models/[^/]+/ready")
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
    """ASGI middleware; ``max_body_bytes`` of ``serving`` bounds a request's body.

    A request's time counts from its arrival where the scope knows that, else from here.
    """

    def __init__(self, app: App, serving: ServingConfig, admission: Admission) -> None:
        self._app = app
        self._most = serving.max_body_bytes
        self._retry_after = str(serving.retry_after).encode()
        self._admission = admission
        self._client_header = serving.client_header.lower().encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with arriving(scope.get("state", {}).get(ARRIVED), self._client(scope)), suppress(Abandoned):
            await self._answer(scope, receive, _Answer(send, self._admission))

    async def _answer(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        """The edge of the server: whatever is raised behind it is logged here, and a client reads a sentence."""
        try:
            self._check_path(scope)
            ticket = self._enter(scope)
            try:
                await self._pass_on(scope, receive, answer)
            finally:
                self._admission.leave(ticket)
        except Refused as refused:
            await _refuse(answer, receive, refused)
        except RequestError as error:
            await send_error(answer, error.status, str(error))
        except Abandoned:
            raise
        except Exception:
            logger.exception("a request failed")
            if answer.started:
                raise
            await send_error(answer, 500, "the server failed on this request; its log says why")

    async def _pass_on(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        if scope["method"] == "POST":
            body = await self._body(scope, receive)
            scope, receive = _as_json(scope), _replay(body, receive)
        await self._app(scope, receive, answer)

    def _client(self, scope: Message) -> str:
        """Who asks: what ``serving.client_header`` says where it is named and sent, else the peer's address."""
        if self._client_header:
            for name, value in scope["headers"]:
                if name.lower() == self._client_header:
                    return str(value[:200].decode("latin-1"))
        return str((scope.get("client") or ("",))[0])

    def _check_path(self, scope: Message) -> None:
        path = scope["path"]
        if self._admission.closing and scope["method"] == "GET" and _READINESS.fullmatch(path):
            raise Refused(503, "the server is shutting down")
        for closed, sentence in _CLOSED.items():
            if closed.fullmatch(path):
                raise Refused(404, sentence, unread=True)
        if b"model_version" in scope.get("query_string", b"") and path.startswith("/v2/models/"):
            raise Refused(404, "a model has one version here; leave out model_version", unread=True)

    def _enter(self, scope: Message) -> int:
        counted = scope["method"] == "POST" or _FREE.fullmatch(scope["path"]) is None
        try:
            return self._admission.enter(counted)
        except Overloaded as full:
            sentence = f"{full}; try again in {self._retry_after.decode()} s"
            unread = not 0 <= _declared(scope) <= self._most
            raise Refused(429, sentence, unread=unread, headers=[(b"retry-after", self._retry_after)]) from full

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind != "application/json":
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
        _check_json(body)
        return body

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
    """The way back to one client, who is told to connect anew when the server is closing."""

    def __init__(self, send: Send, admission: Admission) -> None:
        self._send = send
        self._admission = admission
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self._admission.closing:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            raise Abandoned from error


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Stricter than ``json.loads``: no NaN or Infinity, no text that is not Unicode (a lone surrogate).

    Raises:
        ValueError: with one clause that says why not.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_constant=_not_json)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(str(error)[:200]) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError("it holds a number that is too long or not finite") from error
    return value


def _not_json(constant: str) -> None:
    raise ValueError(constant)


def _check_json(body: bytes) -> None:
    try:
        value = decode_json(body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object, such as {"instances": [{"user_id": "1"}]}')
    if "specversion" in value:
        raise Refused(400, "CloudEvents are not accepted; send the V1 or V2 body itself")


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
