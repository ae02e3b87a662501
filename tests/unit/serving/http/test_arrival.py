"""A request's arrival, noted by uvicorn's protocol and counted by the guard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from deeprec.config import ServingConfig
from deeprec.recommender.deadline import RequestClock
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.arrival import ArrivalProtocol
from deeprec.serving.http.guard import ARRIVED, Guard
from deeprec.serving.http.server import free_port

SERVING = ServingConfig()
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def asked(app: Any, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Serve ``app`` while ``talk`` has one connection to it."""
    port = free_port("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, port=port, http=ArrivalProtocol, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await talk(reader, writer)
    writer.close()
    server.should_exit = True
    await serving


def test_every_request_of_a_connection_has_its_own_arrival() -> None:
    came: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            came.extend((scope["state"][ARRIVED], time.monotonic()))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            came.append(time.monotonic())
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")

    asyncio.run(asked(app, talk))
    assert len(came) == 6
    assert came == sorted(came), "sent, arrived, begun; and once more"


def test_the_time_that_a_request_waited_for_the_guard_is_part_of_its_own() -> None:
    clocks: list[RequestClock] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clocks.append(RequestClock(1000))

    async def deadline(state: dict[str, float]) -> float:
        scope = {"type": "http", "path": "/", "method": "GET", "headers": [], "query_string": b"", "state": state}
        await Guard(app, SERVING, Admission(SERVING))(scope, None, None)  # type: ignore[arg-type]
        return clocks[-1].deadline

    assert asyncio.run(deadline({ARRIVED: 100.0})) == 101.0
    before = time.monotonic()
    assert before + 1 <= asyncio.run(deadline({})) <= time.monotonic() + 1, "counted from the guard"
