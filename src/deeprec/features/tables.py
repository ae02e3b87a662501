"""The tables of a feature place: the log of accepted events, its users, publications, and who was forgotten.

One definition for SQLite and PostgreSQL. ``migrations/`` makes and moves them on in the database of a place; a
publication of the directory place is a SQLite file of its own with the tables ``PUBLISHED``.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, Table, Text

_metadata = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up primary keys of this name only."""

EVENTS = Table(
    "events",
    _metadata,
    Column("position", _NUMBER, primary_key=True, autoincrement=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("user_id", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("rating", Float),
    Column("event", Text),
    Column("number", BigInteger, nullable=False),
    Index("events_of_user", "user_id", "number", unique=True),
    Index("events_by_time", "user_id", "timestamp"),
    sqlite_autoincrement=True,
)
"""``number`` counts a user's events from 1, in the order of acceptance; ``position`` all of them, with gaps."""

USERS = Table(
    "users",
    _metadata,
    Column("user_id", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("shown", BigInteger, nullable=False),
)
"""A user's row is its lock: who writes its events, or what is made of them, holds it. ``events`` is how many there are,
``shown`` how many of them the online store has."""

FORGOTTEN = Table(
    "forgotten",
    _metadata,
    Column("user", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
)
"""Users that no later training may read, as keyed hashes, and when they were forgotten (Unix seconds)."""

PLACE = Table("place", _metadata, Column("name", Text, primary_key=True), Column("key", Text, nullable=False))
"""One row: what tells this place's online rows from those of others, and the key of ``FORGOTTEN``'s hashes."""

PUBLICATIONS = Table(
    "publications",
    _metadata,
    Column("publication", Text, primary_key=True),
    Column("made", Text, nullable=False),
    Column("history_length", BigInteger, nullable=False),
    Column("time_unit", Text, nullable=False),
    Column("repeats", Text, nullable=False),
    Column("users", BigInteger, nullable=False),
    Column("items", BigInteger, nullable=False),
    Column("whole", Integer, nullable=False),
)
"""``whole`` is 0 while a publication is made or removed: nobody opens it, and what a killed process left is swept."""

PUBLISHED_USERS = Table(
    "published_users",
    _metadata,
    Column("publication", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("interactions", BigInteger, nullable=False),
    Column("last_timestamp", BigInteger, nullable=False),
)
"""Who was published; ``interactions`` before any limit."""

PUBLISHED_ITEMS = Table(
    "published_items",
    _metadata,
    Column("publication", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("phrases", Text, nullable=False),
)
"""``phrases`` as a JSON list."""

PUBLISHED_HISTORIES = Table(
    "published_histories",
    MetaData(),
    Column("user_id", Text, primary_key=True),
    Column("item_ids", Text, nullable=False),
    Column("timestamps", Text, nullable=False),
    Column("interactions", BigInteger, nullable=False),
    Column("logged", BigInteger, nullable=False),
)
"""Of the directory place alone, so that one row is a history: items and their times as JSON lists, and the counts."""

PUBLISHED = (PUBLICATIONS, PUBLISHED_USERS, PUBLISHED_ITEMS)
