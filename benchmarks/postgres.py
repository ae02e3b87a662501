"""A real PostgreSQL server for benchmarks and tests: Debian's package, in a directory of its own, on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PASSWORD = "s3cret"


def find_postgres() -> Path | None:
    """The directory of the server's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    named = shutil.which("postgres")
    return Path(named).parent if named else None


class PostgresServer:
    """A server process that can be stopped and started again with what it has; ``make`` gives an empty database."""

    def __init__(self) -> None:
        programs = find_postgres()
        assert programs is not None, "install the package postgresql"
        self._programs, self._work = programs, Path(tempfile.mkdtemp(prefix="deeprec-postgres-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        secret, data = self._work / "password", self._work / "data"
        secret.write_text(PASSWORD)
        data.mkdir()
        if os.getuid() == 0:
            for path in (self._work, secret, data):
                shutil.chown(path, "postgres", "postgres")
        command = ["initdb", "-D", str(data), "-U", "deeprec", "--auth=scram-sha-256", f"--pwfile={secret}"]
        self._run(*command, "--no-sync", "-E", "UTF8").wait()
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", str(self._work / "data"), "-N", "200", *options)
        for _ in range(400):
            try:
                self.connect("postgres").close()
                return
            except Exception:
                time.sleep(0.05)
        raise RuntimeError("PostgreSQL does not start")

    def stop(self) -> None:
        """Stop it at once, as a crash would; what is committed stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self._work, ignore_errors=True)

    def make(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"made_{self._made}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://deeprec:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str) -> Any:
        """A connection to a database."""
        import psycopg

        address = f"host=127.0.0.1 port={self.port} user=deeprec password={PASSWORD} dbname={name}"
        return psycopg.connect(address, autocommit=True, connect_timeout=5)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self._programs / program), *arguments]
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
