"""The port of a feature place: publications beside one another, one log of accepted events, and who writes both.

Two places stand behind it: a directory (``directory``: SQLite and files, one machine) and a cluster (``cluster``: SQL,
Redis through Feast, files or S3); ``places.open_place`` makes the one that a configuration names. Layout, locks and
what survives which death are theirs to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from deeprec.data.dataset import Dataset
from deeprec.errors import FeatureError
from deeprec.features.database import Database
from deeprec.features.log import EventLog
from deeprec.features.publication import BaseRow, Publication, PublishedFeatures

GRACE_SECONDS = 86400.0
"""Publications younger than this are kept, whoever names them: their bundle may be on its way to a shelf."""


class FeaturePlace(ABC):
    """A feature place. Safe to use from several threads and processes.

    Args:
        name: how errors call it.
        database: where its log is.
    """

    def __init__(self, name: str, database: Database) -> None:
        self.name, self.database = name, database
        self.log = EventLog(database)
        self._checked = False

    @abstractmethod
    def prepare(self) -> None:
        """Make what a first publication needs, where this place makes it by itself; and check its version.

        Raises:
            FeatureError: the tables are of another version.
            StoreError: the place cannot be written.
        """

    @abstractmethod
    def migrate(self) -> tuple[str, str]:
        """Make the place's tables, or move them on; the versions before ("none" of new ones) and after.

        Raises:
            FeatureError: they are of a newer deeprec.
            StoreError: the place cannot be written.
        """

    def check_once(self) -> None:
        """``check``, until it has found nothing wrong once."""
        if not self._checked:
            self.check()
            self._checked = True

    def check(self) -> None:
        """
        Raises:
            FeatureError: there is no place here yet, or its tables are of another version.
            StoreError: it cannot be read.
        """
        self.database.check()

    def reach(self) -> None:
        """See that every part of the place can be reached; more than ``check`` where it has several.

        Raises:
            FeatureError, StoreError: one cannot, or the tables are of another version.
        """
        self.check()

    @abstractmethod
    def publications(self) -> list[Publication]:
        """The whole publications, the newest first.

        Raises:
            FeatureError, StoreError: the place cannot be read.
        """

    def unfinished(self) -> list[Publication]:
        """What is being made or removed, or was when a process was killed."""
        return []

    @abstractmethod
    def open(self, name: str) -> PublishedFeatures:
        """The publication ``name``.

        Raises:
            FeatureError: there is none of that name, or it cannot be opened.
            StoreError: the place cannot be read.
        """

    def newest(self) -> PublishedFeatures:
        """The newest publication.

        Raises:
            FeatureError: there is none.
            StoreError: the place cannot be read.
        """
        found = self.publications()
        if not found:
            raise FeatureError(f"nothing is published in {self.name}; run the pipeline, which publishes features")
        return self.open(found[0].name)

    @abstractmethod
    def build(self, publication: Publication, rows: Sequence[BaseRow], data: Dataset, ingested: datetime) -> None:
        """Make a publication, whole or not at all; one of that name that is damaged is made anew.

        Raises:
            FeatureError, StoreError: it cannot be made.
        """

    @abstractmethod
    def known_items(self, item_ids: Collection[str]) -> set[str]:
        """Which of these items a publication's catalogue has."""

    @abstractmethod
    def newest_times(self, user_ids: Collection[str]) -> dict[str, int]:
        """The newest published timestamp of each of these users; one who was not published is left out."""

    @abstractmethod
    def show(self, user_ids: Collection[str]) -> None:
        """Let readers see these users' accepted events, in a place whose readers do not read the log itself.

        Raises:
            FeatureError, StoreError: the online store cannot be written; the log says which events it lacks.
        """

    @abstractmethod
    def show_rest(self) -> None:
        """Show what a writer that died, or could not reach the online store, left in the log alone; see ``show``."""

    @abstractmethod
    def show_again(self) -> None:
        """Show every accepted event again: the online store may have lost some; see ``show``."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a publication; no error where there is none.

        Raises:
            FeatureError, StoreError: it cannot be removed; what is left is removed by the next try.
        """

    @abstractmethod
    def forget(self, user_id: str) -> dict[str, int]:
        """Remove a user everywhere in this place, and keep it from later trainings.

        Returns ``events`` and ``publications``: how many held the user.

        Raises:
            FeatureError, StoreError: something cannot be written; forget the user again, which does what is left.
        """

    def sweep(self, keep: Iterable[str], grace: float = GRACE_SECONDS) -> list[str]:
        """Remove the publications that nobody names, but the newest and those younger than ``grace`` seconds.

        Raises:
            FeatureError, StoreError: see ``remove``.
        """
        now, named = datetime.now(UTC), set(keep)
        removed = []
        for publication in [*self.publications()[1:], *self.unfinished()]:
            age = (now - datetime.fromisoformat(publication.made)).total_seconds()
            if publication.name not in named and age > grace:
                self.remove(publication.name)
                removed.append(publication.name)
        return removed

    def close(self) -> None:
        """Let go of its connections."""
        self.database.close()
