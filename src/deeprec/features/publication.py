"""A publication of features: a dataset's histories and items as servers read them, and what the log has had since.

A publication is named by what it was made from, so that publishing the same again changes nothing, and is never
changed. A bundle names the one that it was made with, and a server of that bundle reads that one. It holds each user's
history as it was when it was made, test targets included, and how many of the user's accepted events are in it; whoever
reads a history adds the events behind those, so that accepted events are in every publication at once.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.features.database import Database
from deeprec.features.history import Repeats, UserHistory
from deeprec.features.log import Logged
from deeprec.types import Catalogue

if TYPE_CHECKING:
    from sqlalchemy import Connection

_CHUNK = 500


@dataclass(frozen=True)
class Publication:
    """What a publication is: its name, when it was made (ISO 8601), and how its histories are kept.

    ``history_length`` is how many newest items a history keeps, ``time_unit`` ``seconds`` or ``order``, ``repeats``
    what becomes of another interaction with an item that is there.
    """

    name: str
    made: str
    history_length: int
    time_unit: str
    repeats: Repeats
    users: int
    items: int


@dataclass(frozen=True, slots=True)
class BaseHistory:
    """A user's published history, and how many of the user's accepted events it holds."""

    history: UserHistory
    logged: int


@dataclass(frozen=True, slots=True)
class BaseRow:
    """A user of a publication that is being made."""

    user_id: str
    base: BaseHistory

    def values(self, publication: str) -> dict[str, str | int]:
        """The row of ``tables.PUBLISHED_USERS``."""
        history = self.base.history
        return {
            "publication": publication,
            "user_id": self.user_id,
            "interactions": history.interactions,
            "last_timestamp": history.timestamps[-1],
        }


def item_values(publication: str, catalogue: Catalogue) -> list[dict[str, str]]:
    """The rows of ``tables.PUBLISHED_ITEMS``."""
    return [
        {"publication": publication, "item_id": item.item_id, "title": item.title, "phrases": json.dumps(item.phrases)}
        for item in catalogue.items
    ]


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user of a publication, and how many interactions it has there."""

    user_id: str
    interactions: int


class PublishedFeatures(ABC):
    """A publication, open. Safe to use from several threads.

    Args:
        publication: which.
        database: the one whose tables ``tables.PUBLISHED`` have it.
    """

    def __init__(self, publication: Publication, database: Database) -> None:
        self.publication = publication
        self._database = database

    def history(self, user_id: str) -> tuple[str, ...] | None:
        """The user's item ids, newest last; None for a user who is not known.

        Raises:
            FeatureError, StoreError: the place cannot be read, or has lost what was published.
        """
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """``history`` of several users, in their order."""
        return [None if found is None else found.item_ids for found in self.read(user_ids)]

    def read(self, user_ids: Sequence[str]) -> list[UserHistory | None]:
        """Each user's whole history, with the events that were accepted since; None for a user who is not known.

        An event's item may be one that this publication's catalogue does not have.
        """
        if not user_ids:
            return []
        limit, repeats = self.publication.history_length, self.publication.repeats
        found: list[UserHistory | None] = []
        for base, events in self._parts(user_ids):
            history = None if base is None else base.history
            if events:
                new = [(timestamp, item) for _, timestamp, item in events]
                history = (history or UserHistory()).with_interactions(new, limit, repeats)
            found.append(history)
        return found

    @abstractmethod
    def bases(self, user_ids: Sequence[str]) -> list[BaseHistory | None]:
        """What was published of each user; None for one of whom nothing was.

        Raises:
            FeatureError, StoreError: see ``history``.
        """

    @abstractmethod
    def _parts(self, user_ids: Sequence[str]) -> list[tuple[BaseHistory | None, list[Logged]]]:
        """What was published of each user, and the events behind it in the order of acceptance."""

    @abstractmethod
    def check(self) -> None:
        """
        Raises:
            FeatureError, StoreError: the place cannot be asked now, or has lost what was published.
        """

    def items(self, item_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Each item's ``title`` and ``phrases`` (a tuple); None for one that the catalogue does not have."""
        from sqlalchemy import select

        from deeprec.features.tables import PUBLISHED_ITEMS as items

        found = {}
        with self._database.reading() as connection:
            for start in range(0, len(item_ids), _CHUNK):
                asked = select(items.c.item_id, items.c.title, items.c.phrases).where(
                    items.c.publication == self.publication.name,
                    items.c.item_id.in_(item_ids[start : start + _CHUNK]),
                )
                for item, title, phrases in connection.execute(asked):
                    found[item] = {"title": title, "phrases": tuple(json.loads(phrases))}
        return [found.get(item) for item in item_ids]

    def find(self, text: str, limit: int) -> tuple[KnownUser, ...]:
        """At most ``limit`` users whose id begins with ``text`` in either case, then those whose id holds it elsewhere.

        In the order of their ids each; all users for empty text. Users who came with events since are not among them.
        """
        from sqlalchemy import func, select

        from deeprec.features.tables import PUBLISHED_USERS as users

        lower = func.lower(users.c.user_id)
        wanted = text.strip().lower()
        begins = lower.startswith(wanted, autoescape=True)
        asked = select(users.c.user_id, users.c.interactions).where(users.c.publication == self.publication.name)
        asked = asked.order_by(users.c.user_id)
        with self._database.reading() as connection:
            found = connection.execute(asked.where(begins).limit(limit)).all()
            if wanted and len(found) < limit:
                holds = lower.contains(wanted, autoescape=True)
                more = asked.where(holds, ~begins).limit(limit - len(found))
                found = [*found, *connection.execute(more)]
        return tuple(KnownUser(user_id, interactions) for user_id, interactions in found)

    def newest(self, limit: int) -> tuple[str, ...]:
        """The ids of at most ``limit`` users, those with the newest published interactions first."""
        from sqlalchemy import select

        from deeprec.features.tables import PUBLISHED_USERS as users

        asked = select(users.c.user_id).where(users.c.publication == self.publication.name)
        with self._database.reading() as connection:
            newest = asked.order_by(users.c.last_timestamp.desc(), users.c.user_id).limit(limit)
            return tuple(connection.execute(newest).scalars())


def read_publications(connection: Connection, *, whole: bool = True) -> list[Publication]:
    """The whole publications in a database, the newest first; or those that are not whole."""
    from sqlalchemy import select

    from deeprec.features.tables import PUBLICATIONS as table

    columns = [column for column in table.c if column.name != "whole"]
    asked = select(*columns).where(table.c.whole == int(whole)).order_by(table.c.made.desc(), table.c.publication)
    return [Publication(*row) for row in connection.execute(asked)]
