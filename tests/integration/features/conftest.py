"""Feature places of both kinds. Redis and PostgreSQL are real servers on free ports, with a password each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.postgres import PostgresServer, find_postgres
from deeprec.config import FeaturesConfig
from deeprec.data.dataset import write_dataset
from deeprec.features.place import FeaturePlace
from deeprec.features.places import open_place
from deeprec.features.publication import PublishedFeatures
from deeprec.features.publish import publish
from tests.services import PASSWORD, RedisServer

START = 1_000_000_000
"""2001: the first interaction of every user, a second before the next one."""
NOW = START + 500_000_000
HISTORIES = {"u1": ["b", "a", "c"], "u2": ["c", "b"], "ü/3": ["a"]}
CATALOGUE = ("a", "b", "c", "d")


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on the PATH; install the package redis-server to test the cluster place")
    os.environ["DEEPREC_TEST_REDIS"] = PASSWORD
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """The server, with no key in it."""
    redis_process.client.flushall()
    return redis_process


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if find_postgres() is None:
        pytest.skip("there is no PostgreSQL here; install the package postgresql to test the cluster place")
    server = PostgresServer()
    yield server
    server.close()


@dataclass
class Place:
    """Where a test publishes, and what."""

    path: Path
    addresses: dict[str, str] = field(default_factory=dict)
    _opened: list[FeaturePlace] = field(default_factory=list)

    @property
    def cluster(self) -> bool:
        return bool(self.addresses)

    def config(self, **changes: Any) -> FeaturesConfig:
        named = {"place": "cluster", **self.addresses} if self.cluster else {"path": str(self.path / "features")}
        return FeaturesConfig(**{**named, **changes})

    def open(self) -> FeaturePlace:
        """The place, opened anew as another process would."""
        self._opened.append(open_place(self.config()))
        return self._opened[-1]

    def close(self) -> None:
        for place in self._opened:
            place.close()

    def dataset(
        self,
        histories: dict[str, list[Any]] = HISTORIES,
        *,
        items: tuple[str, ...] = CATALOGUE,
        time_unit: str = "seconds",
        start: int = START,
        repeats: str = "all",
    ) -> Path:
        """A dataset; a history's element is an item, a second after the one before it, or (item, timestamp)."""
        rows = [
            (user, *(one if isinstance(one, tuple) else (one, start + n)))
            for user, history in histories.items()
            for n, one in enumerate(history)
        ]
        interactions = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
        catalogue = pl.DataFrame({"item_id": items, "title": [f"Title {item}" for item in items]})
        place = self.path / f"dataset-{len(list(self.path.glob('dataset-*')))}"
        write_dataset(
            place,
            interactions,
            catalogue,
            source="hand",
            time_unit=time_unit,
            text_columns=[],
            year_column=None,
            policy_positions=1,
            repeats=repeats,
        )
        return place

    def publish(self, dataset: Path | None = None, **changes: Any) -> dict[str, int]:
        return publish(dataset or self.dataset(), self.config(**changes), self.path / "published")

    def published(self, dataset: Path | None = None, **changes: Any) -> PublishedFeatures:
        """Publish, and open what was published."""
        self.publish(dataset, **changes)
        return self.open().newest()

    def history(self, user: str) -> tuple[str, ...] | None:
        """A user's history in the newest publication, read by one who opens it now."""
        return self.open().newest().history(user)


@pytest.fixture(params=["directory", "cluster"])
def place(request: pytest.FixtureRequest) -> Place:
    """A place of either kind; nothing is published yet."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def directory_place(tmp_path: Path) -> Iterator[Place]:
    """A place in a directory."""
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster_place(redis_server: RedisServer, postgres: PostgresServer, tmp_path: Path) -> Iterator[Place]:
    """A place in PostgreSQL and Redis, its tables made."""
    from deeprec.features.cluster import ClusterPlace

    os.environ["DEEPREC_TEST_DATABASE"] = postgres.make()
    named = {"database": "${DEEPREC_TEST_DATABASE}", "redis": redis_server.address}
    made = Place(tmp_path, {**named, "offline": str(tmp_path / "offline")})
    opened = made.open()
    assert isinstance(opened, ClusterPlace)
    opened.migrate()
    yield made
    made.close()


@pytest.fixture
def clock() -> Callable[[], float]:
    """A clock that stands still, long after the published histories."""
    return lambda: float(NOW)
