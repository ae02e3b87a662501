"""Live history in both online stores: ``python -m benchmarks.feature_store``.

A generated dataset is published to SQLite and to a Redis server that this starts (skipped where ``redis-server`` is not
installed). Of each: the milliseconds of one user's history, of one event until it can be read, of 100 events of as many
users in one body; reads per second of several threads beside one; and a soak: reads with a write after every twentieth.

Of the soak, what the last thousand reads took over what the first thousand took, and the last hundred writes over the
first, as latency and as processor time of this process; and what a read of the soaked reader takes over one of a reader
opened after the soak, in turns. All are 1 where nothing slows down; the first also sees what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deeprec.config import DataConfig, FeaturesConfig, SampleConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.features.events import EventWriter
from deeprec.features.online import HistoryStore
from deeprec.features.store import publish
from deeprec.wire.events import Event

BETWEEN = 20
"""Reads for one write in the soak."""
BODY = 100
THREADS = 8


class Spent(NamedTuple):
    """What a call took: seconds on the clock, and of the processor."""

    seconds: float
    processor: float


def main() -> None:
    """Measure each store, print its figures."""
    arguments = _arguments()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "dataset"
        sample = SampleConfig(users=arguments.users, items=arguments.items, mean_history=arguments.length)
        ingest(DataConfig(sample=sample), 0, dataset)
        for online in arguments.stores:
            if online == "redis" and shutil.which("redis-server") is None:
                print("redis: skipped, there is no redis-server on the PATH")
                continue
            with _address(online, Path(scratch)) as address:
                features = FeaturesConfig(path=f"{scratch}/{online}", online=online, redis=address)
                publish(dataset, features, Path(scratch) / f"{online}-published")
                figures[online] = measure(Path(features.path), dataset, arguments.reads)
            _print(online, figures[online], arguments.reads)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(features: Path, dataset: Path, reads: int) -> dict[str, float]:
    """The figures of one store: milliseconds, reads per second, and ratios."""
    data = read_dataset(dataset)
    users, items = list(data.sequences), [item.item_id for item in data.catalogue.items]
    store, writer = HistoryStore(features), EventWriter(features)
    events = iter(range(10**9))

    def read(number: int) -> None:
        assert store.history(users[number % len(users)])

    def write(size: int = 1) -> None:
        body = [
            Event(str(n), users[n * 7 % len(users)], items[n * 13 % len(items)])
            for n in (next(events) for _ in range(size))
        ]
        assert all(outcome.status == "accepted" for outcome in writer.write(body))

    read(0)
    write()
    figures = {
        "read ms": _median(_spent(read, n) for n in range(500)) * 1e3,
        "write ms": _median(_spent(write) for _ in range(50)) * 1e3,
        f"write {BODY} ms": _median(_spent(write, BODY) for _ in range(5)) * 1e3,
        "reads/s, 1 thread": _rate(read, 1),
        f"reads/s, {THREADS} threads": _rate(read, THREADS),
    }
    read_spent, write_spent = [], []
    for number in range(reads):
        read_spent.append(_spent(read, number))
        if number % BETWEEN == 0:
            write_spent.append(_spent(write))
    fresh = HistoryStore(features)
    fresh.history(users[0])
    turns = [(_spent(read, n), _spent(fresh.history, users[n % len(users)])) for n in range(1000)]
    writer.close()
    return {
        **figures,
        **_last_over_first("1000 reads", read_spent, 1000),
        **_last_over_first("100 writes", write_spent, 100),
        "soaked over fresh reader": _median(soaked for soaked, _ in turns) / _median(new for _, new in turns),
    }


def _spent(work: Callable[..., object], *given: object) -> Spent:
    processor, start = time.process_time(), time.perf_counter()
    work(*given)
    return Spent(time.perf_counter() - start, time.process_time() - processor)


def _median(spent: Iterable[Spent]) -> float:
    return statistics.median(one.seconds for one in spent)


def _rate(read: Callable[[int], None], threads: int, reads: int = 2000) -> float:
    with ThreadPoolExecutor(threads) as pool:
        return reads / _spent(lambda: list(pool.map(read, range(reads)))).seconds


def _last_over_first(what: str, spent: list[Spent], most: int) -> dict[str, float]:
    count = min(most, len(spent) // 2)
    first, last = spent[:count], spent[-count:]
    processor = statistics.median(one.processor for one in last) / statistics.median(one.processor for one in first)
    return {f"last over first {what}": _median(last) / _median(first), f"the same, processor time ({what})": processor}


def _print(online: str, figures: dict[str, float], reads: int) -> None:
    print(f"{online}, soak of {reads:,} reads and {-(-reads // BETWEEN):,} writes")
    for name, value in figures.items():
        print(f"  {name:42} {value:10.2f}")


@contextmanager
def _address(online: str, scratch: Path) -> Iterator[str]:
    """The address of a server that ends with the context; empty for a store that needs none."""
    if online != "redis":
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(scratch)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.feature_store --reads 20000 --out feature_store.json",
    )
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "redis"), default=["sqlite", "redis"])
    parser.add_argument("--users", type=int, default=2000, help="users of the generated dataset")
    parser.add_argument("--items", type=int, default=1000, help="its items")
    parser.add_argument("--length", type=int, default=150, help="mean length of a history")
    parser.add_argument("--reads", type=int, default=20_000, help="reads of the soak")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
