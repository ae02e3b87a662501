"""How fast a server comes and goes: ``python -m benchmarks.serving_life RUN``.

``deeprec serve recommender RUN`` as an operator starts it, ``--repeats`` times. The table has seconds, lowest and
median: from the command to the open port and to ready; from SIGTERM to the end when idle, while loading (half a second
after the port is open), and as process 1 (in a namespace of its own, where the machine allows that).

``--beside CHECKOUT RUN`` also starts another checkout's command with a run of its own, alternately in the same run, and
prints the ratio of the times to ready: this machine's speed drifts, so no other comparison holds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.serving import free_port

ROOT = Path(__file__).parents[1]
START_SECONDS = 300.0
FIRST = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")
"""Before a command that is to be process 1."""


@contextmanager
def server(checkout: Path, run: str, port: int, before: Sequence[str] = ()) -> Iterator[psutil.Process]:
    """The command of a checkout as a process, killed in the end; that of the namespace where it is process 1."""
    place = [str(checkout / "src"), str(checkout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place)}
    start = "from deeprec.cli import main; main()"
    if (checkout / "src" / "deeprec" / "__main__.py").is_file():
        start = "from deeprec.__main__ import main; main()"
    command = [*before, sys.executable, "-c", start, "serve", "recommender", run, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            own = psutil.Process(process.pid)
            while before and not own.children():
                time.sleep(0.01)
            yield own.children()[0] if before else own
        finally:
            process.kill()
            process.wait()


def until(process: psutil.Process, url: str) -> float:
    """Seconds from the process's start until ``url`` answers 200.

    Raises:
        SystemExit: it ended, or took too long.
    """
    began = process.create_time()
    while time.time() - began < START_SECONDS:
        if has_ended(process):
            raise SystemExit("the server ended before it was ready; start it by hand to see why")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return time.time() - began
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{url} did not answer within {START_SECONDS:g} s")


def has_ended(process: psutil.Process) -> bool:
    """Whether it has, its parent having been told or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end(process: psutil.Process) -> float:
    """Seconds from SIGTERM to the end."""
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    while not has_ended(process):
        time.sleep(0.005)
        if time.perf_counter() - began > START_SECONDS:
            raise SystemExit("SIGTERM did not end the server")
    return time.perf_counter() - began


def measure(run: str, beside: tuple[Path, str] | None) -> dict[str, float]:
    """One round's seconds."""
    found: dict[str, float] = {}
    port = free_port()
    url = f"http://127.0.0.1:{port}/v2/health"
    with server(ROOT, run, port) as process:
        found["port"] = until(process, f"{url}/live")
        found["ready"] = until(process, f"{url}/ready")
        time.sleep(1.0)
        found["SIGTERM, idle"] = end(process)
    with server(ROOT, run, port) as process:
        until(process, f"{url}/live")
        time.sleep(0.5)
        found["SIGTERM, loading"] = end(process)
    if subprocess.run([*FIRST, "true"], capture_output=True, check=False).returncode == 0:
        for name, path in (("SIGTERM, process 1", "ready"), ("SIGTERM, process 1, loading", "live")):
            with server(ROOT, run, port, FIRST) as process:
                until(process, f"{url}/{path}")
                time.sleep(0.5)
                found[name] = end(process)
    if beside is not None:
        with server(beside[0], beside[1], port) as process:
            found["ready, beside"] = until(process, f"{url}/ready")
        found["ready / beside"] = found["ready"] / found["ready, beside"]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.serving_life runs/quickstart --beside ../old ../old/runs/quickstart",
    )
    parser.add_argument("run", help="a run's directory, a bundle or a shelf")
    parser.add_argument("--beside", nargs=2, metavar=("CHECKOUT", "RUN"), help="another checkout and a run of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    beside = None if arguments.beside is None else (Path(arguments.beside[0]), arguments.beside[1])
    rows: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.repeats):
        for name, seconds in measure(arguments.run, beside).items():
            rows[name].append(seconds)
        print(f"{number + 1} of {arguments.repeats}", file=sys.stderr)
    for name, seconds in rows.items():
        print(f"{name:28} lowest {min(seconds):6.2f}  median {statistics.median(seconds):6.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
