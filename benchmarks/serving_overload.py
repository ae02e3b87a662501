"""What more load than it takes does to a server: ``python -m benchmarks.serving_overload BUNDLE --features FEATURES``.

A recommender in a process of its own. First the load at which it sheds: callers are doubled until a hundredth of the
bodies gets 429. Then, for ``--seconds``, twice that many. The table has the share of 10 ms ticks of the server's event
loop that were late by less than 50 ms (a task in the server sleeps 10 ms again and again), bodies answered and shed,
and MiB of the server's process before, while and after ``--clients`` more send bodies of 32 requests, ten times the
places that there are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.serving import Connection, Tally, count, free_port, memory, requests, serving
from deeprec.bundle.bundle import Bundle
from deeprec.types import JsonDict

PATH = "/v1/models/deeprec:predict"
TICK, LATE = 0.01, 0.05
SHED = 0.01
MOST_CALLERS = 4096


def serve(address: str, features: Path | None, port: int, ticks: Path) -> None:
    """Be the server, and write how late its event loop was: ticks, and those late by ``LATE`` seconds or more."""
    from deeprec.config import ServingConfig
    from deeprec.features.directory import DirectoryPlace
    from deeprec.serving.http.address import bind
    from deeprec.serving.http.bundle_server import recommender_service
    from deeprec.serving.http.server import run

    config = ServingConfig(port=port)
    service = recommender_service(address, config, None if features is None else DirectoryPlace(features))
    start = service.start
    assert start is not None
    tasks = []

    async def tick() -> None:
        counted = late = 0
        worst = 0.0
        while True:
            due = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            behind = time.monotonic() - due
            counted, late, worst = counted + 1, late + (behind >= LATE), max(worst, behind)
            if counted % 100 == 0:
                ticks.write_text(json.dumps([counted, late, worst]))
                worst = 0.0

    async def started() -> None:
        await start()
        tasks.append(asyncio.create_task(tick()))

    run(replace(service, start=started), [bind(config.host, config.port)])


async def load(url: str, bodies: list[bytes], callers: int, seconds: float) -> Tally:
    """Keep so many callers asking; whoever is refused asks again after a tenth of a second."""
    tally, ends = Tally(seconds), time.perf_counter() + seconds

    async def caller(number: int) -> None:
        connection = Connection(url, PATH)
        while (began := time.perf_counter()) < ends:
            number += callers
            try:
                status, answer = await connection.post(bodies[number % len(bodies)])
            except (OSError, EOFError):
                connection, status, answer = Connection(url, PATH), 0, b""
            count(tally, 1000 * (time.perf_counter() - began), status, answer)
            if status != 200:
                await asyncio.sleep(0.1)

    await asyncio.gather(*map(caller, range(callers)))
    return tally


def read(ticks: Path) -> tuple[int, int]:
    """Ticks so far, and the late ones of them."""
    counted, late, _ = json.loads(ticks.read_text())
    return counted, late


def main() -> None:
    """Measure and print, or serve for a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--features", type=Path, help="feature store; random histories without one")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=80, help="that send bodies of 32 requests in the end")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(str(arguments.bundle), arguments.features, int(arguments.serve[0]), Path(arguments.serve[1]))
        return
    bodies = requests(Bundle.load(arguments.bundle), arguments.features)
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_overload", str(arguments.bundle), "--serve", str(port)]
    with tempfile.TemporaryDirectory() as scratch:
        ticks = Path(scratch) / "ticks"
        command += [str(ticks), *(["--features", str(arguments.features)] if arguments.features else [])]
        with serving(command, port) as (url, pid):
            figures = asyncio.run(_measured(url, pid, bodies, ticks, arguments))
    for name, value in figures.items():
        print(f"{name:36} {value:.4f}" if isinstance(value, float) else f"{name:36} {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


async def _measured(url: str, pid: int, bodies: list[bytes], ticks: Path, arguments: argparse.Namespace) -> JsonDict:
    callers, before = 32, memory(pid)
    while callers < MOST_CALLERS:
        found = await load(url, bodies, callers, min(5.0, arguments.seconds))
        if found.statuses[429] >= SHED * found.statuses.total():
            break
        callers *= 2
    counted, late = read(ticks)
    busy = await load(url, bodies, 2 * callers, arguments.seconds)
    counted_after, late_after = read(ticks)
    overloaded = memory(pid)
    one = [json.loads(body)["instances"][0] for body in bodies[:32]]
    large = [json.dumps({"instances": one}).encode()]
    flood = asyncio.create_task(load(url, large, arguments.clients, min(30.0, arguments.seconds)))
    during = overloaded
    while not flood.done():
        await asyncio.sleep(0.5)
        during = max(during, memory(pid))
    flooded = await flood
    return {
        "callers that it sheds at": callers,
        "ticks": counted_after - counted,
        "late by less than 50 ms": 1 - (late_after - late) / max(counted_after - counted, 1),
        "answered a second": busy.statuses[200] / arguments.seconds,
        "shed": busy.statuses[429],
        "other statuses": busy.statuses.total() - busy.statuses[200] - busy.statuses[429],
        "MiB before": before,
        "MiB at twice the callers": overloaded,
        "MiB at ten times the places, most": during,
        "bodies of 32 answered": flooded.statuses[200],
        "bodies of 32 shed": flooded.statuses[429],
    }


if __name__ == "__main__":
    main()
