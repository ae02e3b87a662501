"""A real HTTP server whose answers are scripted, and which remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Scripted = Callable[["Asked"], Any]


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


class ScriptedServer:
    """Context manager: each request is answered by the next of ``answers``, the last one over and over.

    An answer is JSON, a response, a number (a status with an error's body), or a function of ``Asked`` that gives one
    of these; an awaitable is awaited in the server's loop.
    """

    def __init__(self, *answers: Any, port: int = 0) -> None:
        self._port = port
        self.asked: list[Asked] = []
        self._answers = list(answers)

    def __enter__(self) -> Self:
        route = Route("/{path:path}", self._answer, methods=["GET", "POST"])
        config = uvicorn.Config(Starlette(routes=[route]), port=self._port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=10)

    @property
    def bodies(self) -> list[Any]:
        """The bodies that came in."""
        return [one.body for one in self.asked]

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        asked = Asked(request.method, request.url.path, dict(request.headers), json.loads(body) if body else None)
        self.asked.append(asked)
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if callable(answer) and not isinstance(answer, Response):
            answer = answer(asked)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, int):
            answer = JSONResponse({"error": f"scripted {answer}"}, answer)
        return answer if isinstance(answer, Response) else JSONResponse(answer)


def events(steps: Iterable[tuple[str, Any]]) -> bytes:
    """Steps as server-sent events."""
    return b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in steps)
