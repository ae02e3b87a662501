"""What the data that a bundle was made from looked like, so that later data can be compared with it.

``snapshot.json`` is a file of the bundle's index that decides no answer: bundles that differ in it alone have one
version, and one without it serves as well. All of it describes the last tenth of the interactions by time (of each
user's, where timestamps are only an order), held-out ones included:

- which group of items, from popular to rare, was taken how often. The groups are made from the interactions before
  that, an equal part of them to each: made from the same ones, chance alone would make the popular look more popular;
- how many interactions a user had before a day on which it had some (history length), and on that day (activity), in
  bins by their own deciles.

Interactions of one user are alike, so a count of them says less than as many independent ones would: ``effective`` is
how many those would be (Rao and Scott, 1981: the sample divided by its mean design effect).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError

FILE = "snapshot.json"
SCHEMA = 1
RECENT = 0.1
"""Part of the interactions that is described."""
GROUPS = 20
BINS = 10
USERS_PER_CELL = 20
"""Of few users there are fewer groups and bins, so that a cell has about so many."""
DAY = 86400

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often each cell was seen, and how many independent draws would say as much."""

    counts: tuple[int, ...]
    effective: float

    @property
    def shares(self) -> NDArray[np.float64]:
        """(cells,) shares that add up to 1."""
        counts = np.asarray(self.counts, dtype=np.float64)
        shares: NDArray[np.float64] = counts / counts.sum()
        return shares


@dataclass(frozen=True, slots=True)
class Bins:
    """Values in bins: the first holds those up to ``edges[0]``, the last those above ``edges[-1]``."""

    edges: tuple[float, ...]
    seen: Distribution

    def of(self, values: Integers) -> Integers:
        """The bin of each value."""
        return np.searchsorted(np.asarray(self.edges), values, side="left").astype(np.int64)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each bin holds, in few characters."""
        return (*(f"≤ {edge:g}" for edge in self.edges), f"> {self.edges[-1]:g}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Training data in a few numbers.

    ``last`` is the newest timestamp, ``recent_since`` the first of the part that is described (None, as are ``history``
    and ``activity``, where timestamps are only an order). ``fewest`` is the least number of interactions that a user
    of the dataset has. ``groups`` (items,) is each item's group, in the catalogue's order.
    """

    users: int
    interactions: int
    fewest: int
    last: int
    recent_since: int | None
    groups: tuple[int, ...]
    popularity: Distribution
    history: Bins | None
    activity: Bins | None


@dataclass(frozen=True, slots=True)
class Interactions:
    """Columns of equal length, grouped by user and by time within one.

    ``users`` are numbers; ``rows`` of the catalogue (-1: not in it); ``places`` count what the user had before.
    """

    users: Integers
    rows: Integers
    times: Integers
    places: Integers

    def where(self, mask: NDArray[np.bool_]) -> Interactions:
        """Those of the mask."""
        return Interactions(self.users[mask], self.rows[mask], self.times[mask], self.places[mask])


@dataclass(frozen=True, slots=True)
class UserDays:
    """Days of users with interactions: how many the user had ``before`` the day, and how many on it (``active``)."""

    users: Integers
    days: Integers
    before: Integers
    active: Integers


def make_snapshot(dataset: Dataset) -> Snapshot | None:
    """Describe a dataset; None where it has no interactions."""
    all_of_them = _interactions(dataset)
    if not len(all_of_them.users):
        return None
    clocked = dataset.time_unit == "seconds"
    lengths = np.bincount(all_of_them.users)
    if clocked:
        since = int(np.quantile(all_of_them.times, 1 - RECENT, method="higher"))
        is_recent = all_of_them.times >= since
    else:
        is_recent = all_of_them.places >= np.floor(lengths * (1 - RECENT))[all_of_them.users]
    recent = all_of_them.where(is_recent)
    cells = len(np.unique(recent.users)) // USERS_PER_CELL
    groups = _groups(all_of_them.where(~is_recent).rows, len(dataset.catalogue), min(max(cells, 2), GROUPS))
    history = activity = None
    if clocked:
        days, number = user_days(recent), min(max(cells, 2), BINS)
        history, activity = _bins(days.users, days.before, number), _bins(days.users, days.active, number)
    return Snapshot(
        users=len(lengths),
        interactions=len(all_of_them.users),
        fewest=int(lengths.min()),
        last=int(all_of_them.times.max()),
        recent_since=since if clocked else None,
        groups=tuple(groups.tolist()),
        popularity=distribution(by_user(recent.users, groups[recent.rows], int(groups.max()) + 1)),
        history=history,
        activity=activity,
    )


def write_snapshot(work: Path, snapshot: Snapshot | None) -> None:
    """Write it into an index, where there is one."""
    if snapshot is not None:
        text = json.dumps({"schema": SCHEMA, **asdict(snapshot)}, separators=(",", ":"))
        (work / FILE).write_text(text + "\n", encoding="utf-8")


def read_snapshot(index: Path) -> Snapshot | None:
    """The snapshot of a bundle's index; None where the bundle has none, or one of a newer schema.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        raw = json.loads((index / FILE).read_text(encoding="utf-8"))
        return None if raw.pop("schema") != SCHEMA else _parsed(raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"cannot read {index / FILE}: {error}; make the bundle again with deeprec run") from error


def user_days(those: Interactions) -> UserDays:
    """The days of users with interactions, by UTC; timestamps are seconds since 1970."""
    days = those.times // DAY
    keys = np.stack([those.users, days], axis=1)
    found, first, active = np.unique(keys, axis=0, return_index=True, return_counts=True)
    return UserDays(found[:, 0], found[:, 1], those.places[first], active.astype(np.int64))


def by_user(users: Integers, cells: Integers, number: int) -> Integers:
    """(users, number) how often each user was seen in each cell."""
    names, codes = np.unique(users, return_inverse=True)
    flat = np.bincount(codes.reshape(-1) * number + cells, minlength=len(names) * number)
    return flat.reshape(len(names), number).astype(np.int64)


def _interactions(dataset: Dataset) -> Interactions:
    index = dataset.catalogue.index
    lengths = np.asarray([len(items) for items in dataset.sequences.values()], dtype=np.int64)
    rows = [index[item] for items in dataset.sequences.values() for item in items]
    times = [time for user in dataset.sequences for time in dataset.timestamps[user]]
    starts = np.cumsum(lengths) - lengths
    return Interactions(
        users=np.repeat(np.arange(len(lengths), dtype=np.int64), lengths),
        rows=np.asarray(rows, dtype=np.int64),
        times=np.asarray(times, dtype=np.int64),
        places=np.arange(len(rows), dtype=np.int64) - np.repeat(starts, lengths),
    )


def _groups(rows: Integers, items: int, number: int) -> Integers:
    """(items,) groups with about equal parts of the interactions with ``rows``, the most popular items in group 0."""
    counts = np.bincount(rows, minlength=items)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    groups = np.empty(items, dtype=np.int64)
    groups[order] = np.minimum(before * number // max(int(counts.sum()), 1), number - 1)
    return np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _bins(users: Integers, values: Integers, number: int) -> Bins:
    quantiles = np.arange(1, number) / number
    edges = tuple(float(edge) for edge in np.unique(np.quantile(values, quantiles, method="higher")))
    cells = np.searchsorted(np.asarray(edges), values, side="left")
    return Bins(edges, distribution(by_user(users, cells, len(edges) + 1)))


def distribution(table: Integers) -> Distribution:
    """The sum of (users, cells) counts, and its effective size."""
    counts = table.sum(axis=0)
    total = int(counts.sum())
    seen = counts > 0
    shares = counts[seen] / total
    apart = table[:, seen] - table.sum(axis=1, keepdims=True) * shares
    spread = float(((apart**2).sum(axis=0) / shares).sum())
    independent = total * (int(seen.sum()) - 1)
    effective = total * independent / spread if spread > 0 else float(total)
    return Distribution(tuple(counts.tolist()), min(effective, float(total)))


def _parsed(raw: Mapping[str, Any]) -> Snapshot:
    rest = {name: _bins_of(raw[name]) for name in ("history", "activity")}
    popularity, groups = _distribution_of(raw["popularity"]), tuple(map(int, raw["groups"]))
    return Snapshot(**{**raw, **rest, "popularity": popularity, "groups": groups})


def _bins_of(raw: Mapping[str, Any] | None) -> Bins | None:
    return None if raw is None else Bins(tuple(map(float, raw["edges"])), _distribution_of(raw["seen"]))


def _distribution_of(raw: Mapping[str, Any]) -> Distribution:
    counts: Sequence[int] = raw["counts"]
    return Distribution(tuple(map(int, counts)), float(raw["effective"]))
