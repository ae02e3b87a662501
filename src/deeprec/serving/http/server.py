"""The server process: the command's last step, from bound sockets to the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from deeprec.serving.http.life import Life
from deeprec.serving.http.service import Service
from deeprec.serving.logs import set_up_logging


def run(service: Service, bound: Sequence[socket.socket]) -> None:
    """Serve on the sockets, of the public and the admin port, until told to stop; then end this process.

    For the main thread of a process of its own: it sets up logging, signals and the event loop.

    Raises:
        Exception: what ``start`` raised; the server has stopped.
    """
    set_up_logging(service.serving.log_format)
    life = Life(service, bound)
    life.take_signals()

    import uvloop

    from deeprec.serving.http.kserve_server import Server

    async def serve() -> None:
        await life.serve()
        _end()

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    Server(serve).start([])


def _end() -> NoReturn:
    """End the process here: threads that load, or wait for a store that hangs, cannot be cancelled and would be waited
    for, and taking modules apart takes seconds.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
