"""A place's rows in Redis, through Feast: its registry in the place's database, its online store in Redis.

All rows are of one Feast project, so that a user's published histories and accepted events are read by one call. Rows
of publications are written over what is there. Rows of events carry the number of their newest event as Feast's event
time: Feast drops a row that is not newer than the one it finds, so that a writer which was held up for longer than its
lock cannot put an older row over a newer one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deeprec.errors import FeatureError
from deeprec.features.feast_import import feature_store, open_store
from deeprec.features.history import UserHistory
from deeprec.features.log import Logged
from deeprec.features.publication import BaseHistory, BaseRow

_CHUNK = 500
_CONNECTION = {"socket_connect_timeout": 2, "socket_timeout": 2, "retry": "null"}
"""Parameters that a Redis address has unless it names them. A command that fails is not sent again: whoever waits for
it has a deadline, and a connection that the server closed is made again before a command is sent on it."""


class FeastRows:
    """The rows of the project ``project``. Safe to use from several threads.

    What Feast has read of its registry it keeps: one is opened for each publication that is read.

    Args:
        database: SQLAlchemy URL of the registry's database.
        redis: ``host:port``, with parameters.
        offline: where Parquet files lie.

    Raises:
        FeatureError: Feast refuses them.
    """

    def __init__(self, project: str, database: str, redis: str, offline: str) -> None:
        self._project, self._offline = project, offline
        self._settings = {
            "project": project,
            "provider": "local",
            "entity_key_serialization_version": 3,
            "registry": {
                "registry_type": "sql",
                "path": database,
                "cache_ttl_seconds": 0,
                "schema_mode": "verify",
                "sqlalchemy_config_kwargs": {"echo": False, "pool_pre_ping": True, "pool_size": 1},
            },
        }
        self._online = {"type": "redis", "connection_string": _connection(redis)}
        self._events, self._published = self._opened(skip_dedup=False), self._opened(skip_dedup=True)

    def define(self, publication: str, folder: str) -> None:
        """Tell Feast of a publication whose Parquet files lie in ``folder``.

        Raises:
            FeatureError: the registry cannot be written.
        """
        from deeprec.feature_repo import definitions  # type: ignore[import-not-found]

        with self._refusing("be told of a publication"):
            objects = [*definitions.events(self._offline), *definitions.publication(publication, folder)]
            whole = open_store({**self._settings, "online_store": self._online}, offline=True)
            whole.apply(objects)
            self._published.refresh_registry()

    def undefine(self, publication: str) -> None:
        """Let Feast forget a publication; no error where it knows of none."""
        from feast.errors import FeastObjectNotFoundException

        from deeprec.feature_repo import definitions

        registry, project = self._published.registry, self._project
        views = (definitions.history_view(publication), definitions.item_view(publication))
        with self._refusing("forget a publication"):
            for remove, names in (
                (registry.delete_feature_service, (definitions.service(publication),)),
                (registry.delete_feature_view, views),
                (registry.delete_data_source, tuple(f"{view}_source" for view in views)),
            ):
                for name in names:
                    with contextlib.suppress(FeastObjectNotFoundException):
                        remove(name, project)

    def write_histories(self, publication: str, rows: Sequence[BaseRow]) -> None:
        """Write users' published histories.

        Raises:
            FeatureError: Redis cannot be written; some rows may have been.
        """
        from deeprec.feature_repo import definitions

        histories = [row.base.history for row in rows]
        columns: dict[str, list[Any]] = {
            "user_id": [row.user_id for row in rows],
            "item_ids": [list(history.item_ids) for history in histories],
            "timestamps": [list(history.timestamps) for history in histories],
            "interactions": [history.interactions for history in histories],
            "logged": [row.base.logged for row in rows],
        }
        self._write(self._published, definitions.history_view(publication), columns, [datetime.now(UTC)] * len(rows))

    def write_items(self, publication: str, items: Sequence[tuple[str, str, tuple[str, ...]]]) -> None:
        """Write items: id, title, phrases; see ``write_histories``."""
        from deeprec.feature_repo import definitions

        columns: dict[str, list[Any]] = {
            "item_id": [item for item, _, _ in items],
            "title": [title for _, title, _ in items],
            "phrases": [list(phrases) for _, _, phrases in items],
        }
        self._write(self._published, definitions.item_view(publication), columns, [datetime.now(UTC)] * len(items))

    def show(self, counts: Mapping[str, int], events: Mapping[str, Sequence[Logged]]) -> None:
        """Write the rows of users' newest events, and those that have become full.

        Args:
            counts: how many events each user has.
            events: each user's, from the first of a row on to the newest.

        Raises:
            FeatureError: Redis cannot be written; some rows may have been.
        """
        from deeprec.feature_repo.definitions import SEGMENT  # type: ignore[import-not-found]

        newest: list[tuple[str, int, Sequence[Logged]]] = []
        full: list[tuple[str, int, Sequence[Logged]]] = []
        for user, logged in events.items():
            for start in range(0, len(logged), SEGMENT):
                row = logged[start : start + SEGMENT]
                segment = (row[0][0] - 1) // SEGMENT
                if len(row) == SEGMENT:
                    full.append((user, segment, row))
                if row[-1][0] == counts[user]:
                    newest.append((user, segment, row))
        for view, rows in (("user_event_segments", full), ("user_events", newest)):  # older rows before who names them
            for begin in range(0, len(rows), _CHUNK):
                some = rows[begin : begin + _CHUNK]
                columns: dict[str, list[Any]] = {
                    "user_id": [user for user, _, _ in some],
                    "events": [row[-1][0] for _, _, row in some],
                    "event_items": [[item for _, _, item in row] for _, _, row in some],
                    "event_timestamps": [[time for _, time, _ in row] for _, _, row in some],
                }
                if view == "user_event_segments":
                    columns["segment"] = [segment for _, segment, _ in some]
                times = [datetime.fromtimestamp(row[-1][0], UTC) for _, _, row in some]
                self._write(self._events, view, columns, times)

    def read(
        self, publication: str, user_ids: Sequence[str], *, events: bool = True
    ) -> list[tuple[BaseHistory | None, list[Logged]]]:
        """What was published of each user, and the user's events behind it.

        Raises:
            FeatureError: Redis cannot be read.
        """
        from deeprec.feature_repo import definitions

        view = definitions.history_view(publication)
        features = [f"{view}:{name}" for name in ("item_ids", "timestamps", "interactions", "logged")]
        if events:
            features += [f"user_events:{name}" for name in ("events", "event_items", "event_timestamps")]
        found: list[tuple[BaseHistory | None, list[Logged]]] = []
        older: dict[int, range] = {}
        for start in range(0, len(user_ids), _CHUNK):
            rows = self._read(features, [{"user_id": user} for user in user_ids[start : start + _CHUNK]])
            for row in rows:
                base = None
                if row["interactions"] is not None:
                    history = UserHistory(tuple(row["item_ids"]), tuple(row["timestamps"]), row["interactions"])
                    base = BaseHistory(history, row["logged"])
                logged = _logged(row) if events else []
                after = 0 if base is None else base.logged
                if logged and logged[0][0] > after + 1:
                    older[len(found)] = range(after // definitions.SEGMENT, (logged[0][0] - 1) // definitions.SEGMENT)
                found.append((base, [event for event in logged if event[0] > after]))
        for place, segments in older.items():
            base, newest = found[place]
            before = self._older(user_ids[place], segments)
            after = 0 if base is None else base.logged
            found[place] = base, [*(event for event in before if event[0] > after), *newest]
        return found

    def remove_histories(self, publication: str, user_ids: Iterable[str]) -> None:
        """Remove users' published rows; other publications' and events stay.

        Raises:
            FeatureError: Redis cannot be written.
        """
        from deeprec.feature_repo import definitions

        fields = ("item_ids", "timestamps", "interactions", "logged")
        self._remove_fields("user_id", user_ids, definitions.history_view(publication), fields)

    def remove_items(self, publication: str, item_ids: Iterable[str]) -> None:
        """Remove a publication's items; see ``remove_histories``."""
        from deeprec.feature_repo import definitions

        self._remove_fields("item_id", item_ids, definitions.item_view(publication), ("title", "phrases"))

    def ping(self) -> None:
        """
        Raises:
            FeatureError: Redis does not answer.
        """
        with self._refusing("be asked"):
            self._redis.ping()

    def forget(self, user_id: str, events: int) -> None:
        """Remove all that there is of a user with so many events.

        Raises:
            FeatureError: Redis cannot be written.
        """
        from deeprec.feature_repo.definitions import SEGMENT

        keys = [self._key({"user_id": user_id})]
        keys += [self._key({"segment": number, "user_id": user_id}) for number in range(-(-events // SEGMENT))]
        with self._refusing("be written"):
            self._redis.delete(*keys)

    def _older(self, user_id: str, segments: range) -> list[Logged]:
        names = ("events", "event_items", "event_timestamps")
        features = [f"user_event_segments:{name}" for name in names]
        rows = self._read(features, [{"user_id": user_id, "segment": segment} for segment in segments])
        if any(row["events"] is None for row in rows):
            raise FeatureError(
                f"the online store has lost events of user {user_id!r}; publish the features again, which writes them"
            )
        return [event for row in rows for event in _logged(row)]

    def _read(self, features: Sequence[str], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = [feature.partition(":")[2] for feature in features]
        with self._refusing("be read"):
            columns = self._published.get_online_features(features=list(features), entity_rows=asked).to_dict()
        return [{name: columns[name][row] for name in names} for row in range(len(asked))]

    def _write(self, store: Any, view: str, columns: Mapping[str, Sequence[Any]], times: Sequence[datetime]) -> None:
        if not times:
            return
        import pandas as pd

        moments = pd.to_datetime(list(times), utc=True)
        created = pd.to_datetime([datetime.now(UTC)] * len(times), utc=True)
        frame = pd.DataFrame({**columns, "event_timestamp": moments, "created": created})
        with self._refusing("be written"):
            store.write_to_online_store(view, frame)

    def _remove_fields(self, key: str, ids: Iterable[str], view: str, fields: Sequence[str]) -> None:
        from feast.infra.online_stores.helpers import _mmh3

        named = [*(_mmh3(f"{view}:{field}") for field in fields), f"_ts:{view}"]
        names = list(ids)
        with self._refusing("be written"):
            for start in range(0, len(names), _CHUNK):
                pipe = self._redis.pipeline(transaction=False)
                for name in names[start : start + _CHUNK]:
                    pipe.hdel(self._key({key: name}), *named)
                pipe.execute()

    def _key(self, entity: Mapping[str, str | int]) -> bytes:
        from feast.infra.online_stores.helpers import _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        values = [Value(int64_val=one) if isinstance(one, int) else Value(string_val=one) for one in entity.values()]
        key: bytes = _redis_key(self._project, EntityKey(join_keys=list(entity), entity_values=values), 3)
        return key

    @property
    def _redis(self) -> Any:
        return self._events._get_provider().online_store._get_client(self._events.config.online_store)

    def _opened(self, *, skip_dedup: bool) -> Any:
        with self._refusing("be opened"):
            store = open_store({**self._settings, "online_store": {**self._online, "skip_dedup": skip_dedup}})
            store.refresh_registry()  # now, so that reading needs Redis alone
            return store

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except FeatureError:
            raise
        except Exception as error:
            lines = str(error).splitlines() or [""]
            told = f"{type(error).__name__}: {lines[0][:200]}"
            raise FeatureError(
                f"the online store of the feature place cannot {what} ({told}); see that features.redis runs, can be "
                f"reached and takes writes, and that features.database does"
            ) from error


def make_registry(database: str) -> None:
    """Make Feast's tables in a database, where they are missing."""
    feature_store()
    from feast.infra.registry.sql import metadata
    from sqlalchemy import create_engine

    engine = create_engine(database)
    metadata.create_all(engine)
    engine.dispose()


def _logged(row: Mapping[str, Any]) -> list[Logged]:
    if row["events"] is None:
        return []
    first = row["events"] - len(row["event_items"]) + 1
    pairs = zip(row["event_timestamps"], row["event_items"], strict=True)
    return [(number, time, item) for number, (time, item) in enumerate(pairs, first)]


def _connection(address: str) -> str:
    named = {part.partition("=")[0] for part in address.split(",")}
    return ",".join([address, *(f"{key}={value}" for key, value in _CONNECTION.items() if key not in named)])
