"""Histories from a directory's SQLite files, as every recommendation reads them: by the driver alone.

A publication and the log of accepted events are read by one connection for each thread. The statements that change
something, which both places share, go through SQLAlchemy (``log``); the two that are made for every request do not, for
they took it ten times as long.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from deeprec.errors import FeatureError
from deeprec.features.database import WAIT_SECONDS
from deeprec.features.log import Logged

_CHUNK = 500


class HistoryRow(NamedTuple):
    """A user's published history, items and times as JSON lists."""

    item_ids: str
    timestamps: str
    interactions: int
    logged: int


class HistoryReader:
    """Reads a publication's file and a log's. Safe to use from several threads."""

    def __init__(self, publication: Path, log: Path) -> None:
        self._publication, self._log = publication, log
        self._open = threading.local()

    def published(self, user_ids: Sequence[str]) -> dict[str, HistoryRow]:
        """The published histories of those users who have one.

        Raises:
            FeatureError: the files cannot be read.
        """
        found: dict[str, HistoryRow] = {}
        with self._reading() as connection:
            for names in (user_ids[start : start + _CHUNK] for start in range(0, len(user_ids), _CHUNK)):
                asked = f"SELECT * FROM published_histories WHERE user_id IN ({', '.join('?' * len(names))})"
                for user, *row in connection.execute(asked, names):
                    found[user] = HistoryRow(*row)
        return found

    def accepted(self, user_ids: Sequence[str], after: Sequence[int]) -> dict[str, list[Logged]]:
        """The accepted events of those users who have some behind a number each, in the order of acceptance.

        Raises:
            FeatureError: the files cannot be read.
        """
        found: dict[str, list[Logged]] = {}
        least = dict(zip(user_ids, after, strict=True))
        with self._reading() as connection:
            for names in (user_ids[start : start + _CHUNK] for start in range(0, len(user_ids), _CHUNK)):
                asked = (
                    f"SELECT user_id, number, timestamp, item_id FROM log.events WHERE user_id IN "
                    f"({', '.join('?' * len(names))}) AND number > ? ORDER BY user_id, number"
                )
                for user, number, time, item in connection.execute(asked, (*names, min(map(least.__getitem__, names)))):
                    if number > least[user]:
                        found.setdefault(user, []).append((number, time, item))
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            if not hasattr(self._open, "connection"):
                self._open.connection = self._connected()
            yield self._open.connection
        except (sqlite3.Error, OSError) as error:
            raise FeatureError(
                f"the feature store at {self._publication} cannot be read ({error}); publish the features again"
            ) from error

    def _connected(self) -> sqlite3.Connection:
        publication, log = (f"file:{quote(str(path))}?mode=rw" for path in (self._publication, self._log))
        connection = sqlite3.connect(publication, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
        connection.execute("ATTACH ? AS log", (log,))
        return connection
