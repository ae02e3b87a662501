"""Real S3 server processes on local ports: moto, and SeaweedFS, which many may write to at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("the S3 server did not start")
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from minio import Minio

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    found = Minio(server.removeprefix("http://"), "key", "secret", secure=False, region="us-east-1")
    if not found.bucket_exists("models"):
        found.make_bucket("models")
    return found


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of SeaweedFS's S3 server, with the bucket ``models``."""
    with services.seaweed(tmp_path_factory.mktemp("seaweed"), "models") as address:
        yield address


@pytest.fixture(scope="session")
def small_run(built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run's directory with ``bundle`` and ``features``, see ``parts.make_run``. Read it, never write into it.

    A server that accepts events writes into its features: give it a copy.
    """
    from tests.integration.parts import make_run

    return built_once("run", make_run)
