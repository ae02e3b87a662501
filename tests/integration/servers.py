"""Servers of tests: processes that are started, watched until they are ready, and ended; and applications in here.

``started`` is the command as a process, forked from one that has imported what it imports, or with ``forked=False`` as
a user starts it. ``hosted`` is the same application on a port of its own in a thread of this process: for tests of what
is answered, which need no process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests import forkserver
from tests.forkserver import deeprec as deeprec

if TYPE_CHECKING:
    from deeprec.serving.http.service import Service

START_SECONDS = 300
STOP_SECONDS = 300


@dataclass(frozen=True)
class ServerProcess:
    """A running server: its process, its address, and the file that it writes its output to."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def printed(self) -> str:
        """Everything that it has written so far."""
        return self.log.read_text()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> None:
        """Return when it is ready."""
        until(self.ready, lambda: f"the server is not ready:\n{self.printed}", self.process)

    def ready(self) -> bool:
        """Whether it says that it is ready."""
        try:
            return bool(httpx.get(f"{self.url}/v2/health/ready", timeout=10).json() == {"ready": True})
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Send SIGTERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total


def until(
    happened: Callable[[], object], otherwise: str | Callable[[], str], process: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until ``happened()`` is true; AssertionError after a long time, or when the process has ended."""
    deadline = time.monotonic() + START_SECONDS
    while not happened():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(0.05)


@contextmanager
def started(command: Sequence[str], log: Path, *, ready: bool = True, forked: bool = True) -> Iterator[ServerProcess]:
    """A process that prints its address, killed in the end. ``ready`` waits until it says that it is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("w") as stream:
        start = forkserver.Popen if forked else subprocess.Popen
        process = start(list(command), stdout=stream, stderr=stream, env=environment)
    try:
        address = re.compile(r"http://127\.0\.0\.1:\d+")
        until(lambda: address.search(log.read_text()), lambda: f"no address:\n{log.read_text()}", process)
        found = address.search(log.read_text())
        assert found
        server = ServerProcess(process, found[0], log)
        if ready:
            server.wait_ready()
        yield server
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Hosted:
    """An application that is served by a thread of this process.

    ``log`` is the file that takes what is logged meanwhile, and what its worker process writes.
    """

    url: str
    log: Path

    printed = ServerProcess.printed
    port = ServerProcess.port
    ready = ServerProcess.ready
    metric = ServerProcess.metric


@contextmanager
def hosted(make: Callable[[], Service], port: int = 0) -> Iterator[Hosted]:
    """The application of ``make()``, ready to answer, with its hooks before and after it.

    It lives as in ``server.run``, without a process's signals and settings. Its worker process starts as any other, so
    it is made and hosted within ``forkserver.routed()``.
    """
    from deeprec.serving.http.address import bind
    from deeprec.serving.http.life import Life

    ended: Future[None] = Future()
    loops: list[asyncio.AbstractEventLoop] = []

    def serve(life: Life) -> None:
        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            await life.serve()

        try:
            asyncio.run(main())
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        stack.enter_context(_logged_to(log))
        bound = bind("127.0.0.1", port)
        with _errors_to(log):
            life = Life(make(), [bound])
            threading.Thread(target=serve, args=(life,), name="hosted", daemon=True).start()
            stack.callback(ended.result, STOP_SECONDS)
            stack.callback(lambda: loops[0].call_soon_threadsafe(life.stop))
            found = Hosted(f"http://127.0.0.1:{bound.getsockname()[1]}", log)
            until(lambda: ended.done() or found.ready(), lambda: f"it is not ready:\n{found.printed}")
        assert not ended.done(), found.printed
        yield found


@contextmanager
def _logged_to(log: Path) -> Iterator[None]:
    """Whatever the server's loggers take is written to the file too."""
    loggers = [logging.getLogger(name) for name in ("deeprec", "kserve", "uvicorn.error")]
    handler = logging.FileHandler(log)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def _errors_to(log: Path) -> Iterator[None]:
    """The standard error of processes that are started now is the file, for their life."""
    kept = os.dup(2)
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
