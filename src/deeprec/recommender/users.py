"""Who asks: a request's user and history, from the request itself or from the feature store.

The store may take a share of the deadline, so that what can be answered without it is still in time. One that fails or
is late again and again is asked now and then only, and nobody waits for it (``recommender.breaker``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deeprec.errors import FeatureError
from deeprec.recommender.batching import MicroBatcher
from deeprec.recommender.breaker import CircuitBreaker
from deeprec.recommender.deadline import RequestClock
from deeprec.types import Catalogue
from deeprec.wire.reason import Reason, ReasonKind
from deeprec.wire.request import TrmRequest

logger = logging.getLogger(__name__)


def _note(kind: ReasonKind, sentence: str) -> Reason:
    return Reason(kind=kind, sentence=sentence)


_EMPTY = _note(ReasonKind.NO_HISTORY, "the request's history is empty")
_NOBODY = _note(ReasonKind.NO_HISTORY, "the request names no user and gives no history")
_NO_KNOWN = _note(ReasonKind.NO_HISTORY, "the request's history holds no catalogue item")
_NO_ITEM = _note(ReasonKind.NO_HISTORY, "the user's history holds no catalogue item")
_NO_STORE = _note(ReasonKind.UNKNOWN_USER, "this server has no feature store, so users are unknown; give a history")
_UNKNOWN = _note(ReasonKind.UNKNOWN_USER, "the user is unknown")
_AWAY = _note(
    ReasonKind.STORE_FAILED, "the feature store has failed again and again, so the user's history is unknown for now"
)
_FAILED = _note(ReasonKind.STORE_FAILED, "the feature store failed, so the user's history is unknown")


class Histories(Protocol):
    """Port: users' complete histories. Implemented by ``PublishedFeatures``; several threads may ask."""

    def history(self, user_id: str) -> tuple[str, ...] | None:
        """Item ids, oldest first; None for a user never seen."""
        ...

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        """``history`` of several users, in their order."""
        ...

    def find(self, text: str, limit: int) -> Sequence[Any]:
        """At most ``limit`` users with ``user_id`` and ``interactions`` whose id holds ``text``."""
        ...


@dataclass(frozen=True, slots=True)
class User:
    """The history that models read (catalogue items only), everything had, and where it came from.

    ``note`` says why there is no history, should there be none; ``ignored`` are items that a request named and the
    catalogue does not have.
    """

    user_id: str
    history: tuple[str, ...] = ()
    had: frozenset[str] = frozenset()
    known: bool = False
    note: Reason | None = None
    ignored: tuple[str, ...] = ()


class Users:
    """Finds users; those of concurrent requests are read together.

    Args:
        catalogue: what models know.
        histories: the feature store; without one users are unknown.
        most: read at once at most.
        share: of a request's time, that the store may take.
    """

    def __init__(self, catalogue: Catalogue, histories: Histories | None, most: int, share: float = 1.0) -> None:
        self._catalogue, self._share = catalogue, share
        self.breaker = CircuitBreaker("the feature store")
        self._store: MicroBatcher[str, tuple[str, ...] | None] | None = None
        if histories is not None:
            self._store = MicroBatcher(histories.histories, most, "histories", alone=False)

    def close(self) -> None:
        """Read nothing more."""
        if self._store is not None:
            self._store.close()

    async def find(self, request: TrmRequest, clock: RequestClock) -> User:
        """The user of a request. A store that fails, whatever it raises, or is late is a note, not an error."""
        name = request.user_id or "unknown"
        if request.history is not None:
            return self._told(name, request.history)
        if request.user_id is None:
            return User(name, note=_NOBODY)
        if self._store is None:
            return User(name, note=_NO_STORE)
        if not self.breaker.allows():
            return User(name, note=_AWAY)
        seconds = clock.share(self._share)
        try:
            with clock.stage("store"):
                async with asyncio.timeout(seconds):
                    history = await self._store.ask(request.user_id)
        except TimeoutError:
            self.breaker.failed()
            late = f"the feature store failed to answer within {round(1000 * seconds)} ms"
            return User(name, note=_note(ReasonKind.STORE_FAILED, f"{late}, so the user's history is unknown"))
        except Exception as error:
            self.breaker.failed()
            logger.error("the feature store failed: %s", error, exc_info=not isinstance(error, FeatureError))
            return User(name, note=_FAILED)
        self.breaker.succeeded()
        if history is None:
            return User(name, note=_UNKNOWN)
        usable = tuple(item_id for item_id in history if item_id in self._catalogue)
        return User(name, usable, frozenset(history), known=True, note=_NO_ITEM)

    def _told(self, name: str, history: tuple[str, ...]) -> User:
        usable = tuple(item_id for item_id in history if item_id in self._catalogue)
        if len(usable) == len(history):
            return User(name, usable, frozenset(history), note=_EMPTY)
        ignored = tuple(item_id for item_id in dict.fromkeys(history) if item_id not in self._catalogue)
        return User(name, usable, frozenset(history), note=_NO_KNOWN, ignored=ignored)

    @property
    def waiting(self) -> int:
        """Users that are to be read."""
        return 0 if self._store is None else self._store.waiting
