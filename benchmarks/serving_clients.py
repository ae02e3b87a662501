"""What one client can take from the others: ``python -m benchmarks.serving_clients BUNDLE --features FEATURES``.

A recommender in a process of its own, as an operator starts it, and callers in this one, each from an address of its
own (127.0.0.N). First without and then with one client that sends bodies full of new phrases without pause: 32
requests of 12 phrases of 195 characters, 75 kB. Meanwhile 16 others ask plainly five times a second, and one asks once
a second with one phrase that is new. The table shows, of the others' requests, the share answered within the deadline
and by which path, with p50 and p99 in milliseconds as the callers see them; and the share of the new phrases that were
used rather than left out. Before all of that, as soon as the server is ready, one caller asks the TRM with a new phrase
and again with others, and ``first`` is what the first took over the median of the later ones. Run it at another commit
to compare: answers without ``left_out`` count as used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.serving import Connection, Tally, count, free_port, requests, serving
from deeprec.bundle.bundle import Bundle
from deeprec.types import JsonDict

PATH = "/v1/models/deeprec:predict"
OTHERS, RATE = 16, 5.0
LATER = 20
"""New phrases after the first, to compare it with."""
PAUSE_SECONDS = 1.0
"""Before each of them, the first one too: it comes to a server that has just idled, and what comes after idling takes
longer than what comes at once after another, by a factor of four on a virtual machine."""
INSTANCES, PHRASES, LENGTH = 32, 12, 195


class From(Connection):
    """A connection from one of this machine's addresses."""

    def __init__(self, url: str, path: str, source: str) -> None:
        super().__init__(url, path)
        self._source = source

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, where it is not connected."""
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection(*self._address, local_addr=(self._source, 0))
        return self._streams


def hostile(generator: random.Random) -> bytes:
    """A body of new phrases only."""

    def phrase() -> str:
        return " ".join(generator.randbytes(3).hex() for _ in range(LENGTH // 7))

    asked = [{"history": [], "preference": [phrase() for _ in range(PHRASES)], "k": 5} for _ in range(INSTANCES)]
    return json.dumps({"instances": asked}).encode()


async def every(seconds: float, interval: float, offset: float, ask: Callable[[], Awaitable[None]]) -> None:
    """Call ``ask`` at a steady rate, each after the last has been answered."""
    began = time.perf_counter() + offset
    for number in range(int((seconds - offset) / interval)):
        await asyncio.sleep(max(0.0, began + number * interval - time.perf_counter()))
        await ask()


async def measure(url: str, bodies: list[bytes], seconds: float, deadline_ms: int, *, attacked: bool) -> JsonDict:
    """Figures of ``seconds`` seconds."""
    generator, tally = random.Random(0), Tally(seconds)
    used: list[bool] = []
    sent: list[int] = []

    def plain(number: int) -> Callable[[], Awaitable[None]]:
        connection = From(url, PATH, f"127.0.0.{10 + number}")

        async def ask() -> None:
            began = time.perf_counter()
            status, answer = await connection.post(generator.choice(bodies))
            count(tally, 1000 * (time.perf_counter() - began), status, answer)

        return ask

    novel = From(url, PATH, "127.0.0.5")

    async def new_phrase() -> None:
        request = {**json.loads(generator.choice(bodies))["instances"][0], "preference": f"films of {uuid.uuid4()}"}
        status, answer = await novel.post(json.dumps({"instances": [request]}).encode())
        found = json.loads(answer)["predictions"][0] if status == 200 else {"path": ""}
        used.append(found["path"] in ("policy", "trm") and not found.get("left_out"))

    async def attack() -> None:
        connection = From(url, PATH, "127.0.0.6")
        while True:
            status, _ = await connection.post(hostile(generator))
            sent.append(status)
            if status == 429:
                await asyncio.sleep(0.05)

    attacker = asyncio.create_task(attack()) if attacked else None
    askers = [every(seconds, 1 / RATE, number / OTHERS / RATE, plain(number)) for number in range(OTHERS)]
    await asyncio.gather(*askers, every(seconds, 1.0, 0.5, new_phrase))
    if attacker is not None and not attacker.cancel():
        await attacker  # it ended too early: say why
    answered = max(len(tally.milliseconds), 1)
    times = sorted(tally.milliseconds)
    return {
        "requests": len(times),
        "within": sum(one <= deadline_ms for one in times) / answered,
        **{path: tally.paths[path] / answered for path in ("policy", "trm", "popularity")},
        "p50": times[len(times) // 2],
        "p99": times[int(0.99 * len(times))],
        "bodies": len(sent),
        "phrases": len(used),
        "used": sum(used) / max(len(used), 1),
    }


async def first_phrase(url: str, bodies: list[bytes]) -> JsonDict:
    """What the first new phrase takes, in milliseconds, what later ones take, and whether all were used."""
    generator, caller = random.Random(1), From(url, f"{PATH.removesuffix(':predict')}-trm:predict", "127.0.0.4")
    times: list[float] = []
    used = 0
    for _ in range(1 + LATER):
        await asyncio.sleep(PAUSE_SECONDS)
        request = {**json.loads(generator.choice(bodies))["instances"][0], "preference": f"films of {uuid.uuid4()}"}
        body = json.dumps({"instances": [request]}).encode()
        began = time.perf_counter()
        status, answer = await caller.post(body)
        times.append(1000 * (time.perf_counter() - began))
        used += status == 200 and not json.loads(answer)["predictions"][0].get("left_out")
    later = sorted(times[1:])[LATER // 2]
    return {"first": times[0] / later, "first_ms": times[0], "later_ms": later, "used": used / len(times)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--features", type=Path, help="feature store; random histories without one")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline-ms", type=int, default=1000)
    arguments = parser.parse_args()
    bodies = requests(Bundle.load(arguments.bundle), arguments.features)
    port = free_port()
    command = [sys.executable, "-c", "from deeprec.cli import main; main()", "serve", "recommender"]
    command += [str(arguments.bundle), *(["--features", str(arguments.features)] if arguments.features else [])]
    command += ["--port", str(port), "--deadline-ms", str(arguments.deadline_ms)]
    with serving(command, port) as (url, _):
        new = asyncio.run(first_phrase(url, bodies))
        print(
            f"{'new phrases':18} first {new['first']:.2f} of a later one "
            f"({new['first_ms']:.0f} ms, later {new['later_ms']:.0f} ms), used {new['used']:.1%}",
            flush=True,
        )
        for name, attacked in (("alone", False), ("beside the client", True)):
            work = measure(url, bodies, arguments.seconds, arguments.deadline_ms, attacked=attacked)
            shown = asyncio.run(work)
            figures = " ".join(
                f"{key} {value:.1%}"
                if key in ("within", "policy", "trm", "popularity", "used")
                else f"{key} {value:.0f}"
                for key, value in shown.items()
            )
            print(f"{name:18} {figures}", flush=True)


if __name__ == "__main__":
    main()
