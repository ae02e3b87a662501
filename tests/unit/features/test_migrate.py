"""A place's tables are moved on step by step with what is in them, and are what the code says they are."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deeprec.config import FeaturesConfig
from deeprec.errors import FeatureError
from deeprec.features.database import VERSION, Database, sqlite_url
from deeprec.features.directory import DirectoryPlace
from deeprec.features.log import LoggedEvent
from deeprec.features.migrate import migrate
from deeprec.features.places import forgotten_digest

FIRST = """
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
"""The log as version 0.1 made it."""


def database(place: Path) -> Database:
    return Database(sqlite_url(place / "events.db"), "the log", "free space")


def test_the_steps_make_what_the_tables_say(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from deeprec.features.tables import EVENTS

    made = database(tmp_path)
    assert migrate(made) == ("none", VERSION)
    with made.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, EVENTS.metadata)
    assert differences == []


def test_the_last_step_is_the_version(tmp_path: Path) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import deeprec.features.migrations as steps

    config = Config()
    config.set_main_option("script_location", str(Path(steps.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [VERSION]


def test_a_log_of_the_first_version_keeps_its_events(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    (tmp_path / "events").mkdir()
    with sqlite3.connect(tmp_path / "events" / "events.db") as old:
        old.execute(FIRST)
        rows = [("e1", "u", "a", 5), ("e2", "v", "b", 4), ("e3", "u", "c", 3)]
        old.executemany("INSERT INTO events (event_id, user_id, item_id, timestamp) VALUES (?, ?, ?, ?)", rows)
    with pytest.raises(FeatureError, match=r"are of version none, .*move them on with deeprec features migrate"):
        place.publications()
    assert forgotten_digest(FeaturesConfig(path=str(tmp_path))) == ""  # a run moves them on by itself
    assert place.publications() == []
    assert place.log.since(["u", "v"], [0, 0]) == [[(1, 5, "a"), (2, 3, "c")], [(1, 4, "b")]]
    with place.log.locked(["u"]) as users:
        users.append([LoggedEvent("e4", "u", "d", 9)])
    assert place.log.since(["u"], [2]) == [[(3, 9, "d")]]
    assert migrate(place.database) == ("2", "2")


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "events.db") as old:
        old.execute(FIRST)
        old.execute("CREATE TABLE forgotten (mine TEXT)")
    before = (tmp_path / "events.db").read_bytes()
    made = database(tmp_path)
    with pytest.raises(Exception, match="already exists"):
        migrate(made)
    made.close()
    assert (tmp_path / "events.db").read_bytes() == before
