"""The place of many machines: PostgreSQL, Redis through Feast, and Parquet files in a directory or on S3.

In the database are the log of accepted events (the truth), which publications there are and of which users and items,
and Feast's registry; in Redis what servers read. A publication's rows are written under its name and can be read when
its row in ``publications`` calls it whole. Accepted events are committed to the log and then put into
Redis by whoever holds their user's lock; ``users.shown`` says how far that has come, so that any writer does what a
killed one left. Nothing is locked but rows, and nothing is shared but these three.

Limit: Redis must not evict (``maxmemory-policy noeviction``). One that was emptied is noticed by a user that has to be
there; publishing again fills it.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import Any

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import FeatureError
from deeprec.features.database import Database, redis_address, server_url
from deeprec.features.feast_rows import FeastRows, make_registry
from deeprec.features.log import Logged
from deeprec.features.migrate import migrate
from deeprec.features.place import FeaturePlace
from deeprec.features.publication import (
    BaseHistory,
    BaseRow,
    Publication,
    PublishedFeatures,
    item_values,
    read_publications,
)
from deeprec.objects import open_objects

_CURE = "see that features.database runs, can be reached and lets this account in"
_CHUNK = 500
_ROWS = 2000
_SHOWN_TOGETHER = 200


class ClusterPlace(FeaturePlace):
    """The place that a configuration's ``database``, ``redis`` and ``offline`` name.

    Raises:
        ConfigError: an address cannot be read.
    """

    def __init__(self, features: FeaturesConfig) -> None:
        self._redis = redis_address(features.redis, "features.redis")
        self._offline = features.offline.rstrip("/")
        url = server_url(features.database, "features.database")
        host = url.rpartition("@")[2].partition("?")[0]
        super().__init__(f"the cluster place {host}", Database(url, f"the database {host}", _CURE))
        self._lock = threading.Lock()
        self._open: dict[str, ClusterPublication] = {}
        self._rows: FeastRows | None = None

    def migrate(self) -> tuple[str, str]:
        """Make the database's tables, or move them on: ours (the versions before and after) and Feast's.

        Raises:
            FeatureError: they are of a newer deeprec.
            StoreError: the database cannot be written.
        """
        found = migrate(self.database)
        with self.database.refusing():
            make_registry(self.database.address)
        return found

    def prepare(self) -> None:
        """See ``FeaturePlace.prepare``: the tables are made by ``deeprec features migrate`` alone."""
        self.check()

    def reach(self) -> None:
        """See ``FeaturePlace.reach``: the database, and Redis."""
        self.check()
        self._online().ping()

    def publications(self) -> list[Publication]:
        """See ``FeaturePlace.publications``."""
        self.check_once()
        with self.database.reading() as connection:
            return read_publications(connection)

    def unfinished(self) -> list[Publication]:
        """See ``FeaturePlace.unfinished``."""
        with self.database.reading() as connection:
            return read_publications(connection, whole=False)

    def open(self, name: str) -> ClusterPublication:
        """See ``FeaturePlace.open``."""
        with self._lock:
            if name not in self._open:
                found = [one for one in self.publications() if one.name == name]
                if not found:
                    raise FeatureError(
                        f"{self.name} has no publication {name!r}; name the place that the bundle was made with, or "
                        f"run its pipeline again"
                    )
                self._open[name] = ClusterPublication(found[0], self.database, self._new_rows())
            return self._open[name]

    def build(self, publication: Publication, rows: Sequence[BaseRow], data: Dataset, ingested: datetime) -> None:
        """See ``FeaturePlace.build``."""
        name, items = publication.name, data.catalogue.items
        self._mark(name, whole=False, new=publication)
        self._write_offline(publication, rows, data, ingested)
        online = self._new_rows()
        online.define(name, f"{self._offline}/{name}")
        with self._lock:
            self._rows = None  # which knew Feast's views as they were before
        self._record_rows(name, rows, data)  # before the rows: what is in Redis can always be removed
        for start in range(0, len(rows), _CHUNK):
            online.write_histories(name, rows[start : start + _CHUNK])
        for start in range(0, len(items), _CHUNK):
            some = items[start : start + _CHUNK]
            online.write_items(name, [(item.item_id, item.title, item.phrases) for item in some])
        self._mark(name, whole=True)

    def known_items(self, item_ids: Collection[str]) -> set[str]:
        """See ``FeaturePlace.known_items``."""
        from sqlalchemy import select

        from deeprec.features.tables import PUBLICATIONS, PUBLISHED_ITEMS

        found: set[str] = set()
        whole = select(PUBLICATIONS.c.publication).where(PUBLICATIONS.c.whole == 1)
        with self.database.reading() as connection:
            for names in _chunks(item_ids):
                asked = select(PUBLISHED_ITEMS.c.item_id).distinct()
                asked = asked.where(PUBLISHED_ITEMS.c.item_id.in_(names), PUBLISHED_ITEMS.c.publication.in_(whole))
                found.update(connection.execute(asked).scalars())
        return found

    def newest_times(self, user_ids: Collection[str]) -> dict[str, int]:
        """See ``FeaturePlace.newest_times``."""
        from sqlalchemy import func, select

        from deeprec.features.tables import PUBLISHED_USERS as users

        found: dict[str, int] = {}
        with self.database.reading() as connection:
            for names in _chunks(user_ids):
                asked = select(users.c.user_id, func.max(users.c.last_timestamp)).where(users.c.user_id.in_(names))
                found.update(connection.execute(asked.group_by(users.c.user_id)).all())
        return found

    def show(self, user_ids: Collection[str]) -> None:
        """See ``FeaturePlace.show``."""
        from deeprec.feature_repo.definitions import SEGMENT  # type: ignore[import-not-found]

        names = sorted(user_ids)
        for start in range(0, len(names), _SHOWN_TOGETHER):
            with self.log.locked(names[start : start + _SHOWN_TOGETHER], new=False) as users:
                behind = {user: shown for user, shown in users.shown.items() if shown < users.events[user]}
                if behind:
                    events = users.since({user: shown // SEGMENT * SEGMENT for user, shown in behind.items()})
                    self._online().show(users.events, events)
                    users.mark_shown(behind)

    def show_rest(self) -> None:
        """See ``FeaturePlace.show_rest``."""
        while users := self.log.not_shown(_SHOWN_TOGETHER):
            self.show(users)

    def show_again(self) -> None:
        """See ``FeaturePlace.show_again``."""
        self.log.show_again()
        self.show_rest()

    def remove(self, name: str) -> None:
        """See ``FeaturePlace.remove``: from Redis by the keys of what is recorded, so that no server is scanned."""
        from sqlalchemy import delete, select

        from deeprec.features.tables import PUBLICATIONS, PUBLISHED_ITEMS, PUBLISHED_USERS

        self._mark(name, whole=False)
        online = self._new_rows()
        with self.database.reading() as connection:
            for table, column, remove in (
                (PUBLISHED_USERS, PUBLISHED_USERS.c.user_id, online.remove_histories),
                (PUBLISHED_ITEMS, PUBLISHED_ITEMS.c.item_id, online.remove_items),
            ):
                ids = connection.execute(select(column).where(table.c.publication == name)).scalars()
                for some in _chunks(ids):
                    remove(name, some)
        online.undefine(name)
        offline = open_objects(self._offline)
        for file in offline.names(name):
            offline.remove(file.name)
        with self.database.writing() as connection:
            for table in (PUBLISHED_USERS, PUBLISHED_ITEMS, PUBLICATIONS):
                connection.execute(delete(table).where(table.c.publication == name))

    def forget(self, user_id: str) -> dict[str, int]:
        """See ``FeaturePlace.forget``: all of it with the user's lock held, the database's part committed last."""
        import polars as pl
        from sqlalchemy import delete, select

        from deeprec.feature_repo.definitions import USER_HISTORY_FILE
        from deeprec.features.tables import PUBLISHED_USERS as published

        with self.log.locked([user_id]) as users:
            mine = published.c.user_id == user_id
            names = list(users.connection.execute(select(published.c.publication).where(mine)).scalars())
            self._online().forget(user_id, users.events[user_id])
            offline = open_objects(self._offline)
            with tempfile.TemporaryDirectory(prefix="deeprec-forget-") as work:
                file = Path(work) / USER_HISTORY_FILE
                for name in names:
                    if offline.read(f"{name}/{USER_HISTORY_FILE}") is not None:
                        offline.get(f"{name}/{USER_HISTORY_FILE}", file)
                        pl.read_parquet(file).filter(pl.col("user_id") != user_id).write_parquet(file)
                        offline.put(f"{name}/{USER_HISTORY_FILE}", file)
            users.connection.execute(delete(published).where(mine))
            return {"events": users.forget(), "publications": len(names)}

    def close(self) -> None:
        """See ``FeaturePlace.close``."""
        super().close()
        with self._lock:
            self._open.clear()
            self._rows = None

    def _online(self) -> FeastRows:
        """Rows of events, through a Feast that was opened once."""
        with self._lock:
            if self._rows is None:
                self._rows = self._new_rows()
            return self._rows

    def _new_rows(self) -> FeastRows:
        from sqlalchemy import select

        from deeprec.features.tables import PLACE

        with self.database.reading() as connection:
            name = connection.execute(select(PLACE.c.name)).scalar_one()
        return FeastRows(f"deeprec_{name}", self.database.address, self._redis, self._offline)

    def _mark(self, name: str, *, whole: bool, new: Publication | None = None) -> None:
        """Say whether a publication is whole: it is opened while it is. A ``new`` one takes the place of one there."""
        from sqlalchemy import delete, insert, update

        from deeprec.features.tables import PUBLICATIONS

        with self._lock:
            self._open.pop(name, None)
        mine = PUBLICATIONS.c.publication == name
        with self.database.writing() as connection:
            if new is not None:
                connection.execute(delete(PUBLICATIONS).where(mine))
                connection.execute(insert(PUBLICATIONS).values((*astuple(new), int(whole))))
            else:
                connection.execute(update(PUBLICATIONS).where(mine).values(whole=int(whole)))

    def _record_rows(self, name: str, rows: Sequence[BaseRow], data: Dataset) -> None:
        from sqlalchemy import delete, insert

        from deeprec.features.tables import PUBLISHED_ITEMS, PUBLISHED_USERS

        with self.database.writing() as connection:
            for table in (PUBLISHED_USERS, PUBLISHED_ITEMS):
                connection.execute(delete(table).where(table.c.publication == name))
            for start in range(0, len(rows), _ROWS):
                values = [row.values(name) for row in rows[start : start + _ROWS]]
                connection.execute(insert(PUBLISHED_USERS), values)
            items = item_values(name, data.catalogue)
            for start in range(0, len(items), _ROWS):
                connection.execute(insert(PUBLISHED_ITEMS), items[start : start + _ROWS])

    def _write_offline(
        self, publication: Publication, rows: Sequence[BaseRow], data: Dataset, ingested: datetime
    ) -> None:
        from deeprec.feature_repo import definitions  # type: ignore[import-not-found]
        from deeprec.features.frames import history_frame, item_frame

        offline, made = open_objects(self._offline), datetime.fromisoformat(publication.made)
        with tempfile.TemporaryDirectory(prefix="deeprec-publish-") as work:
            for name, frame in (
                (definitions.USER_HISTORY_FILE, history_frame(rows, publication, ingested, made)),
                (definitions.ITEM_ATTRIBUTES_FILE, item_frame(data.catalogue, ingested, made)),
            ):
                frame.write_parquet(Path(work) / name)
                offline.put(f"{publication.name}/{name}", Path(work) / name)


class ClusterPublication(PublishedFeatures):
    """A publication whose rows are in Redis."""

    def __init__(self, publication: Publication, database: Database, rows: FeastRows) -> None:
        super().__init__(publication, database)
        self._rows = rows
        self._sample = self._shortest()

    def bases(self, user_ids: Sequence[str]) -> list[BaseHistory | None]:
        """See ``PublishedFeatures.bases``."""
        return [base for base, _ in self._rows.read(self.publication.name, user_ids, events=False)]

    def check(self) -> None:
        """See ``PublishedFeatures.check``."""
        self._parts(["nobody"])

    def _parts(self, user_ids: Sequence[str]) -> list[tuple[BaseHistory | None, list[Logged]]]:
        found = self._rows.read(self.publication.name, user_ids)
        if any(base is None for base, _ in found):
            self._find_out()
        return found

    def _find_out(self) -> None:
        """Whether somebody is unknown, or the online store has lost its rows: by a user that has to be there."""
        if self._sample is None or self._rows.read(self.publication.name, [self._sample], events=False)[0][0]:
            return
        self._sample = self._shortest()  # it may have been forgotten
        if self._sample is None or self._rows.read(self.publication.name, [self._sample], events=False)[0][0]:
            return
        raise FeatureError(
            f"the online store has lost publication {self.publication.name} (was it started again without its data, or "
            f"did it run out of memory?); publish the features again"
        )

    def _shortest(self) -> str | None:
        from sqlalchemy import select

        from deeprec.features.tables import PUBLISHED_USERS as users

        asked = select(users.c.user_id).where(users.c.publication == self.publication.name)
        with self._database.reading() as connection:
            return connection.execute(asked.order_by(users.c.interactions, users.c.user_id).limit(1)).scalar()


def _chunks(values: Any) -> Iterator[list[Any]]:
    chunk = []
    for value in values:
        chunk.append(value)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
