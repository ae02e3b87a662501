"""Live history: interactions that enter the online histories now and outlive the next publication.

Contract of ``EventWriter.write``: each event is accepted, a duplicate (its id was accepted before, by any process) or
refused with a reason. The accepted ones are in the log, on the disk, and then in the online store, one push for all;
when ``write`` returns, whoever reads a history next has them. A writer that dies between log and push, or a push that
fails, leaves events that are in the log only: the next write, by any process, and the next ``open`` push them first.
Nothing is lost and, because an interaction enters a history once (``features.history``), nothing doubled.

An event without a timestamp is the user's newest. A later event with an earlier timestamp enters where it belongs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deeprec.features.history import UserHistory
from deeprec.features.log import EventLog, LoggedEvent
from deeprec.features.online import HistoryStore
from deeprec.features.version import Version
from deeprec.wire.events import Event

AHEAD_SECONDS = 300
"""How far a client's clock may be ahead; a timestamp within that is taken as now."""
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event; ``reason`` says why it was refused."""

    event_id: str
    status: Literal["accepted", "duplicate", "refused"]
    reason: str = ""


class EventWriter:
    """Writes events to the feature store in a directory. Safe to use from several threads and processes.

    Args:
        features_path: the store's directory.
        clock: Unix seconds.

    Raises:
        StoreError: the log cannot be opened.
    """

    def __init__(self, features_path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._store = HistoryStore(features_path)
        self._store.open()
        self._log = EventLog(features_path)
        self._clock = clock
        with self._log.locked():
            catch_up(self._store.open(), self._log)

    def write(self, events: Sequence[Event]) -> tuple[Outcome, ...]:
        """What became of each event, in order.

        Raises:
            FeatureError: the online store cannot be read or written, or others write all the time. What the log has
                is pushed by the next write: events may be sent again, with the same ids.
            StoreError: the log cannot be written; nothing was accepted.
        """
        with self._log.locked():
            version = self._store.open()
            catch_up(version, self._log)
            known = self._log.known([event.event_id for event in events])
            new = [event for event in events if event.event_id not in known]
            histories = _histories(version, (event.user_id for event in new))
            judge = _Judge(version, new, histories, int(self._clock()))
            outcomes = tuple(
                Outcome(event.event_id, "duplicate") if event.event_id in known else judge.outcome(event)
                for event in events
            )
            if judge.accepted:
                position = self._log.append(judge.accepted)
                merged = _merged(histories, judge.accepted, version.publication.history_length)
                version.push(merged, position)
        return outcomes

    def check(self) -> None:
        """
        Raises:
            FeatureError: the store cannot be read, or has lost what was published.
        """
        self._store.open().position()

    def close(self) -> None:
        """Close the log, when what is being written has been."""
        self._log.close()


class _Judge:
    """Decides on new events one after the other; ``accepted`` are those to be kept, with the time they enter at."""

    def __init__(self, version: Version, new: Sequence[Event], histories: dict[str, UserHistory], now: int) -> None:
        self._catalogue = _known_items(version, (event.item_id for event in new))
        self._newest = {user: history.timestamps[-1] for user, history in histories.items() if history.timestamps}
        self._in_seconds = version.publication.time_unit == "seconds"
        self._now = now
        self._ids: set[str] = set()
        self.accepted: list[LoggedEvent] = []

    def outcome(self, event: Event) -> Outcome:
        """Accept the event, or say why not."""
        if event.event_id in self._ids:
            return Outcome(event.event_id, "duplicate")
        if not (event.event_id and event.user_id):
            return Outcome(event.event_id, "refused", "event_id or user_id is empty")
        if event.item_id not in self._catalogue:
            reason = f"item {event.item_id[:40]!r} is not in the catalogue that was published last"
            return Outcome(event.event_id, "refused", reason)
        at = self._time(event)
        if at is None:
            reason = f"timestamp {event.timestamp} is before 1970 or in the future; give Unix seconds"
            return Outcome(event.event_id, "refused", reason)
        self._ids.add(event.event_id)
        self._newest[event.user_id] = max(at, self._newest.get(event.user_id, at))
        self.accepted.append(LoggedEvent(event.event_id, event.user_id, event.item_id, at, event.rating, event.event))
        return Outcome(event.event_id, "accepted")

    def _time(self, event: Event) -> int | None:
        if event.timestamp is None:
            return max(self._now, self._newest.get(event.user_id, self._now))
        if not self._in_seconds:
            return event.timestamp
        return min(event.timestamp, self._now) if 0 <= event.timestamp <= self._now + AHEAD_SECONDS else None


def catch_up(version: Version, log: EventLog) -> None:
    """Push what the log has and the version's histories do not hold yet; in the log's lock only.

    Events on items that this version's catalogue does not have stay in the log alone.

    Raises:
        FeatureError: the online store cannot be read or written.
        StoreError: the log cannot be read.
    """
    limit = version.publication.history_length
    position = version.position()
    if position > log.end:
        position = 0
    while found := log.after(position, _CHUNK):
        position = found[-1][0]
        catalogue = _known_items(version, (event.item_id for _, event in found))
        events = [event for _, event in found if event.item_id in catalogue]
        histories = _histories(version, (event.user_id for event in events))
        version.push(_merged(histories, events, limit), position)


def _histories(version: Version, users: Iterable[str]) -> dict[str, UserHistory]:
    names = list(dict.fromkeys(users))
    found = version.histories(names)
    return {name: history or UserHistory() for name, history in zip(names, found, strict=True)}


def _known_items(version: Version, items: Iterable[str]) -> set[str]:
    names = list(dict.fromkeys(items))
    return {name for name, found in zip(names, version.items(names), strict=True) if found is not None}


def _merged(histories: Mapping[str, UserHistory], events: Sequence[LoggedEvent], limit: int) -> dict[str, UserHistory]:
    """The histories of the events' users with the events."""
    new: dict[str, list[tuple[int, str]]] = {}
    for event in events:
        new.setdefault(event.user_id, []).append((event.timestamp, event.item_id))
    return {user: histories[user].with_interactions(added, limit) for user, added in new.items()}
