"""The log of accepted events: append-only, beside the published versions, and the one lock of all who write.

``PATH/events/events.db`` is a SQLite file, on the disk before ``append`` returns; an event's id is unique in it, and
its position, counted from 1, is the order of acceptance. Nothing is changed or removed, so what was accepted outlives
every publication. ``write_table`` copies it to a Parquet file with the columns that ``deeprec data import table``
reads.

The lock is held by one writer at a time, a server that accepts events or a publication that becomes current, whatever
online store they write to; it ends with its process. Limit: the directory must be on a file system whose locks hold
between those who write: a disk, or NFS 4 and the like between machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO

from deeprec.errors import FeatureError, StoreError

EVENTS = "events"
LOCK_SECONDS = 10.0
_DATABASE = "events.db"
_LOCK = "lock"
_TURN = "turn"
"""Held by the writer that is next, so that one that writes without a pause cannot take the lock again before it."""
_POLL_SECONDS = 0.005
_CHUNK = 500
_COLUMNS = "event_id, user_id, item_id, timestamp, rating, event"
_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    rating REAL,
    event TEXT
)
"""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An accepted interaction; ``timestamp`` in the dataset's time unit."""

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    rating: float | None = None
    event: str | None = None


class EventLog:
    """The log in the feature store's directory, made where there is none. Safe to use from several threads.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, features_path: str | Path) -> None:
        self._place = Path(features_path) / EVENTS
        self._thread = threading.Lock()
        with self._using():
            self._place.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self._place / _DATABASE, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = PERSIST")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(_TABLE)

    @contextlib.contextmanager
    def locked(self, wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Be the only writer, of all threads and processes, for as long as the context lasts.

        Raises:
            FeatureError: another one still writes after ``wait`` seconds.
            StoreError: the lock cannot be made.
        """
        until = time.monotonic() + wait
        if not self._thread.acquire(timeout=wait):
            raise self._busy(wait)
        try:
            with self._using():
                turn, lock = (self._place / _TURN).open("w"), (self._place / _LOCK).open("w")
            with lock:
                with turn:
                    for stream in (turn, lock):
                        while not self._alone(stream):
                            if time.monotonic() > until:
                                raise self._busy(wait)
                            time.sleep(_POLL_SECONDS)
                yield
        finally:
            self._thread.release()

    def append(self, events: Sequence[LoggedEvent]) -> int:
        """Keep events that are not in the log yet, all or none, and return the last one's position; in the lock only.

        Raises:
            StoreError: the disk refuses; nothing was kept.
        """
        with self._using():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(
                    f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", map(astuple, events)
                )
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        return self.end

    @property
    def end(self) -> int:
        """The position of the newest event, 0 of none."""
        with self._using():
            [(position,)] = self._database.execute("SELECT coalesce(max(position), 0) FROM events").fetchall()
        return int(position)

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Which of these ids are in the log."""
        found: set[str] = set()
        with self._using():
            for start in range(0, len(event_ids), _CHUNK):
                asked = event_ids[start : start + _CHUNK]
                marks = ", ".join("?" * len(asked))
                rows = self._database.execute(f"SELECT event_id FROM events WHERE event_id IN ({marks})", asked)
                found.update(event_id for (event_id,) in rows)
        return found

    def after(self, position: int, most: int) -> list[tuple[int, LoggedEvent]]:
        """At most ``most`` events behind a position, with their own, in order."""
        with self._using():
            rows = self._database.execute(
                f"SELECT position, {_COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?",
                (position, most),
            ).fetchall()
        return [(row[0], LoggedEvent(*row[1:])) for row in rows]

    def by_user(self, end: int) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Each user's (timestamp, item id) up to a position, in order of acceptance."""
        with self._using():
            rows = self._database.execute(
                "SELECT user_id, timestamp, item_id FROM events WHERE position <= ? ORDER BY user_id, position", (end,)
            )
            for user_id, events in groupby(rows, itemgetter(0)):
                yield user_id, [(timestamp, item_id) for _, timestamp, item_id in events]

    def close(self) -> None:
        """Close the file, when the thread that has the lock gives it back."""
        with self._thread:
            self._database.close()

    def _alone(self, stream: IO[str]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            with self._using():
                raise
        return True

    def _busy(self, wait: float) -> FeatureError:
        return FeatureError(f"{self._place} has been written by another for {wait:g} s; try again")

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"the log of events in {self._place} cannot be used ({error}); free space, make it writable, or put "
                f"back a copy that is whole"
            ) from error


def write_table(features_path: str | Path, out: str | Path) -> int:
    """Write the log of a feature store as a Parquet table of interactions; the number of rows.

    Columns: user_id, item_id, timestamp, rating, event, event_id, in order of acceptance.

    Raises:
        FeatureError: there is no log.
        StoreError: it cannot be read, or ``out`` cannot be written or is not named as a Parquet file.
    """
    import polars as pl

    if Path(out).suffix.lower() != ".parquet":
        raise StoreError(f"{out} is written as Parquet, which nobody would read by that name; end it in .parquet")
    if not (Path(features_path) / EVENTS / _DATABASE).is_file():
        raise FeatureError(f"{features_path} has accepted no events yet; name the directory of a feature store")
    log = EventLog(features_path)
    try:
        with log._using():
            table = pl.read_database(
                "SELECT user_id, item_id, timestamp, rating, event, event_id FROM events ORDER BY position",
                log._database,
                schema_overrides={"timestamp": pl.Int64, "rating": pl.Float32, "event": pl.String},
            )
    finally:
        log.close()
    try:
        table.write_parquet(out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error}; name another place or free space") from error
    return table.height
