"""Reading the online store: a user's complete history and an item's attributes, through Feast.

A store's directory holds one published version under ``versions/`` and ``current``, a link to it that a new
publication turns in one step (``features.store``). A reader looks at the link on every call, so a server sees a new
publication without being started again. Feast is imported at the first read. Reads are serialised by a lock: one
takes well under a millisecond, and Feast shares one SQLite connection between threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeprec.errors import FeatureError

CURRENT = "current"
REGISTRY = "registry.db"
SETTINGS = "feature_store.yaml"
ONLINE = Path("online") / "online.db"
_CHUNK = 500
_OPEN_ATTEMPTS = 3


class HistoryStore:
    """Histories of known users and attributes of items, by their own ids. Safe to use from several threads."""

    def __init__(self, features_path: str | Path, *, version: str | None = None) -> None:
        """Name the store's directory; nothing is read until the first call.

        ``version`` is a path below it, to read that version whether or not it is current.
        """
        self._path = Path(features_path)
        self._fixed = version
        self._lock = threading.Lock()
        self._version: str | None = None
        self._feast: Any = None

    def history(self, user_id: str) -> tuple[str, ...] | None:
        """The user's item ids, newest last; None for a user the store does not know.

        Raises:
            FeatureError: the store is missing or cannot be read.
        """
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """``history`` of several users, in their order."""
        found = self._read("user_history", "user_id", user_ids, ("item_ids",))
        return [None if row["item_ids"] is None else tuple(row["item_ids"]) for row in found]

    def item(self, item_id: str) -> dict[str, Any] | None:
        """``title`` and ``phrases`` (a tuple) of an item; None for one the store does not know."""
        return self.items([item_id])[0]

    def items(self, item_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """``item`` of several items, in their order."""
        found = self._read("item_attributes", "item_id", item_ids, ("title", "phrases"))
        return [
            None if row["title"] is None else {"title": row["title"], "phrases": tuple(row["phrases"] or ())}
            for row in found
        ]

    def open(self) -> None:
        """Open the store now rather than at the first read.

        Raises:
            FeatureError: the store is missing or cannot be opened.
        """
        with self._lock:
            self._opened()

    def _read(self, view: str, key: str, ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        features = [f"{view}:{name}" for name in names]
        with self._lock:
            for start in range(0, len(ids), _CHUNK):
                asked = [{key: one} for one in ids[start : start + _CHUNK]]
                feast = self._opened()
                try:
                    columns = feast.get_online_features(features=features, entity_rows=asked).to_dict()
                except Exception as error:
                    self._version = None
                    raise FeatureError(
                        f"the feature store {self._path} cannot be read ({_brief(error)}); publish the features again"
                    ) from error
                rows += [{name: columns[name][row] for name in names} for row in range(len(asked))]
        return rows

    def _opened(self) -> Any:
        for _ in range(_OPEN_ATTEMPTS):
            version = self._current()
            if version == self._version:
                return self._feast
            try:
                self._feast = open_version(self._path / version)
                self._version = version
                return self._feast
            except FeatureError:
                if self._current() == version:
                    raise
        raise FeatureError(f"the feature store {self._path} is replaced faster than it can be opened; try again")

    def _current(self) -> str:
        if self._fixed is not None:
            return self._fixed
        try:
            return os.readlink(self._path / CURRENT)
        except OSError as error:
            raise FeatureError(
                f"no feature store at {str(self._path)!r}; run the pipeline, which publishes one, or name the "
                f"directory of one"
            ) from error


def open_version(version: Path) -> Any:
    """A ``feast.FeatureStore`` on one published version.

    Raises:
        FeatureError: a file is missing, or Feast refuses it.
    """
    missing = [str(name) for name in (SETTINGS, REGISTRY, ONLINE) if not (version / name).is_file()]
    if missing:
        raise FeatureError(f"{version} lacks {', '.join(missing)}; publish the features again")
    try:
        from feast import FeatureStore

        store = FeatureStore(repo_path=str(version))
        store.get_feature_view("user_history")
        store.get_feature_view("item_attributes")
    except Exception as error:
        raise FeatureError(
            f"the feature store {version} cannot be opened ({_brief(error)}); publish the features again"
        ) from error
    return store


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
