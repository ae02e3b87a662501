"""A server's life, from the signals that it takes to the last answer.

- Loading: the ports are open and answer that nothing is ready; ``Service.start`` runs. A signal ends it at once.
- Started, and ready for as long as its models are.
- Draining, at the first SIGTERM: not ready, and still answering for ``serving.drain_seconds``, so that whoever routes
  requests here looks elsewhere. SIGINT and a second SIGTERM leave that out.
- Stopping: no new connection; every accepted request is answered, within ``ServingConfig.answer_seconds``; then
  ``Service.close``, which has what is left of that time and ``CLOSE_SECONDS``.

Alive is another question: whether starting the process again would help (``Service.alive``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn

from deeprec.serving.http.address import BACKLOG, url
from deeprec.serving.http.service import Port, Service

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

HELPERS = 4
"""Threads for what may wait on a disk or a network without anybody waiting for it."""
CLOSE_SECONDS = 15
"""For ``Service.close`` besides: the last file of the request log."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Listener(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's server, which leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class Life:
    """One server's life on sockets that are bound: of its public port, and of its admin port where it has one."""

    def __init__(self, service: Service, bound: Sequence[socket.socket]) -> None:
        self._service, self._bound = service, tuple(bound)
        self._listeners: list[_Listener] = []
        self._draining: asyncio.TimerHandle | None = None
        self._ended: float | None = None
        """When the last request was taken, ``time.monotonic`` seconds."""

    def take_signals(self) -> None:
        """Until the ports are open nothing has been accepted: a signal ends the process. For the main thread."""

        def end(number: int, frame: FrameType | None) -> None:
            os._exit(0 if number == signal.SIGTERM else 130)

        for number in SIGNALS:
            signal.signal(number, end)

    async def serve(self) -> None:
        """Serve until told to stop, with ``start`` beside and ``close`` after it.

        Raises:
            Exception: what ``start`` raised; the server has stopped.
        """
        loop = asyncio.get_running_loop()
        self._set_up(loop)
        ports = [self._service.public, *([self._service.admin] if self._service.admin else [])]
        self._listeners = [self._listener(port) for port in ports]
        beginning = asyncio.create_task(self._begin())
        listening = zip(self._listeners, self._bound, strict=True)
        try:
            await asyncio.gather(*(listener.serve(sockets=[bound]) for listener, bound in listening))
            beginning.cancel()
            with suppress(asyncio.CancelledError):
                await beginning
        finally:
            await self._close()
            logger.info("stopped after answering %d requests", self._service.admission.accepted)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Answer a signal, in the event loop."""
        waits = number == signal.SIGTERM and not self._service.admission.closing and self._service.admission.started
        self._service.admission.closing = True
        if self._draining is not None:
            self._draining.cancel()
        if waits and self._service.serving.drain_seconds:
            self._draining = asyncio.get_running_loop().call_later(self._service.serving.drain_seconds, self._end)
        else:
            self._end(force=number == signal.SIGINT)

    def _end(self, *, force: bool = False) -> None:
        self._ended = self._ended or time.monotonic()
        for listener in self._listeners:
            listener.force_exit |= force and listener.should_exit
            listener.should_exit = True

    def _set_up(self, loop: asyncio.AbstractEventLoop) -> None:
        from anyio import to_thread

        loop.set_default_executor(ThreadPoolExecutor(HELPERS, "deeprec-helper"))
        to_thread.current_default_thread_limiter().total_tokens = HELPERS
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                loop.add_signal_handler(number, self.stop, number)

    def _listener(self, port: Port) -> _Listener:
        from deeprec.serving.http.application import application

        return _Listener(
            uvicorn.Config(
                application(self._service, port),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # who asks is the peer, or what serving.client_header says
                backlog=BACKLOG,
                timeout_graceful_shutdown=math.ceil(self._service.serving.answer_seconds),
            )
        )

    async def _begin(self) -> None:
        """Prepare what serves; whatever that raises ends the server, and is raised by ``serve``."""
        try:
            if self._service.start is not None:
                await self._service.start()
            for model in self._service.models:
                model.load()
            self._service.admission.started = True
            self._introduce()
        except Exception:
            self._end()
            raise

    async def _close(self) -> None:
        if self._service.close is None:
            return
        spent = time.monotonic() - self._ended if self._ended is not None else 0.0
        left = max(self._service.serving.answer_seconds - spent, 0.0) + CLOSE_SECONDS
        try:
            await asyncio.wait_for(self._service.close(), left)
        except TimeoutError:
            logger.error("what the server was closing is not closed after %.0f s, and is left", left)

    def _introduce(self) -> None:
        host, port = self._service.serving.host, self._bound[0].getsockname()[1]
        if self._service.introduction is not None and self._service.serving.log_format == "text":
            print(self._service.introduction(url(host, port)), flush=True)
        logger.info("ready on %s", url(host, port))
