"""Real servers that others have made, as processes on free local ports: Redis, and SeaweedFS, which speaks S3."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "s3cret"
"""Redis's."""
KEY, SECRET = "key", "secret"
"""SeaweedFS's credentials."""


class RedisServer:
    """A server process that can be stopped and started again on its port, empty."""

    def __init__(self, work: Path) -> None:
        [self.port] = free_ports(1)
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        """As ``features.redis`` names it, the password by the environment."""
        return f"127.0.0.1:{self.port},password=${{DEEPREC_TEST_REDIS}}"

    @property
    def client(self) -> Any:
        """A client that waits until the server is there."""
        from redis import Redis
        from redis.backoff import ConstantBackoff
        from redis.retry import Retry

        return Redis(port=self.port, password=PASSWORD, retry=Retry(ConstantBackoff(0.05), 200))

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(self._work)]
        self._process = subprocess.Popen([*command, *nothing_kept], stdout=subprocess.DEVNULL)
        self.client.ping()

    def stop(self) -> None:
        """Stop it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def seaweed(place: Path, bucket: str) -> Iterator[str]:
    """The address of a SeaweedFS's S3 server that keeps its files in ``place``, with one bucket."""
    from minio import Minio

    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (place / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([f"{name}.port{grpc}" for name in names for grpc in ("", ".grpc")], free_ports(8), strict=True))
    options = {
        **ports, "dir": place, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": place / "s3.json",
        "s3.port.iceberg": 0, "master.volumeSizeLimitMB": 64, "volume.max": 20,
    }  # fmt: skip
    command = ["weed", "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    command[0] = str(Path(sys.executable).with_name("weed"))
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = Minio(f"127.0.0.1:{ports['s3.port']}", KEY, SECRET, secure=False, region="us-east-1")
        deadline = time.monotonic() + 60
        while True:
            try:
                client.make_bucket(bucket)
                client.list_objects(bucket)
                break
            except Exception as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    told = (place / "log").read_text()[-2000:]
                    raise AssertionError(f"SeaweedFS did not start:\n{told}") from error
                time.sleep(0.2)
        yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        process.kill()
        process.wait(timeout=20)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
