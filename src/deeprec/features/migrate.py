"""Make a place's tables, or move them on to this version: the steps in ``migrations/``, taken by Alembic."""

from __future__ import annotations

from pathlib import Path

from deeprec.errors import FeatureError
from deeprec.features.database import VERSION, Database


def migrate(database: Database) -> tuple[str, str]:
    """Take the steps that are missing, all or none; the versions before ("none" of a new one) and after.

    Raises:
        FeatureError: the tables are of a newer deeprec.
        StoreError: the database cannot be written.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import inspect, text

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with database.writing() as connection:
        if database.is_server:  # one at a time; SQLite's file is locked already
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('deeprec features migrate'))"))
        before = MigrationContext.configure(connection).get_current_revision() or "none"
        if before.isdecimal() and int(before) > int(VERSION):
            raise FeatureError(
                f"the tables of {database.name} are of version {before}, this deeprec's is {VERSION}; install a newer "
                f"deeprec"
            )
        if before == "none" and inspect(connection).has_table("events"):
            before = "1"
        config.attributes["connection"] = connection
        command.upgrade(config, VERSION)
    return before, VERSION
