"""Server processes of tests: started, watched until they are ready, and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

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
def started(command: Sequence[str], log: Path, *, ready: bool = True) -> Iterator[ServerProcess]:
    """A process that prints its address, killed in the end. ``ready`` waits until it says that it is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("w") as stream:
        process = subprocess.Popen(list(command), stdout=stream, stderr=stream, env=environment)
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


def deeprec(*arguments: str | Path) -> list[str]:
    """The command line ``deeprec …``."""
    return [sys.executable, "-c", "from deeprec.cli import main; main()", *map(str, arguments)]
