"""What has happened since a bundle was trained: accepted events, the histories that they entered, and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeprec.bundle.snapshot import DAY, Interactions, Snapshot
from deeprec.evaluation.shadow import MODEL

if TYPE_CHECKING:
    import polars as pl

    from deeprec.bundle.bundle import Bundle
    from deeprec.features.history import UserHistory
    from deeprec.features.place import FeaturePlace

_USERS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Answers:
    """A request log (``serving.log``) and the hash that stands for users in it, None where it has no key."""

    rows: pl.DataFrame
    user_hash: Callable[[str], str] | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to compare, of the days from ``since`` to ``until`` (seconds since 1970).

    ``events`` are all accepted ones (user_id, item_id, timestamp), None without a feature place; ``recent`` those of
    the days. ``interactions`` are what of them is in the users' histories, None without a snapshot to compare them
    with; ``left_out`` counts users who have fewer than training asked for. ``answers`` are this bundle's, of any time,
    None without a log. ``clocked``: timestamps are times, not an order.
    """

    since: float
    until: float
    clocked: bool
    events: pl.DataFrame | None
    recent: pl.DataFrame | None
    interactions: Interactions | None
    left_out: int
    answers: Answers | None


def gather(
    bundle: Bundle,
    snapshot: Snapshot | None,
    place: FeaturePlace | None,
    answers: Answers | None,
    days: int,
    now: float,
) -> Seen:
    """Read what is there. All accepted events are held in memory, some 100 bytes each.

    Events that were there when the bundle was trained are not looked at again.

    Raises:
        FeatureError, StoreError: the feature place cannot be read, or has the bundle's publication no more.
    """
    import polars as pl

    since, clocked = now - days * DAY, snapshot is None or snapshot.recent_since is not None
    own = None
    if answers is not None:
        rows = answers.rows.filter((pl.col("version") == bundle.version) & (pl.col("model") == MODEL))
        own = Answers(rows, answers.user_hash)
    if place is None:
        return Seen(since, now, clocked, None, None, None, 0, own)
    from deeprec.features.log import read_table

    place.check_once()
    events = read_table(place.log).select("user_id", "item_id", "timestamp")
    start = since if snapshot is None else snapshot.last if not clocked else max(since, snapshot.last)
    recent = events.filter(pl.col("timestamp") > start)
    found, left_out = None, 0
    if snapshot is not None:
        found, left_out = _interactions(bundle, snapshot, place, recent["user_id"].unique().sort().to_list(), start)
    return Seen(since, now, clocked, events, recent, found, left_out, own)


def _interactions(
    bundle: Bundle, snapshot: Snapshot, place: FeaturePlace, users: Sequence[str], start: float
) -> tuple[Interactions, int]:
    """What of the users' histories is behind ``start``, and how many users have too few interactions to be compared."""
    columns: list[list[int]] = [[], [], [], []]
    left_out = 0
    for number, history in enumerate(_histories(bundle, place, users)):
        if history.interactions < snapshot.fewest:
            left_out += 1
            continue
        cut = history.interactions - len(history.timestamps)
        for position, (item, time) in enumerate(zip(history.item_ids, history.timestamps, strict=True), cut):
            if time > start:
                values = (number, bundle.catalogue.index.get(item, -1), time, position)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
    return Interactions(*(np.asarray(column, dtype=np.int64) for column in columns)), left_out


def _histories(bundle: Bundle, place: FeaturePlace, users: Sequence[str]) -> Iterator[UserHistory]:
    published = place.open(bundle.publication) if users else None
    for begin in range(0, len(users), _USERS_AT_ONCE):
        assert published is not None
        yield from (history for history in published.read(users[begin : begin + _USERS_AT_ONCE]) if history is not None)
