"""The door of the HTTP server: bounds and checks every body before KServe reads it, and turns errors into JSON.

Every error is ``{"error": sentence}`` with a 4xx for what the client can mend and a 500 without detail for what it
cannot; a stack trace goes to the log only. KServe's calls that load and unload models are closed, and headers that
would switch it to CloudEvents or binary tensors are dropped. Plain ASGI: nothing of KServe is imported here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deeprec.errors import RequestError

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_DROPPED = (b"ce-", b"inference-header-content-length", b"content-type")


class Refused(Exception):
    """A request that goes no further: the status and the sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """ASGI middleware; ``max_body_bytes`` bounds a request's body."""

    def __init__(self, app: App, max_body_bytes: int) -> None:
        self._app = app
        self._most = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["path"].startswith("/v2/repository"):
                raise Refused(404, "this server's models are loaded when it starts and cannot be changed")
            if scope["method"] == "POST":
                body = await self._body(scope, receive)
                scope, receive = _as_json(scope), _replay(body, receive)
            await self._app(scope, receive, watched)
        except Refused as refused:
            await send_error(send, refused.status, str(refused))
        except RequestError as error:
            await send_error(send, error.status, str(error))
        except Exception:
            logger.exception("a request failed")
            if started:
                raise
            await send_error(send, 500, "the server failed on this request; its log says why")

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "send the body as JSON with the header Content-Type: application/json")
        too_large = Refused(413, f"the body is larger than this server's limit of {self._most} bytes")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._most:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the body ended early")
            body += message.get("body", b"")
            if len(body) > self._most:
                raise too_large
            if not message.get("more_body", False):
                break
        _check_json(bytes(body))
        return bytes(body)


def _check_json(body: bytes) -> None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object, such as {"instances": [{"user_id": "1"}]}')
    if "specversion" in value:
        raise Refused(400, "CloudEvents are not accepted; send the V1 or V2 body itself")


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


async def send_error(send: Send, status: int, sentence: str) -> None:
    """Answer ``{"error": sentence}`` and close the connection, whose body may not have been read."""
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
