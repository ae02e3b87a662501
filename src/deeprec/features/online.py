"""Reading the online store: a user's complete history and an item's attributes, through Feast.

A store's directory holds one published version under ``versions/`` and ``current``, a link to it that a new
publication turns in one step (``features.store``). A reader looks at the link on every call, so a server sees a new
publication without being started again; what it read from a version that was replaced meanwhile, it reads again from
the new one. Feast is imported at the first read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deeprec.errors import FeatureError
from deeprec.features.version import Version

CURRENT = "current"
_ATTEMPTS = 2

Found = TypeVar("Found")


class HistoryStore:
    """Histories of known users and attributes of items, by their own ids. Safe to use from several threads."""

    def __init__(self, features_path: str | Path, *, version: str | None = None) -> None:
        """Name the store's directory; nothing is read until the first call.

        ``version`` is a path below it, to read that version whether or not it is current.
        """
        self._path = Path(features_path)
        self._fixed = version
        self._lock = threading.Lock()
        self._open: tuple[str, Version] | None = None

    def history(self, user_id: str) -> tuple[str, ...] | None:
        """The user's item ids, newest last; None for a user the store does not know.

        Raises:
            FeatureError: the store is missing, cannot be read, or has lost what was published.
        """
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """``history`` of several users, in their order."""
        return self._read(lambda version: version.item_ids(user_ids))

    def item(self, item_id: str) -> dict[str, Any] | None:
        """``title`` and ``phrases`` (a tuple) of an item; None for one the store does not know."""
        return self.items([item_id])[0]

    def items(self, item_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """``item`` of several items, in their order."""
        return self._read(lambda version: version.items(item_ids))

    def open(self) -> Version:
        """The version that is current, opened now where it was not.

        Raises:
            FeatureError: the store is missing or cannot be opened.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                name = self._current()
                if self._open is not None and self._open[0] == name:
                    return self._open[1]
                try:
                    self._open = name, Version(self._path / name)
                except FeatureError:
                    if self._current() == name:
                        raise
        raise self._restless()

    def _read(self, find: Callable[[Version], Found]) -> Found:
        for _ in range(_ATTEMPTS):
            version = self.open()
            try:
                found = find(version)
            except FeatureError:
                if self._is_current(version):
                    raise
            else:
                if self._is_current(version):
                    return found
        raise self._restless()

    def _is_current(self, version: Version) -> bool:
        return version.path == self._path / self._current()

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

    def _restless(self) -> FeatureError:
        return FeatureError(f"the feature store {self._path} is replaced faster than it can be read; try again")
