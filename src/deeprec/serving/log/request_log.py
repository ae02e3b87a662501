"""The request log: what was answered to whom, in Parquet files that are written whole or not at all.

``RequestLog`` observes the recommender's answers. Its caller is the event loop and never waits: rows gather in memory,
and a thread finishes a file when there are enough of them, at the latest every ``config.seconds``, and at ``close``.
What a killed process had not yet written is lost; what is there can always be read. At most twice ``config.rows`` rows
are held. While the disk refuses or is too slow, rows beyond that are dropped and counted, and the server goes on.

Users are kept as keyed hashes (``user_hash``) unless ``config.hash_ids`` is off. The same hash samples users,
so that all servers and days that share a directory keep the same ones. Histories and preferences are never kept.

Files are ``DAY/HHMMSS-….parquet``, by the UTC time of their first row; ``SCHEMA`` names the columns. Several processes
may write into one directory. Local paths only.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from deeprec.config import RequestLogConfig
from deeprec.errors import ConfigError, DataError, StoreError
from deeprec.serving.log.user_hash import own_hash, read_hash

if TYPE_CHECKING:
    import polars as pl

    from deeprec.recommender.observer import AnsweredRequest

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us", "UTC")),
        ("user", pa.string()),
        ("model", pa.string()),
        ("path", pa.string()),
        ("reason", pa.string()),
        ("shadow", pa.bool_()),
        ("items", pa.list_(pa.string())),
        ("trm_items", pa.list_(pa.string())),
        ("policy_items", pa.list_(pa.string())),
        ("milliseconds", pa.float64()),
        ("turns", pa.list_(pa.float64())),
        ("deadline_ms", pa.int64()),
        ("k", pa.int64()),
        ("version", pa.string()),
        ("request_id", pa.string()),
    ]
)
_AS_SERVED = tuple(name for name in SCHEMA.names if name not in ("at", "user", "reason"))
_LATER = ("request_id",)
"""Columns that files of earlier servers lack; they are read as null."""
_CHUNK = 500
"""Rows converted at a time: the interpreter's lock is held for some milliseconds, not for a whole file."""
_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 10.0
_ABANDONED_SECONDS = 3600.0


class RequestLog:
    """Keeps a sample of the answers given in ``config.path``; call it with each ``AnsweredRequest``, from any thread.

    ``written`` counts rows that are in finished files, ``dropped`` those that were given up.

    Raises:
        ConfigError: no directory is named.
        StoreError: the directory or its key cannot be made or read.
    """

    def __init__(self, config: RequestLogConfig) -> None:
        if not config.path:
            raise ConfigError("the request log has no directory; name one in serving.log.path or with --log")
        self._config = config
        self._directory = Path(config.path)
        self._hash = own_hash(self._directory)
        _remove_abandoned(self._directory)
        self.written = 0
        self.dropped = 0
        self._told = 0
        self._waiting: list[AnsweredRequest] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def __call__(self, served: AnsweredRequest) -> None:
        """Keep the answer if its user is sampled and there is room; never waits for the disk."""
        if not self._is_sampled(served.user_id):
            return
        with self._lock:
            room = not self._closed and len(self._waiting) < 2 * self._config.rows
            if room:
                self._waiting.append(served)
            else:
                self.dropped += 1
            full = room and len(self._waiting) == self._config.rows
            first_loss = not room and not self._closed and self.dropped == self._told + 1
        if full:
            self._wake.set()
        if first_loss:
            logger.warning("the request log's disk does not keep up; rows are dropped from now on")

    def close(self) -> None:
        """Write what waits and end; takes ten seconds at most. Later rows are dropped."""
        with self._lock:
            self._closed = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)
        with self._lock:
            self.dropped += len(self._waiting)
            self._waiting.clear()
        self._tell_losses()

    def _is_sampled(self, user_id: str | None) -> bool:
        if self._config.sample >= 1:
            return True
        share = random.random() if user_id is None else self._hash.share(user_id)
        return share < self._config.sample

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        seconds = self._config.seconds
        while not self._closed:
            full = self._wake.wait(min(_RETRY_SECONDS, seconds) if self._failing else seconds)
            self._wake.clear()
            least = self._config.rows if full else 1
            while len(self._waiting) >= least and self._finish_file():
                least = self._config.rows
        while self._waiting and self._finish_file():
            pass

    def _finish_file(self) -> bool:
        """Write the oldest rows; False when the disk refuses them, and they stay.

        Whatever else is wrong is wrong with the rows: they are dropped, and the thread goes on with the next.
        """
        with self._lock:
            rows = self._waiting[: self._config.rows]
        try:
            self._write(rows)
        except (OSError, StoreError) as error:
            if not self._failing:
                logger.error("the request log cannot be written to %s (%s); trying again", self._directory, error)
            self._failing = True
            return False
        except Exception:
            logger.exception("%d rows of the request log cannot be written and are dropped", len(rows))
            self._forget(rows, written=False)
            return True
        self._forget(rows, written=True)
        if self._failing:
            logger.warning("the request log is written to %s again", self._directory)
        self._failing = False
        self._tell_losses()
        return True

    def _forget(self, rows: Sequence[AnsweredRequest], *, written: bool) -> None:
        with self._lock:
            del self._waiting[: len(rows)]
            self.written += len(rows) if written else 0
            self.dropped += 0 if written else len(rows)

    def _tell_losses(self) -> None:
        with self._lock:
            lost, self._told = self.dropped - self._told, self.dropped
        if lost:
            logger.warning("%d rows of the request log were dropped, %d since the start", lost, self.dropped)

    def _write(self, rows: Sequence[AnsweredRequest]) -> None:
        self._hash = own_hash(self._directory, self._hash)
        chunks = [self._batch(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches(chunks, SCHEMA), buffer, compression="zstd")
        at = datetime.fromtimestamp(rows[0].at, UTC)
        place = self._directory / f"{at:%Y-%m-%d}" / f"{at:%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        _put(place, buffer.getvalue())

    def _batch(self, rows: Sequence[AnsweredRequest]) -> pa.RecordBatch:
        named = self._hash if self._config.hash_ids else _printable
        columns: dict[str, Sequence[Any]] = {
            "at": [datetime.fromtimestamp(row.at, UTC) for row in rows],
            "user": [None if row.user_id is None else named(row.user_id) for row in rows],
            "reason": [None if row.reason is None else row.reason.sentence for row in rows],
            **{name: [getattr(row, name) for row in rows] for name in _AS_SERVED},
        }
        return pa.RecordBatch.from_pydict(columns, SCHEMA)


def read_log(path: str | Path) -> pl.DataFrame:
    """All rows of a log, oldest first, with the columns of ``SCHEMA``.

    Args:
        path: the log's directory, one of its days, or one file.

    Raises:
        DataError: there is no log, or a file is none of a log.
    """
    import polars as pl

    place = Path(path)
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files:
        state = "holds no request log" if place.is_dir() else "does not exist"
        raise DataError(f"{place} {state}; let a server write one with deeprec serve recommender BUNDLE --log {place}")
    odd = next((file for file in files if not _is_of_log(file)), None)
    try:
        if odd is not None:
            raise OSError(f"{odd} has other columns")
        schema = pl.DataFrame(SCHEMA.empty_table()).schema
        scan = pl.scan_parquet(files, schema=schema, missing_columns="insert", hive_partitioning=False)
        rows = scan.select(SCHEMA.names).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{odd or place} is no file of a request log; name the log's own directory") from error
    return rows.sort("at", maintain_order=True)


def forget_user(path: str | Path, user_id: str) -> int:
    """Remove a user's rows from a log, by the hash and by the id; each file is rewritten whole, or left.

    A server that is running may still hold rows of the user, for ``config.seconds`` at most.

    Returns:
        How many rows were removed.

    Raises:
        DataError: there is no log, or a file is none of a log.
        StoreError: the key cannot be read, or a file cannot be written; the others may have been.
    """
    import pyarrow.compute as pc

    place = Path(path)
    if not place.is_dir():
        raise DataError(f"{place} is no directory of a request log; name the one that --log named")
    key = read_hash(place)
    names = pa.array([_printable(user_id), *([] if key is None else [key(user_id)])])
    removed = 0
    for file in sorted(place.rglob("*.parquet")):
        if not _is_of_log(file):
            raise DataError(f"{file} is no file of a request log; name the log's own directory")
        table = pq.read_table(file)
        kept = table.filter(pc.invert(pc.fill_null(pc.is_in(table["user"], value_set=names), False)))
        if kept.num_rows == table.num_rows:
            continue
        try:
            if kept.num_rows:
                buffer = pa.BufferOutputStream()
                pq.write_table(kept, buffer, compression="zstd")
                _put(file, buffer.getvalue())
            else:
                file.unlink()
        except OSError as error:
            raise StoreError(f"cannot write {file}: {error.strerror}; make it writable and forget again") from error
        removed += table.num_rows - kept.num_rows
    return removed


def _is_of_log(file: Path) -> bool:
    try:
        found = pq.read_schema(file)
    except (OSError, pa.ArrowException):
        return False
    return all(
        found.field(name).type == SCHEMA.field(name).type if name in found.names else name in _LATER
        for name in SCHEMA.names
    )


def _put(place: Path, content: Any) -> None:
    partial = place.with_name(f".{place.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, place)
    finally:
        with suppress(OSError):
            partial.unlink()


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed processes, of any machine, left half-written."""
    for partial in directory.glob("*/.*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink()


def _printable(user_id: str) -> str:
    """The id itself, what no file can hold replaced."""
    return user_id.encode("utf-8", "replace").decode()
