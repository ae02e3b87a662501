"""Live history in both feature places: ``python -m benchmarks.feature_store``.

A generated dataset is published to a directory, and to a PostgreSQL and a Redis server that this starts (skipped where
they are not installed). Of each place: milliseconds of one user's history and of one event until it can be read, in
the middle and of the slowest hundredth; histories read and events accepted per second by one caller and by several at
once, and in bodies of a hundred; what an event of a user with a long history takes over one with a short one, in turns,
and the last hundred of one user's many events over its first hundred: both are 1 where accepting does not depend on
what is there. Of the cluster, beside them, Feast's own calls for the same: reading one view, writing one whole row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.postgres import PostgresServer, find_postgres
from deeprec.config import FeaturesConfig
from deeprec.data.dataset import write_dataset
from deeprec.features.events import EventWriter
from deeprec.features.place import FeaturePlace
from deeprec.features.places import open_place
from deeprec.features.publication import PublishedFeatures
from deeprec.features.publish import publish
from deeprec.wire.events import Event

BODY = 100
THREADS = 8
SHORT, START = 10, 1_000_000_000
Figures = dict[str, float]


def main() -> None:
    """Measure each place, print its figures."""
    arguments = _arguments()
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "dataset"
        _write(dataset, arguments.users, arguments.length)
        for kind in arguments.places:
            if kind == "cluster" and (shutil.which("redis-server") is None or find_postgres() is None):
                print("cluster: skipped, there is no redis-server or no PostgreSQL here")
                continue
            with _place(kind, Path(scratch)) as features:
                publish(dataset, features, Path(scratch) / f"{kind}-published")
                place = open_place(features)
                figures[kind] = measure(place, arguments.users, arguments.length, arguments.calls)
                place.close()
            print(f"{kind}, histories of {SHORT} to {arguments.length:,} items")
            for name, value in figures[kind].items():
                print(f"  {name:46} {value:10.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(place: FeaturePlace, users: int, length: int, calls: int) -> Figures:
    """The figures of one place: milliseconds, calls per second, and ratios."""
    published, writer = place.newest(), EventWriter(place)
    numbers = iter(range(10**9))

    def read(number: int) -> None:
        assert published.history(f"u{number % users}")

    def write(*user_ids: str) -> None:
        body = [Event(f"e{next(numbers)}", user, f"i{next(numbers) % length}") for user in user_ids]
        assert all(outcome.status == "accepted" for outcome in writer.write(body))

    def bodies(number: int) -> None:
        write(*(f"u{(number * BODY + one) % users}" for one in range(BODY)))

    read(0)
    write("u0")
    reads = [_spent(read, number) for number in range(calls)]
    events = [_spent(write, f"u{number % users}") for number in range(calls // 4)]
    turns = [(_spent(write, "long"), _spent(write, "short")) for _ in range(calls // 8)]
    many = [_spent(write, "busy") for _ in range(calls)]
    some = min(100, len(many) // 2)
    return {
        "read ms": statistics.median(reads) * 1e3,
        "read ms, p99": _p99(reads) * 1e3,
        "reads/s": _rate(read, 1, calls),
        f"reads/s, {THREADS} threads": _rate(read, THREADS, calls),
        "event ms": statistics.median(events) * 1e3,
        "event ms, p99": _p99(events) * 1e3,
        "events/s": _rate(lambda number: write(f"u{number % users}"), 1, calls // 4),
        f"events/s, {THREADS} threads": _rate(lambda number: write(f"u{number % users}"), THREADS, calls // 2),
        f"events/s, {BODY} in a body": BODY * _rate(bodies, 1, max(calls // 100, 3)),
        f"event of a history of {length:,} over of {SHORT}": statistics.median(long / short for long, short in turns),
        f"last {some} of {len(many):,} events of one user over first": statistics.median(many[-some:])
        / statistics.median(many[:some]),
        **(_feast(published, length, calls) if hasattr(published, "_rows") else {}),
    }


def _feast(published: PublishedFeatures, length: int, calls: int) -> Figures:
    """Feast's own calls: one view of one user read, one whole row of the longest history written."""
    import pandas as pd

    from deeprec.feature_repo import definitions  # type: ignore[import-not-found]

    store: Any = published._rows._published  # type: ignore[attr-defined]
    view, now = definitions.history_view(published.publication.name), datetime.now(UTC)
    row = {
        "user_id": ["written"],
        "item_ids": [[f"i{n}" for n in range(length)]],
        "timestamps": [list(range(length))],
        "interactions": [length],
        "logged": [0],
        "event_timestamp": pd.to_datetime([now], utc=True),
        "created": pd.to_datetime([now], utc=True),
    }
    frame = pd.DataFrame(row)

    def read(number: int) -> None:
        store.get_online_features([f"{view}:item_ids"], [{"user_id": f"u{number}"}]).to_dict()

    reads = [_spent(read, number) for number in range(calls // 4)]
    writes = [_spent(store.write_to_online_store, view, frame) for _ in range(max(calls // 40, 3))]
    return {
        "Feast: read ms": statistics.median(reads) * 1e3,
        "Feast: reads/s": _rate(read, 1, calls // 4),
        "Feast: whole row written, ms": statistics.median(writes) * 1e3,
    }


def _spent(work: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def _p99(spent: list[float]) -> float:
    return sorted(spent)[int(0.99 * (len(spent) - 1))]


def _rate(work: Callable[[int], None], threads: int, calls: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        return calls / _spent(lambda: list(pool.map(work, range(calls))))


def _write(dataset: Path, users: int, length: int) -> None:
    """Users with random histories, one with a short and one with a long one."""
    import polars as pl

    chosen, items = random.Random(0), [f"i{number}" for number in range(length)]
    histories = {f"u{number}": chosen.sample(items, chosen.randint(SHORT, min(length, 300))) for number in range(users)}
    histories |= {"short": items[:SHORT], "long": items, "busy": items[:SHORT]}
    rows = [(user, item, START + n) for user, history in histories.items() for n, item in enumerate(history)]
    interactions = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
    titles = pl.DataFrame({"item_id": items, "title": [f"Title {item}" for item in items]})
    write_dataset(
        dataset,
        interactions,
        titles,
        source="benchmark",
        time_unit="seconds",
        text_columns=(),
        year_column=None,
        policy_positions=1,
        repeats="all",
    )


@contextmanager
def _place(kind: str, scratch: Path) -> Iterator[FeaturesConfig]:
    """A place; its servers end with the context."""
    if kind == "directory":
        yield FeaturesConfig(path=f"{scratch}/directory")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(scratch)]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    postgres = PostgresServer()
    try:
        config = FeaturesConfig(
            place="cluster", database=postgres.make(), redis=f"127.0.0.1:{port}", offline=f"{scratch}/offline"
        )
        place = open_place(config)
        place.migrate()
        place.close()
        yield config
    finally:
        redis.kill()
        redis.wait()
        postgres.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.feature_store --calls 4000 --out feature_store.json",
    )
    parser.add_argument("--places", nargs="+", choices=("directory", "cluster"), default=["directory", "cluster"])
    parser.add_argument("--users", type=int, default=2000, help="users of the generated dataset")
    parser.add_argument("--length", type=int, default=5000, help="items of the longest history")
    parser.add_argument("--calls", type=int, default=2000, help="reads; events and the rest in proportion")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
