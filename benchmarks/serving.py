"""Requests per second and latency of the servers: ``python -m benchmarks.serving BUNDLE --features FEATURES``.

Three servers, one after the other, each in a process of its own as an operator starts it: a bare KServe model that
returns a constant, ``deeprec serve trm`` and ``deeprec serve recommender``. Callers in another process keep so many
requests under way (``--at-once``); each names a user at random, or without ``--features`` gives one of 5,000 random
histories. The table shows requests per second, p50, p99 and the worst in milliseconds as the callers see them, answers
that were not 200, and the recommender's share of path ``policy``. The ratio to the bare model is our own share of a
request. Of the TRM the row ``first time`` comes before the others and asks once for each user or history: the TRM keeps
what it has encoded, so one that comes back without new items costs less, and one of the store was encoded before the
server was ready (``--set serving.prepare=0``: was not).

``--beside CHECKOUT BUNDLE FEATURES`` instead compares with another checkout and a bundle of its own: both servers run,
and are asked in turn, ``--rounds`` times, ``--at-once`` (its first) requests at a time; this machine's speed drifts, so
no other comparison holds. The table has both rates and their ratio, median, lowest and highest.

``--soak MINUTES`` instead keeps the recommender under steady load (``--rate`` requests per second) and prints memory of
all its processes and latency by minute: neither may grow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from deeprec.bundle.bundle import Bundle
from deeprec.types import JsonDict

START_SECONDS = 300.0
WARM_UP_SECONDS = 3.0
FIRST_AT_ONCE = 8
RANDOM_HISTORIES = 5000
HISTORY = (5, 20, 50, 100, 200)
"""Lengths of random histories."""
BARE = """
import sys
port, sys.argv = int(sys.argv[1]), sys.argv[:1]
import kserve
class Constant(kserve.Model):
    async def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": [{"items": []}]}
model = Constant("constant")
model.load()
kserve.ModelServer(http_port=port, enable_grpc=False, enable_latency_logging=False, workers=1).start([model])
"""


@dataclass
class Tally:
    """What the callers saw."""

    seconds: float
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)

    def figures(self) -> JsonDict:
        """One row of the table."""
        ordered = sorted(self.milliseconds) or [0.0]
        paths = self.paths.total()
        return {
            "per second": self.statuses[200] / self.seconds,
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
            "worst": ordered[-1],
            "not 200": self.statuses.total() - self.statuses[200],
            "policy": self.paths["policy"] / paths if paths else None,
        }


class Connection:
    """One HTTP/1.1 connection that is kept: as little client as can be, since it shares the machine's cores."""

    def __init__(self, url: str, path: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, where it is not connected."""
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection(*self._address)
        return self._streams

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        reader, writer = await self.open()
        writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if b"connection: close" in head:
            writer.close()
            self._streams = None
        return int(head.split(b" ")[1]), answer


async def load(url: str, path: str, bodies: Sequence[bytes], at_once: int, seconds: float) -> Tally:
    """Keep ``at_once`` requests under way for so long; the first seconds are not counted."""
    started = time.perf_counter() + WARM_UP_SECONDS
    tally = Tally(seconds)
    generator = random.Random(at_once)

    async def caller() -> None:
        connection = Connection(url, path)
        while (began := time.perf_counter()) < started + seconds:
            status, answer = await connection.post(generator.choice(bodies))
            if began >= started:
                count(tally, 1000 * (time.perf_counter() - began), status, answer)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return tally


async def once(url: str, path: str, bodies: Sequence[bytes], at_once: int) -> Tally:
    """Ask for each, ``at_once`` at a time."""
    tally, waiting, began = Tally(0.0), iter(bodies), time.perf_counter()

    async def caller() -> None:
        connection = Connection(url, path)
        for body in waiting:
            asked = time.perf_counter()
            status, answer = await connection.post(body)
            count(tally, 1000 * (time.perf_counter() - asked), status, answer)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    tally.seconds = time.perf_counter() - began
    return tally


async def steady(url: str, path: str, bodies: Sequence[bytes], rate: float, seconds: float) -> Tally:
    """Ask ``rate`` times a second, whether or not the answers come; a connection that breaks counts as status 0."""
    tally, idle, tasks = Tally(seconds), [Connection(url, path)], set()
    generator = random.Random(0)

    async def one() -> None:
        connection = idle.pop() if idle else Connection(url, path)
        began = time.perf_counter()
        try:
            status, answer = await connection.post(generator.choice(bodies))
        except (OSError, EOFError):
            status, answer = 0, b""
        else:
            idle.append(connection)
        count(tally, 1000 * (time.perf_counter() - began), status, answer)

    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return tally


def count(tally: Tally, milliseconds: float, status: int, answer: bytes) -> None:
    """Take one answer into account."""
    tally.milliseconds.append(milliseconds)
    tally.statuses[status] += 1
    if status == 200 and (path := json.loads(answer)["predictions"][0].get("path")):
        tally.paths[path] += 1


@contextmanager
def serving(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """A server from its readiness to its end: address and process id."""
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"the server did not start: {' '.join(command)}\n{log.read()[-2000:]}")
                time.sleep(0.3)
            yield url, process.pid
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/v2/health/ready", timeout=5)
    except httpx.TransportError:
        return False
    return bool(answer.status_code == 200 and answer.json().get("ready"))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def memory(pid: int) -> float:
    """MiB of a process and those that it started."""
    import psutil

    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def _users(features: Path) -> list[str]:
    """The users of a feature place in a directory, this version's or one that version 0.1 wrote."""
    before = features / "current" / "offline" / "user_history.parquet"
    if before.exists():
        import polars as pl

        return pl.read_parquet(before, columns=["user_id"])["user_id"].to_list()
    from deeprec.features.directory import DirectoryPlace

    return [user.user_id for user in DirectoryPlace(features).newest().find("", limit=10**6)]


def requests(bundle: Bundle, features: Path | None) -> list[bytes]:
    """Bodies that name the users of the feature store in random order, or give random histories; all differ."""
    generator = random.Random(0)
    if features is not None:
        users = _users(features)
        asked: list[JsonDict] = [{"user_id": user, "k": 10} for user in users]
        generator.shuffle(asked)
    else:
        ids = [item.item_id for item in bundle.catalogue.items]
        sizes = [min(len(ids) // 2, generator.choice(HISTORY)) for _ in range(RANDOM_HISTORIES)]
        asked = [{"history": generator.sample(ids, size), "k": 10} for size in sizes]
    return [json.dumps({"instances": [one]}).encode() for one in asked]


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    bodies = requests(Bundle.load(arguments.bundle), arguments.features)
    port = free_port()
    program = [sys.executable, "-c", "from deeprec.cli import main; main()", "serve"]
    place = [str(arguments.bundle), *(["--features", str(arguments.features)] if arguments.features else [])]
    options = ["--port", str(port), *(part for one in arguments.set or () for part in ("--set", one))]
    recommender = [*program, "recommender", *place, "--policy", "--deadline-ms", str(arguments.deadline_ms), *options]
    servers = {
        "bare KServe": ([sys.executable, "-c", BARE, str(port)], "constant"),
        "trm": ([*program, "trm", *place, *options], "deeprec-trm"),
        "recommender": (recommender, "deeprec"),
    }
    if arguments.beside:
        figures = {name: _beside(name, *servers[name], port, bodies, arguments) for name in ("trm", "recommender")}
    elif arguments.soak:
        figures = _soak(recommender, port, bodies, arguments)
    else:
        figures = {name: _measure(name, *server, port, bodies, arguments) for name, server in servers.items()}
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _measure(
    name: str, command: Sequence[str], model: str, port: int, bodies: Sequence[bytes], arguments: argparse.Namespace
) -> JsonDict:
    rows: JsonDict = {}
    path = f"/v1/models/{model}:predict"
    with serving(command, port) as (url, pid):
        if name == "trm":
            rows["first time"] = asyncio.run(once(url, path, bodies, FIRST_AT_ONCE)).figures() | {"MiB": memory(pid)}
            _print(name, f"{FIRST_AT_ONCE:3} at once, first time", rows["first time"])
        for at_once in arguments.at_once:
            tally = asyncio.run(load(url, path, bodies, at_once, arguments.seconds))
            rows[str(at_once)] = tally.figures() | {"MiB": memory(pid)}
            _print(name, f"{at_once:3} at once", rows[str(at_once)])
    return rows


def _beside(
    name: str, command: Sequence[str], model: str, port: int, bodies: Sequence[bytes], arguments: argparse.Namespace
) -> JsonDict:
    checkout, bundle, features = arguments.beside
    other_port, path = free_port(), f"/v1/models/{model}:predict"
    other = [*command[:4], name, bundle, "--features", features, "--port", str(other_port)]
    if name == "recommender":
        other += ["--policy", "--deadline-ms", str(arguments.deadline_ms)]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{checkout}/src", checkout])}
    there = requests(Bundle.load(arguments.bundle), Path(features))
    rows: list[tuple[float, float]] = []
    with serving(command, port) as (url, _), serving(other, other_port, place) as (other_url, _):
        asyncio.run(once(url, path, bodies, FIRST_AT_ONCE))
        asyncio.run(once(other_url, path, there, FIRST_AT_ONCE))
        for _ in range(arguments.rounds):
            at_once, seconds = arguments.at_once[0], arguments.seconds
            pair = [
                asyncio.run(load(at, path, asked, at_once, seconds)).figures()["per second"]
                for at, asked in ((url, bodies), (other_url, there))
            ]
            rows.append((pair[0], pair[1]))
    ratios = sorted(own / theirs for own, theirs in rows)
    own, theirs = (statistics.median(row[side] for row in rows) for side in (0, 1))
    print(
        f"{name:12} {arguments.at_once[0]:3} at once  {own:7.1f} requests/s, beside {theirs:7.1f}: "
        f"median {statistics.median(ratios):.3f}, lowest {ratios[0]:.3f}, highest {ratios[-1]:.3f}",
        flush=True,
    )
    return {"rates": rows, "ratios": ratios}


def _print(name: str, what: str, row: JsonDict) -> None:
    share = f"  policy {row['policy']:.1%}" if row["policy"] is not None else ""
    print(
        f"{name:12} {what:23} {row['per second']:7.1f} requests/s  p50 {row['p50']:6.1f}  p99 {row['p99']:6.1f}  "
        f"worst {row['worst']:7.1f} ms  not 200: {row['not 200']}  {row['MiB']:.0f} MiB{share}",
        flush=True,
    )


def _soak(command: Sequence[str], port: int, bodies: Sequence[bytes], arguments: argparse.Namespace) -> JsonDict:
    minutes: list[JsonDict] = []
    with serving(command, port) as (url, pid):
        for minute in range(1, arguments.soak + 1):
            row = asyncio.run(steady(url, "/v1/models/deeprec:predict", bodies, arguments.rate, 60)).figures()
            minutes.append(row | {"MiB": memory(pid)})
            print(
                f"minute {minute:3}: p50 {row['p50']:6.1f}  p99 {row['p99']:6.1f} ms  not 200: {row['not 200']}  "
                f"policy {row['policy'] or 0:.1%}  {minutes[-1]['MiB']:.0f} MiB",
                flush=True,
            )
    third = max(1, len(minutes) // 3)
    for name in ("p50", "p99", "MiB"):
        early, late = (sum(row[name] for row in part) / third for part in (minutes[:third], minutes[-third:]))
        print(f"{name}: last third / first third {late / early:.3f}")
    return {"minutes": minutes}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.serving runs/ml-1m/bundle --features runs/ml-1m/features",
    )
    parser.add_argument("bundle", type=Path, help="a bundle, of MovieLens-1M for the figures that are quoted")
    parser.add_argument("--features", type=Path, help="the feature store of its users")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32], help="requests under way at a time")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of the recommender")
    parser.add_argument(
        "--beside", nargs=3, metavar=("CHECKOUT", "BUNDLE", "FEATURES"), help="another checkout, and what it serves"
    )
    parser.add_argument("--rounds", type=int, default=8, help="of --beside")
    parser.add_argument("--soak", type=int, default=0, metavar="MINUTES", help="steady load instead; 30 for the figure")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second of --soak")
    parser.add_argument("--set", action="append", help="serving.KEY=VALUE of both servers; repeatable")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
