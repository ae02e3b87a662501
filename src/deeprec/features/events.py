"""Live history: interactions that are in every history read from now on, and outlive the next publication.

Contract of ``EventWriter.write``: each event is accepted, a duplicate (its id was accepted before, by any process) or
refused with a reason. The accepted ones are in the log, committed, all or none, and then shown (``FeaturePlace.show``);
when ``write`` returns, whoever reads a history next has them. A writer that dies between the two, or that cannot reach
an online store, leaves events that are in the log only: the next write, by any process, and the next ``open`` show
them first. Nothing is lost and, because an interaction enters a history once (``features.history``), nothing doubled.

An event without a timestamp is the user's newest. A later event with an earlier timestamp enters where it belongs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deeprec.errors import StoreError
from deeprec.features.log import LockedUsers, LoggedEvent
from deeprec.features.place import FeaturePlace
from deeprec.wire.events import Event

AHEAD_SECONDS = 300
"""How far a client's clock may be ahead; a timestamp within that is taken as now."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event; ``reason`` says why it was refused."""

    event_id: str
    status: Literal["accepted", "duplicate", "refused"]
    reason: str = ""


class EventWriter:
    """Writes events to a feature place. Safe to use from several threads and processes.

    Args:
        place: where to.
        clock: Unix seconds.
        serves: whether an item is in the catalogue of the bundle that this process serves, to which items may have been
            added since it was published.

    Raises:
        FeatureError: nothing is published there, or the online store cannot be written.
        StoreError: the log cannot be opened.
    """

    def __init__(
        self,
        place: FeaturePlace,
        *,
        clock: Callable[[], float] = time.time,
        serves: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._place = place
        self._clock, self._serves = clock, serves
        place.newest()
        place.show_rest()

    def write(self, events: Sequence[Event]) -> tuple[Outcome, ...]:
        """What became of each event, in order.

        Raises:
            FeatureError: the place cannot be read, or the online store cannot be written. What the log has is shown
                by the next write: events may be sent again, with the same ids.
            StoreError: the log cannot be written; nothing was accepted.
        """
        self._place.show_rest()
        named = {event.item_id for event in events}
        items = self._place.known_items(named) | set(filter(self._serves, named))
        newest = self._place.newest_times({event.user_id for event in events})
        in_seconds = self._place.publications()[0].time_unit == "seconds"
        for attempt in range(_ATTEMPTS):
            judge = _Judge(items, newest, in_seconds, int(self._clock()))
            try:
                outcomes = self._append(events, judge)
                break
            except StoreError as error:
                if attempt == _ATTEMPTS - 1 or not _is_doubled(error):
                    raise
        self._place.show({event.user_id for event in judge.accepted})
        return outcomes

    def check(self) -> None:
        """
        Raises:
            FeatureError, StoreError: the place cannot be read, or has lost what was published.
        """
        self._place.newest().check()

    def _append(self, events: Sequence[Event], judge: _Judge) -> tuple[Outcome, ...]:
        """Judge events and keep the accepted ones, their users locked: what is known then stays so until it is kept."""
        acceptable = [event for event in events if not judge.objection(event)]
        with self._place.log.locked({event.user_id for event in acceptable}) as users:
            known = users.known([event.event_id for event in events])
            if any(event.timestamp is None for event in acceptable):
                judge.learn(users)
            outcomes = tuple(judge.outcome(event, event.event_id in known) for event in events)
            users.append(judge.accepted)
        return outcomes


class _Judge:
    """Decides on events one after the other; ``accepted`` are those to be kept, with the time they enter at."""

    def __init__(self, items: set[str], newest: Mapping[str, int], in_seconds: bool, now: int) -> None:
        self._items, self._newest = items, dict(newest)
        self._in_seconds, self._now = in_seconds, now
        self._ids: set[str] = set()
        self.accepted: list[LoggedEvent] = []

    def learn(self, users: LockedUsers) -> None:
        """Read the newest times that the log has of users who are locked."""
        for user, timestamp in users.newest().items():
            self._newest[user] = max(timestamp, self._newest.get(user, timestamp))

    def outcome(self, event: Event, known: bool) -> Outcome:
        """Accept an event, or say why not; ``known``: its id is in the log."""
        if known or event.event_id in self._ids:
            return Outcome(event.event_id, "duplicate")
        if reason := self.objection(event):
            return Outcome(event.event_id, "refused", reason)
        at = self._time(event)
        assert at is not None  # there is no objection
        self._ids.add(event.event_id)
        self._newest[event.user_id] = max(at, self._newest.get(event.user_id, at))
        self.accepted.append(LoggedEvent(event.event_id, event.user_id, event.item_id, at, event.rating, event.event))
        return Outcome(event.event_id, "accepted")

    def objection(self, event: Event) -> str:
        """Why an event is refused whatever its id is; empty where nothing speaks against it."""
        if not (event.event_id and event.user_id):
            return "event_id or user_id is empty"
        if event.item_id not in self._items:
            return f"item {event.item_id[:40]!r} is in no published catalogue"
        if self._time(event) is None:
            return f"timestamp {event.timestamp} is before 1970 or in the future; give Unix seconds"
        return ""

    def _time(self, event: Event) -> int | None:
        if event.timestamp is None:
            return max(self._now, self._newest.get(event.user_id, self._now))
        if not self._in_seconds:
            return event.timestamp
        return min(event.timestamp, self._now) if 0 <= event.timestamp <= self._now + AHEAD_SECONDS else None


def _is_doubled(error: StoreError) -> bool:
    """Whether another writer kept an event of the same id meanwhile, for another user."""
    from sqlalchemy.exc import IntegrityError

    return isinstance(error.__cause__, IntegrityError)
