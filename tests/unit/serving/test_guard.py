"""The door of the server, driven as plain ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from deeprec.errors import RequestError
from deeprec.serving.guard import Guard

JSON = [(b"content-type", b"application/json; charset=utf-8")]
seen: dict[str, Any] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    seen["headers"] = dict(scope["headers"])
    seen["body"] = (await receive())["body"] if scope["method"] == "POST" else b""
    if scope["path"] == "/refuse":
        raise RequestError("no such thing")
    if scope["path"] == "/break":
        raise RuntimeError("secret")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def call(
    path: str = "/", body: list[bytes] | None = None, headers: Any = JSON, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    pieces = [b"{}"] if body is None else body
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": piece, "more_body": number + 1 < len(pieces)}
        for number, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    asyncio.run(Guard(app, 100)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_good_body_arrives_whole_as_plain_json() -> None:
    headers = [*JSON, (b"ce-id", b"1"), (b"inference-header-content-length", b"9"), (b"x-request-id", b"7")]
    assert call(body=[b'{"a":', b"1}"], headers=headers) == (200, {})
    assert seen["body"] == b'{"a":1}'
    assert seen["headers"] == {b"x-request-id": b"7", b"content-type": b"application/json"}


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ({"headers": []}, 415, "Content-Type: application/json"),
        ({"headers": [(b"content-type", b"application/octet-stream")]}, 415, "Content-Type"),
        ({"headers": [*JSON, (b"content-length", b"101")]}, 413, "100 bytes"),
        ({"body": [b" " * 60, b" " * 60]}, 413, "100 bytes"),
        ({"body": [b"{"]}, 400, "not JSON"),
        ({"body": [b"\xff\xfe"]}, 400, "not JSON"),
        ({"body": [b"[]"]}, 400, "JSON object"),
        ({"body": [b'{"specversion":"1"}']}, 400, "CloudEvents"),
        ({"path": "/v2/repository/models/deeprec/unload"}, 404, "cannot be changed"),
        ({"path": "/refuse"}, 400, "no such thing"),
        ({"path": "/break"}, 500, "its log says why"),
    ],
)
def test_errors_are_one_sentence_of_json(arguments: dict[str, Any], status: int, part: str) -> None:
    found, answer = call(**arguments)
    assert found == status
    assert list(answer) == ["error"]
    assert part in answer["error"]
    assert "secret" not in answer["error"]


def test_get_needs_no_body() -> None:
    assert call(method="GET", headers=[]) == (200, {})
