"""One published version of the feature store, open: Feast's online store as histories and items.

Beside the users' rows the view ``user_history`` has one under the empty id, which no user has: its ``interactions`` is
the position in the log of events up to which the rows hold them. It is pushed together with the rows and after them,
so whatever part of its newest writes an online store may lose, the position never says more than the rows hold.

Feast shares one SQLite connection between threads, so a lock serialises its use; Redis has a connection for each.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from deeprec.errors import FeatureError
from deeprec.features.feast_import import feature_store, online_only
from deeprec.features.history import UserHistory
from deeprec.features.settings import ONLINE, REGISTRY, SETTINGS, Publication, online_kind, read_publication

_CHUNK = 500
_LOG_ROW = ""


class Version:
    """A version in the directory ``path``, opened now. Safe to use from several threads.

    Raises:
        FeatureError: a file is missing, or Feast refuses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._remote = online_kind(path) == "redis"
        self._feast = _open(path, (SETTINGS, REGISTRY) if self._remote else (SETTINGS, REGISTRY, ONLINE))
        self._lock: AbstractContextManager[Any] = contextlib.nullcontext() if self._remote else threading.Lock()

    @cached_property
    def publication(self) -> Publication:
        """How this version was published.

        Raises:
            FeatureError: it does not say.
        """
        return read_publication(self.path)

    def item_ids(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """Each user's items, newest last; None for one who is not known.

        Raises:
            FeatureError: the store cannot be read, or has lost what was published.
        """
        rows = self._read("user_history", "user_id", user_ids, ("item_ids",))
        found = [
            None if user == _LOG_ROW or row["item_ids"] is None else tuple(row["item_ids"])
            for user, row in zip(user_ids, rows, strict=True)
        ]
        if self._remote and None in found:
            self.position()
        return found

    def histories(self, user_ids: Sequence[str]) -> list[UserHistory | None]:
        """Each user's history; None for one who is not known.

        Raises:
            FeatureError: the store cannot be read.
        """
        rows = self._read("user_history", "user_id", user_ids, ("item_ids", "timestamps", "interactions"))
        return [
            None
            if row["item_ids"] is None
            else UserHistory(tuple(row["item_ids"]), tuple(row["timestamps"]), row["interactions"])
            for row in rows
        ]

    def items(self, item_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Each item's ``title`` and ``phrases`` (a tuple); None for one that is not known.

        Raises:
            FeatureError: the store cannot be read.
        """
        found = self._read("item_attributes", "item_id", item_ids, ("title", "phrases"))
        return [
            None if row["title"] is None else {"title": row["title"], "phrases": tuple(row["phrases"] or ())}
            for row in found
        ]

    def position(self) -> int:
        """The position in the log of events up to which the histories hold them.

        Raises:
            FeatureError: the store cannot be read, or has lost what was published.
        """
        [row] = self._read("user_history", "user_id", [_LOG_ROW], ("interactions",))
        if row["interactions"] is None:
            raise FeatureError(
                f"the online store of {self.path} is empty (was it started again without its data, or did it run out "
                f"of memory?); publish the features again"
            )
        return int(row["interactions"])

    def push(self, histories: Mapping[str, UserHistory], position: int) -> None:
        """Put users' histories into the online store, in one push, and the position up to which they hold the log.

        Raises:
            FeatureError: the store cannot be written; some rows may have been, not the position.
        """
        import pandas as pd

        rows = {**histories, _LOG_ROW: UserHistory(interactions=position)}
        last = [history.timestamps[-1] if history.timestamps else 0 for history in rows.values()]
        now = datetime.now(UTC)
        ordered = self.publication.time_unit == "order"
        times = [now if ordered or not time else datetime.fromtimestamp(time, UTC) for time in last]
        frame = pd.DataFrame(
            {
                "user_id": list(rows),
                "item_ids": [list(history.item_ids) for history in rows.values()],
                "timestamps": [list(history.timestamps) for history in rows.values()],
                "interactions": [history.interactions for history in rows.values()],
                "last_timestamp": last,
                "event_timestamp": pd.to_datetime(times, utc=True),
                "created": pd.to_datetime([now] * len(rows), utc=True),
            }
        )
        from deeprec.feature_repo import definitions  # type: ignore[import-not-found]

        with self._lock, self._refusing("written"):
            self._feast.push(definitions.USER_HISTORY_PUSH, frame)

    def remove_rows(self) -> None:
        """Remove this version's rows from a server that other versions share; a file goes with its directory.

        Raises:
            FeatureError: the server cannot be reached.
        """
        if self._remote:
            with self._refusing("removed"):
                feature_store()(repo_path=str(self.path)).teardown()  # which asks the offline store too

    def _read(self, view: str, key: str, ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        features = [f"{view}:{name}" for name in names]
        for start in range(0, len(ids), _CHUNK):
            asked = [{key: one} for one in ids[start : start + _CHUNK]]
            with self._lock, self._refusing("read"):
                columns = self._feast.get_online_features(features=features, entity_rows=asked).to_dict()
            rows += [{name: columns[name][row] for name in names} for row in range(len(asked))]
        return rows

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            cure = (
                "see that Redis runs and takes writes" if self._remote else "free space, or publish the features again"
            )
            raise FeatureError(f"the feature store {self.path} cannot be {what} ({_brief(error)}); {cure}") from error


def _open(path: Path, needed: Sequence[str | Path]) -> Any:
    missing = [str(name) for name in needed if not (path / name).is_file()]
    if missing:
        raise FeatureError(f"{path} lacks {', '.join(missing)}; publish the features again")
    try:
        store = online_only(path)
        store.get_feature_view("user_history")
        store.get_feature_view("item_attributes")
    except Exception as error:
        raise FeatureError(
            f"the feature store {path} cannot be opened ({_brief(error)}); publish the features again"
        ) from error
    return store


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
