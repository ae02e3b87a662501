"""A place's database: SQLite in a directory, or a server; its address, its version, and one way to say that it fails.

SQLAlchemy reads and writes both in the same words. A transaction on SQLite begins with the lock of the whole file, so
that two writers wait for one another instead of failing; on PostgreSQL rows are locked (``log``).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.errors import ConfigError, FeatureError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION = "2"
"""Of the tables, that this version of deeprec reads and writes: the last step in ``migrations/``."""
WAIT_SECONDS = 10
"""How long a writer waits for another before it gives up."""
_SERVERS = ("postgresql", "postgres")


class Database:
    """A place's database, opened at the first use. Safe to use from several threads.

    Args:
        address: a SQLAlchemy URL, as ``sqlite_url`` or ``server_url`` make it.
        name: how errors call it; it names no password.
        cure: what to do when it cannot be used.
    """

    def __init__(self, address: str, name: str, cure: str) -> None:
        self.address, self.name = address, name
        self._cure = cure
        self._engine: Any = None

    @property
    def is_server(self) -> bool:
        """Whether rows are locked, rather than the whole."""
        return not self.address.startswith("sqlite")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read by, in one transaction.

        Raises:
            StoreError: the database cannot be read.
        """
        with self.refusing(), self._connected().connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection whose transaction is committed when the context ends well, and else taken back.

        Raises:
            StoreError: the database cannot be written; nothing was.
        """
        from sqlalchemy import text

        with self.refusing(), self._connected().execution_options(writes=True).begin() as connection:
            if self.is_server:
                connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'"))
            yield connection

    def check(self) -> None:
        """
        Raises:
            FeatureError: its tables are not of this version; the sentence names the command that moves them on.
            StoreError: it cannot be read.
        """
        from sqlalchemy import inspect, text

        with self.reading() as connection:
            found = "none"
            if inspect(connection).has_table("alembic_version"):
                found = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "none")
        if found != VERSION:
            newer = found.isdecimal() and int(found) > int(VERSION)
            cure = "install a newer deeprec" if newer else "move them on with deeprec features migrate"
            raise FeatureError(f"the tables of {self.name} are of version {found}, this deeprec's is {VERSION}; {cure}")

    def close(self) -> None:
        """Let go of its connections."""
        if self._engine is not None:
            self._engine.dispose()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn what the database's driver raises into an error of ours."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            told = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
            raise StoreError(f"{self.name} cannot be used ({told[0][:200]}); {self._cure}") from error

    def _connected(self) -> Any:
        if self._engine is None:
            self._engine = _engine(self.address)
        return self._engine


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file}"


def server_url(text: str, key: str) -> str:
    """The URL of a server that a configuration names as ``text``, under ``key``; see ``resolved``.

    Raises:
        ConfigError: it is not the URL of a PostgreSQL server.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    told = resolved(text, key)
    try:
        url = make_url(told)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in _SERVERS or (not url.host and "host" not in url.query):
        raise ConfigError(f"{key} is not postgresql://USER:PASSWORD@HOST:PORT/NAME; correct it, or what it refers to")
    timeout = {"connect_timeout": "5", **{name: str(value) for name, value in url.query.items()}}
    return url.set(drivername="postgresql+psycopg").update_query_dict(timeout).render_as_string(hide_password=False)


def redis_address(text: str, key: str) -> str:
    """The address of a Redis that a configuration names as ``text``, under ``key``; see ``resolved``.

    Raises:
        ConfigError: it is not what Feast reads: hosts with ports, then parameters, with commas between.
    """
    told = resolved(text, key)
    hosts = [part for part in told.split(",") if "=" not in part]
    if not hosts or not all(re.fullmatch(r"[^\s:/]+:\d+", host) for host in hosts):
        raise ConfigError(f"{key} is not HOST:PORT, or HOST:PORT,password=…; correct it, or what it refers to")
    return told


def resolved(text: str, key: str) -> str:
    """An address as it is used: ``${NAME}`` from the environment, ``file:/path`` from a file's one line.

    Raises:
        ConfigError: a variable is not set or empty, or the file cannot be read or is empty; ``key`` is what names the
            address.
    """
    if text.startswith("file:"):
        place = Path(text.removeprefix("file:"))
        try:
            told = place.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{key} names the file {place}, which cannot be read ({error})") from error
        if not told:
            raise ConfigError(f"{key} names the file {place}, which is empty; write the address into it")
        return told
    for name in re.findall(r"\$\{(\w+)\}", text):
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not in the environment"
            raise ConfigError(f"{key} names the variable {name}, which {state}; set it")
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found[1]], text)


def _engine(address: str) -> Any:
    from sqlalchemy import create_engine, event

    if not address.startswith("sqlite"):
        return create_engine(address, pool_pre_ping=True, pool_size=8, max_overflow=24)
    engine = create_engine(address, connect_args={"timeout": WAIT_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.create_function("lower", 1, str.lower, deterministic=True)  # SQLite's own knows ASCII alone
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
