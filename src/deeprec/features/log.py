"""The log of accepted events, which is the truth: histories are what a publication holds and what the log has since.

An event's id is unique in it, its ``number`` counts the user's events in the order of acceptance, and what was
accepted outlives every publication. A user's row in ``users`` is its lock: whoever writes its events, or makes
something of them, holds it until the transaction ends, on PostgreSQL of this row alone, on SQLite of the whole file.
``write_table`` copies the log to a Parquet file with the columns that ``deeprec data import table`` reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deeprec.errors import StoreError
from deeprec.features.database import Database

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import Connection

_CHUNK = 500
"""Values in one statement at most."""
_ATTEMPTS = 20

Value = TypeVar("Value")
Logged = tuple[int, int, str]
"""An event as a history needs it: its number among the user's, its timestamp, its item."""


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
    """The log in a place's database. Safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextlib.contextmanager
    def locked(self, user_ids: Collection[str], *, new: bool = True) -> Iterator[LockedUsers]:
        """Be the only writer of these users for as long as the context lasts; it ends well, or nothing was written.

        Users of whom there is nothing yet get a row where they may be ``new``, and are left out else: one who was
        forgotten a moment ago leaves no name behind.

        Raises:
            StoreError: the database cannot be written, or others hold it all the time.
        """
        with self.database.writing() as connection:
            yield LockedUsers(connection, *self._lock(connection, sorted(user_ids), new))

    def since(self, user_ids: Sequence[str], after: Sequence[int]) -> list[list[Logged]]:
        """Each user's events behind a number, in the order of acceptance.

        Raises:
            StoreError: the database cannot be read.
        """
        from sqlalchemy import select

        from deeprec.features.tables import EVENTS

        found: dict[str, list[Logged]] = {}
        columns = (EVENTS.c.user_id, EVENTS.c.number, EVENTS.c.timestamp, EVENTS.c.item_id)
        with self.database.reading() as connection:
            for start in range(0, len(user_ids), _CHUNK):
                names = user_ids[start : start + _CHUNK]
                least = min(after[start : start + _CHUNK])
                asked = select(*columns).where(EVENTS.c.user_id.in_(names), EVENTS.c.number > least)
                for user, *event in connection.execute(asked.order_by(EVENTS.c.user_id, EVENTS.c.number)):
                    found.setdefault(user, []).append((event[0], event[1], event[2]))
        return [
            [event for event in found.get(user, ()) if event[0] > number]
            for user, number in zip(user_ids, after, strict=True)
        ]

    def by_user(self) -> Iterator[tuple[str, list[Logged]]]:
        """Each user's events, in the order of acceptance, as they are now."""
        from sqlalchemy import select

        from deeprec.features.tables import EVENTS

        columns = (EVENTS.c.user_id, EVENTS.c.number, EVENTS.c.timestamp, EVENTS.c.item_id)
        with self.database.reading() as connection:
            rows = connection.execution_options(yield_per=10_000).execute(
                select(*columns).order_by(EVENTS.c.user_id, EVENTS.c.number)
            )
            for user_id, events in groupby(rows, itemgetter(0)):
                yield user_id, [(number, timestamp, item) for _, number, timestamp, item in events]

    def not_shown(self, most: int) -> list[str]:
        """At most ``most`` users of whom the online store has fewer events than the log."""
        from sqlalchemy import select

        from deeprec.features.tables import USERS

        with self.database.reading() as connection:
            asked = select(USERS.c.user_id).where(USERS.c.shown < USERS.c.events).order_by(USERS.c.user_id).limit(most)
            return list(connection.execute(asked).scalars())

    def show_again(self) -> None:
        """Let every user count as one whose events the online store does not have: it has lost them."""
        from sqlalchemy import update

        from deeprec.features.tables import USERS

        with self.database.writing() as connection:
            connection.execute(update(USERS).values(shown=0))

    def forgotten(self, user_ids: Iterable[str]) -> set[str]:
        """Which of these users are forgotten: no later training may read them."""
        from sqlalchemy import select

        from deeprec.features.tables import PLACE

        hashes = self.forgotten_hashes()
        if not hashes:
            return set()
        with self.database.reading() as connection:
            key = connection.execute(select(PLACE.c.key)).scalar_one()
        return {user for user in user_ids if _hash(key, user) in hashes}

    def forgotten_hashes(self) -> set[str]:
        """What stands for the users who are forgotten."""
        from sqlalchemy import select

        from deeprec.features.tables import FORGOTTEN

        with self.database.reading() as connection:
            return set(connection.execute(select(FORGOTTEN.c.user)).scalars())

    def _lock(
        self, connection: Connection, user_ids: Sequence[str], new: bool
    ) -> tuple[dict[str, int], dict[str, int]]:
        """How many events each user has, and how many of them are shown, its row locked until the transaction ends.

        New rows first, then all of them in one order, so that nobody waits for somebody who waits for him.
        """
        from sqlalchemy import select

        from deeprec.features.tables import USERS

        if self.database.is_server:
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        events: dict[str, int] = {}
        shown: dict[str, int] = {}
        for start in range(0, len(user_ids), _CHUNK):
            wanted = list(user_ids[start : start + _CHUNK])
            for _ in range(_ATTEMPTS):
                if new:
                    rows = [{"user_id": user, "events": 0, "shown": 0} for user in wanted]
                    connection.execute(insert(USERS).on_conflict_do_nothing(), rows)
                asked = select(USERS).where(USERS.c.user_id.in_(wanted)).order_by(USERS.c.user_id).with_for_update()
                for user, count, seen in connection.execute(asked):
                    events[user], shown[user] = count, seen
                wanted = [user for user in wanted if user not in events]  # forgotten while this one waited
                if not (new and wanted):
                    break
            else:
                raise StoreError(f"{self.database.name}: user {wanted[0]!r} is forgotten all the time; try again")
        return events, shown


class LockedUsers:
    """Users whose events nobody else writes, within one transaction.

    ``events`` is how many each has, ``shown`` how many of them the online store has.
    """

    def __init__(self, connection: Connection, events: dict[str, int], shown: dict[str, int]) -> None:
        self.connection, self.events, self.shown = connection, events, shown

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Which of these ids are in the log."""
        from sqlalchemy import select

        from deeprec.features.tables import EVENTS

        found: set[str] = set()
        for names in _chunks(event_ids):
            asked = select(EVENTS.c.event_id).where(EVENTS.c.event_id.in_(names))
            found.update(self.connection.execute(asked).scalars())
        return found

    def newest(self) -> dict[str, int]:
        """The newest timestamp of each user's events; a user of none is left out."""
        from sqlalchemy import func, select

        from deeprec.features.tables import EVENTS, USERS

        # one seek in the index for each user; grouped, it would be a scan of all their events
        mine = select(func.max(EVENTS.c.timestamp)).where(EVENTS.c.user_id == USERS.c.user_id).scalar_subquery()
        found: dict[str, int] = {}
        for names in _chunks(self.events):
            rows = self.connection.execute(select(USERS.c.user_id, mine).where(USERS.c.user_id.in_(names)))
            found.update({user: newest for user, newest in rows if newest is not None})
        return found

    def append(self, events: Sequence[LoggedEvent]) -> None:
        """Keep events of these users, whose ids the log does not have."""
        from sqlalchemy import bindparam, insert, update

        from deeprec.features.tables import EVENTS, USERS

        if not events:
            return
        rows: list[dict[str, Any]] = []
        for event in events:
            self.events[event.user_id] += 1
            rows.append({**asdict(event), "number": self.events[event.user_id]})
        self.connection.execute(insert(EVENTS), rows)
        self.connection.execute(
            update(USERS).where(USERS.c.user_id == bindparam("user")).values(events=bindparam("count")),
            [{"user": user, "count": self.events[user]} for user in sorted({event.user_id for event in events})],
        )

    def since(self, after: dict[str, int]) -> dict[str, list[Logged]]:
        """The events of some of these users behind a number each, in the order of acceptance."""
        from sqlalchemy import and_, or_, select

        from deeprec.features.tables import EVENTS

        found: dict[str, list[Logged]] = {user: [] for user in after}
        columns = (EVENTS.c.user_id, EVENTS.c.number, EVENTS.c.timestamp, EVENTS.c.item_id)
        for names in _chunks(after):
            wanted = or_(*(and_(EVENTS.c.user_id == name, EVENTS.c.number > after[name]) for name in names))
            asked = select(*columns).where(wanted).order_by(EVENTS.c.user_id, EVENTS.c.number)
            for user, number, timestamp, item in self.connection.execute(asked):
                found[user].append((number, timestamp, item))
        return found

    def mark_shown(self, user_ids: Iterable[str]) -> None:
        """Say that the online store has all of these users' events."""
        from sqlalchemy import update

        from deeprec.features.tables import USERS

        for names in _chunks(user_ids):
            self.connection.execute(update(USERS).where(USERS.c.user_id.in_(names)).values(shown=USERS.c.events))

    def forget(self) -> int:
        """Remove these users' events and rows, and keep them from later trainings; the number of events."""
        from sqlalchemy import delete, func, select

        from deeprec.features.tables import EVENTS, FORGOTTEN, PLACE, USERS

        key = self.connection.execute(select(PLACE.c.key)).scalar_one()
        removed = 0
        for user in self.events:
            hashed = _hash(key, user)
            mine = EVENTS.c.user_id == user
            removed += self.connection.execute(select(func.count()).select_from(EVENTS).where(mine)).scalar_one()
            self.connection.execute(delete(EVENTS).where(mine))
            self.connection.execute(delete(USERS).where(USERS.c.user_id == user))
            self.connection.execute(delete(FORGOTTEN).where(FORGOTTEN.c.user == hashed))
            self.connection.execute(FORGOTTEN.insert().values(user=hashed, at=int(time.time())))
        return removed


def read_table(log: EventLog) -> pl.DataFrame:
    """A log as interactions: user_id, item_id, timestamp, rating, event, event_id, in order of acceptance.

    Raises:
        StoreError: it cannot be read.
    """
    import polars as pl
    from sqlalchemy import select

    from deeprec.features.tables import EVENTS

    names = ("user_id", "item_id", "timestamp", "rating", "event", "event_id")
    types = dict.fromkeys(names, pl.String) | {"timestamp": pl.Int64, "rating": pl.Float32}
    with log.database.reading() as connection:
        rows = connection.execute(select(*(EVENTS.c[name] for name in names)).order_by(EVENTS.c.position))
        return pl.DataFrame(list(rows), schema=types, orient="row")


def position(log: EventLog) -> str:
    """What changes with every event that is accepted or removed; empty while there is none.

    Raises:
        StoreError: it cannot be read.
    """
    from sqlalchemy import func, select

    from deeprec.features.tables import EVENTS

    with log.database.reading() as connection:
        last, number = connection.execute(select(func.max(EVENTS.c.position), func.count())).one()
    return f"events-{last}-{number}" if number else ""


def write_table(log: EventLog, out: str | Path) -> int:
    """Write a log as a Parquet table of interactions, see ``read_table``; the number of rows.

    Raises:
        StoreError: it cannot be read, or ``out`` cannot be written or is not named as a Parquet file.
    """
    if Path(out).suffix.lower() != ".parquet":
        raise StoreError(f"{out} is written as Parquet, which nobody would read by that name; end it in .parquet")
    table = read_table(log)
    try:
        table.write_parquet(out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error}; name another place or free space") from error
    return len(table)


def _chunks(values: Iterable[Value]) -> Iterator[list[Value]]:
    left = iter(values)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk


def _hash(key: str, user_id: str) -> str:
    return hmac.digest(bytes.fromhex(key), user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]
