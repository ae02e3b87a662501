"""The place of one machine: a directory with SQLite files. Layout::

    events/events.db        the log of accepted events (tables.EVENTS, USERS, FORGOTTEN)
    publications/NAME.db    a publication, whole; written beside and renamed

An accepted event is a row of the log, on the disk before the writer returns, and there is nothing else to write:
whoever reads a history reads the log too. A writer that is killed has written all of its events or none. Limit: the
directory must be on a file system whose locks hold between those who write, as a disk's do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Collection, Sequence
from dataclasses import astuple
from datetime import datetime
from pathlib import Path

from deeprec.data.dataset import Dataset
from deeprec.errors import FeatureError, StoreError
from deeprec.features.database import Database, sqlite_url
from deeprec.features.history import UserHistory
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
from deeprec.features.sqlite_reading import HistoryReader, HistoryRow

EVENTS = Path("events") / "events.db"
PUBLICATIONS = "publications"
_CURE = "free space, make it writable, or put back a copy that is whole"
_CHUNK = 500
_ROWS = 2000

logger = logging.getLogger(__name__)


class DirectoryPlace(FeaturePlace):
    """The place in the directory ``path``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        file = self.path / EVENTS
        super().__init__(str(self.path), Database(sqlite_url(file), f"the log of events {file}", _CURE))
        self._open: dict[str, DirectoryPublication] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """See ``FeaturePlace.prepare``: the tables are made or moved on."""
        self.migrate()

    def migrate(self) -> tuple[str, str]:
        """See ``FeaturePlace.migrate``."""
        try:
            for folder in (self.path / EVENTS.parent, self.path / PUBLICATIONS):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write the feature store {self.path}: {error}; name another place") from error
        return migrate(self.database)

    def check(self) -> None:
        """See ``FeaturePlace.check``."""
        if not (self.path / EVENTS).is_file():
            raise FeatureError(
                f"no feature store at {str(self.path)!r}; run the pipeline, which publishes one, or name the directory "
                f"of one"
            )
        self.database.check()

    def publications(self) -> list[Publication]:
        """See ``FeaturePlace.publications``."""
        self.check_once()
        found = [one.publication for one in self._all()]
        return sorted(found, key=lambda one: (one.made, one.name), reverse=True)

    def open(self, name: str) -> DirectoryPublication:
        """See ``FeaturePlace.open``."""
        self.check_once()
        return self._publication(name)

    def build(self, publication: Publication, rows: Sequence[BaseRow], data: Dataset, ingested: datetime) -> None:
        """See ``FeaturePlace.build``."""
        folder = self.path / PUBLICATIONS
        draft = folder / f".{publication.name}-{uuid.uuid4().hex[:8]}"
        database = Database(sqlite_url(draft), f"the publication {draft}", "free space, and publish again")
        try:
            _write(database, publication, rows, data)
            database.close()
            os.replace(draft, folder / f"{publication.name}.db")
        except OSError as error:
            raise StoreError(f"cannot write the feature store {self.path}: {error}; free space") from error
        finally:
            database.close()
            _remove(draft)
        with self._lock:
            self._open.pop(publication.name, None)

    def known_items(self, item_ids: Collection[str]) -> set[str]:
        """See ``FeaturePlace.known_items``."""
        names = list(item_ids)
        found: set[str] = set()
        for one in self._all():
            found.update(name for name, item in zip(names, one.items(names), strict=True) if item is not None)
        return found

    def newest_times(self, user_ids: Collection[str]) -> dict[str, int]:
        """See ``FeaturePlace.newest_times``."""
        found: dict[str, int] = {}
        for one in self._all():
            for user, timestamp in one.newest_times(list(user_ids)).items():
                found[user] = max(timestamp, found.get(user, timestamp))
        return found

    def show(self, user_ids: Collection[str]) -> None:
        """See ``FeaturePlace.show``: readers read the log itself."""

    def show_rest(self) -> None:
        """See ``show``."""

    def show_again(self) -> None:
        """See ``show``."""

    def remove(self, name: str) -> None:
        """See ``FeaturePlace.remove``."""
        with self._lock:
            self._open.pop(name, None)
        try:
            _remove(self.path / PUBLICATIONS / f"{name}.db")
        except OSError as error:
            raise StoreError(f"cannot remove the publication {name} of {self.path}: {error}") from error

    def forget(self, user_id: str) -> dict[str, int]:
        """See ``FeaturePlace.forget``; the log first, so that no publication made meanwhile has the user again."""
        self.check()
        with self.log.locked([user_id]) as users:
            events = users.forget()
        return {"events": events, "publications": sum(one.forget(user_id) for one in self._all())}

    def close(self) -> None:
        """See ``FeaturePlace.close``."""
        super().close()
        with self._lock:
            for one in self._open.values():
                one.close()
            self._open.clear()

    def _all(self) -> list[DirectoryPublication]:
        try:
            names = sorted(file.stem for file in (self.path / PUBLICATIONS).glob("[!.]*.db"))
        except OSError as error:
            raise StoreError(f"the feature store {self.path} cannot be read: {error}") from error
        found = []
        for name in names:
            try:
                found.append(self._publication(name))
            except FeatureError as error:
                logger.warning("a publication is left out: %s", error)
        return found

    def _publication(self, name: str) -> DirectoryPublication:
        with self._lock:
            if name not in self._open:
                file = self.path / PUBLICATIONS / f"{name}.db"
                if not file.is_file():
                    raise FeatureError(
                        f"the feature store {self.path} has no publication {name!r}; name the place that the bundle "
                        f"was made with, or run its pipeline again"
                    )
                self._open[name] = DirectoryPublication(file, self.path / EVENTS)
            return self._open[name]


class DirectoryPublication(PublishedFeatures):
    """A publication in its SQLite file.

    Raises:
        FeatureError: the file is no whole publication.
    """

    def __init__(self, file: Path, log: Path) -> None:
        database = Database(sqlite_url(file), f"the publication {file}", "publish the features again")
        self._file, self._reader = file, HistoryReader(file, log)
        try:
            with database.reading() as connection:
                [publication] = read_publications(connection)
        except (StoreError, ValueError) as error:
            raise FeatureError(f"{file} is no whole publication; publish the features again") from error
        super().__init__(publication, database)

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """See ``PublishedFeatures.histories``; times are read of those alone who have new events."""
        rows = self._reader.published(user_ids)
        after = [rows[user].logged if user in rows else 0 for user in user_ids]
        changed = self._reader.accepted(user_ids, after)
        whole = dict(zip(changed, self.read(list(changed)), strict=True))
        found: list[tuple[str, ...] | None] = []
        for user in user_ids:
            history = whole.get(user)
            if history is not None:
                found.append(history.item_ids)
            else:
                found.append(tuple(json.loads(rows[user].item_ids)) if user in rows else None)
        return found

    def bases(self, user_ids: Sequence[str]) -> list[BaseHistory | None]:
        """See ``PublishedFeatures.bases``."""
        rows = self._reader.published(user_ids)
        return [_base(rows[user]) if user in rows else None for user in user_ids]

    def check(self) -> None:
        """See ``PublishedFeatures.check``."""
        if not self._file.is_file():
            raise FeatureError(f"{self._file} is gone; publish the features again")
        self.histories(["nobody"])

    def newest_times(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See ``FeaturePlace.newest_times``."""
        from sqlalchemy import select

        from deeprec.features.tables import PUBLISHED_USERS as users

        found: dict[str, int] = {}
        with self._database.reading() as connection:
            for start in range(0, len(user_ids), _CHUNK):
                asked = select(users.c.user_id, users.c.last_timestamp).where(
                    users.c.user_id.in_(user_ids[start : start + _CHUNK])
                )
                found.update(connection.execute(asked).all())
        return found

    def forget(self, user_id: str) -> bool:
        """Remove a user; whether it was there."""
        from sqlalchemy import delete

        from deeprec.features.tables import PUBLISHED_HISTORIES, PUBLISHED_USERS

        with self._database.writing() as connection:
            connection.execute(delete(PUBLISHED_HISTORIES).where(PUBLISHED_HISTORIES.c.user_id == user_id))
            gone = connection.execute(delete(PUBLISHED_USERS).where(PUBLISHED_USERS.c.user_id == user_id))
            return bool(gone.rowcount)

    def close(self) -> None:
        """See ``PublishedFeatures.close``."""
        self._database.close()

    def _parts(self, user_ids: Sequence[str]) -> list[tuple[BaseHistory | None, list[Logged]]]:
        bases = self.bases(user_ids)
        events = self._reader.accepted(user_ids, [0 if base is None else base.logged for base in bases])
        return [(base, events.get(user, [])) for user, base in zip(user_ids, bases, strict=True)]


def _base(row: HistoryRow) -> BaseHistory:
    history = UserHistory(tuple(json.loads(row.item_ids)), tuple(json.loads(row.timestamps)), row.interactions)
    return BaseHistory(history, row.logged)


def _write(database: Database, publication: Publication, rows: Sequence[BaseRow], data: Dataset) -> None:
    from sqlalchemy import insert

    from deeprec.features.tables import PUBLICATIONS as PUBLICATION
    from deeprec.features.tables import PUBLISHED, PUBLISHED_HISTORIES, PUBLISHED_ITEMS, PUBLISHED_USERS

    with database.writing() as connection:
        for table in (*PUBLISHED, PUBLISHED_HISTORIES):
            table.create(connection)
        for start in range(0, len(rows), _ROWS):
            chunk = rows[start : start + _ROWS]
            connection.execute(insert(PUBLISHED_USERS), [row.values(publication.name) for row in chunk])
            connection.execute(
                insert(PUBLISHED_HISTORIES),
                [
                    {
                        "user_id": row.user_id,
                        "item_ids": json.dumps(row.base.history.item_ids),
                        "timestamps": json.dumps(row.base.history.timestamps),
                        "interactions": row.base.history.interactions,
                        "logged": row.base.logged,
                    }
                    for row in chunk
                ],
            )
        if data.catalogue.items:
            connection.execute(insert(PUBLISHED_ITEMS), item_values(publication.name, data.catalogue))
        connection.execute(insert(PUBLICATION).values((*astuple(publication), 1)))


def _remove(file: Path) -> None:
    for name in (file, file.with_name(f"{file.name}-journal")):
        with contextlib.suppress(FileNotFoundError):
            name.unlink()
