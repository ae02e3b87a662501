"""The look at whether the world has moved: each figure on what there is of it, and the verdict over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeprec.bundle.snapshot import DAY, Bins, Distribution, Snapshot, by_user, read_snapshot, user_days
from deeprec.evaluation.later import taken_by_user, taken_within
from deeprec.evaluation.significance import Interval
from deeprec.release.drift.figure import Bars, Day, Drift, Figure, judge, whole
from deeprec.release.drift.seen import Answers, Seen, gather
from deeprec.release.drift.statistics import jensen_shannon_of_counts, loss, psi_of_counts, share, shift

if TYPE_CHECKING:
    import polars as pl

    from deeprec.bundle.bundle import Bundle
    from deeprec.config import DriftConfig
    from deeprec.features.place import FeaturePlace

Integers = NDArray[np.int64]
Measure = Callable[[Integers], Interval | None]

HIT_HOURS = 24
"""An answer hit when its user took an item of it within so long."""
NO_PLACE = "no feature place is named; name it with --features, or in the section features"
NO_LOG = "no request log is named; name it with --log, or in serving.log.path"
NO_SNAPSHOT = "the bundle was published without a snapshot of its training data; publish one with deeprec run"
NO_CLOCK = "the data's timestamps are only an order (data.time_unit)"
_NO_DAY = -1


@dataclass(frozen=True, slots=True)
class _Cases:
    """Things that happened, each to a user, on a day (since 1970, or ``_NO_DAY``), of one of ``number`` cells."""

    users: Integers
    days: Integers
    cells: Integers
    number: int

    def table(self, day: int | None = None) -> Integers:
        """(users, cells) counts, of one day or all."""
        mask = np.full(len(self.days), True) if day is None else self.days == day
        return by_user(self.users[mask], self.cells[mask], self.number)


@dataclass(frozen=True, slots=True)
class _Question:
    """A figure before it is measured."""

    key: str
    name: str
    note: str
    limit: float
    at_least: bool = False

    def not_compared(self, why: str) -> Figure:
        return Figure(self.key, self.name, self.note, self.limit, "not compared", why, self.at_least)

    def measured(
        self,
        cases: _Cases,
        measure: Measure,
        config: DriftConfig,
        *,
        daily: Measure | None = None,
        bars: Bars | None = None,
    ) -> Figure:
        """The figure over all cases, and over those of each day (by ``daily``, where that is another measure)."""
        table = cases.table()
        users = len(table)
        found = measure(table) if users else None
        state, why = judge(found, self.limit, users, config.min_users, at_least=self.at_least)
        value, low, high = (None, None, None) if found is None else (found.mean, found.low, found.high)
        return Figure(
            self.key,
            self.name,
            self.note,
            self.limit,
            state,
            why,
            self.at_least,
            value=value,
            low=low,
            high=high,
            users=users,
            days=_by_day(cases, daily or measure, _least_a_day(config)),
            bars=bars if users else None,
        )


def look(bundle: Bundle, place: FeaturePlace | None, answers: Answers | None, config: DriftConfig, now: float) -> Drift:
    """Compare what has happened with what a bundle was trained on.

    Args:
        bundle: opened; none of its parts is needed.
        place: where its events were accepted; None leaves the figures of events out.
        answers: the request log; None leaves the figures of answers out.
        now: seconds since 1970, up to when is looked.

    Raises:
        ArtifactError: the bundle's snapshot cannot be read.
        FeatureError, StoreError: see ``seen.gather``.
    """
    snapshot = read_snapshot(bundle.index)
    seen = gather(bundle, snapshot, place, answers, config.days, now)
    figures = (
        _unknown_items(bundle, seen, config),
        _popularity(snapshot, seen, config),
        _history(snapshot, seen, config),
        _activity(snapshot, seen, config),
        _popularity_answers(seen, config),
        _policy_answers(bundle, seen, config),
        _hit_loss(seen, config),
    )
    verdict, reason = whole(figures)
    since, until = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (seen.since, seen.until))
    return Drift(bundle.version, since, until, verdict, reason, figures)


# ------------------------------------------------------------------------------------------------------ of the events


def _unknown_items(bundle: Bundle, seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "unknown_items",
        "items it does not know",
        "Share of accepted events on items that are not in the bundle's catalogue. Events on items in no catalogue at "
        'all are refused, and counted in deeprec_events_total{outcome="refused"} alone.',
        config.max_unknown_items,
    )
    if seen.recent is None:
        return question.not_compared(NO_PLACE)
    times = seen.recent["timestamp"].to_numpy()
    known = bundle.catalogue.index
    cells = np.asarray([item not in known for item in seen.recent["item_id"]], dtype=np.int64)
    days = times // DAY if seen.clocked else np.full(len(times), _NO_DAY)
    return question.measured(_Cases(_codes(seen.recent["user_id"]), days, cells, 2), _share, config)


def _popularity(snapshot: Snapshot | None, seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "popularity",
        "popularity shift",
        "Jensen–Shannon divergence in bits between what training's last part and the events took, by groups of items "
        "from popular to rare.",
        config.max_popularity_shift,
    )
    if snapshot is None or seen.interactions is None:
        return question.not_compared(_missing(seen))
    known = seen.interactions.where(seen.interactions.rows >= 0)
    groups, last = np.asarray(snapshot.groups), len(snapshot.popularity.counts) - 1
    cells = np.where(known.rows < len(groups), groups[np.minimum(known.rows, len(groups) - 1)], last)
    days = known.times // DAY if seen.clocked else np.full(len(cells), _NO_DAY)
    cases = _Cases(known.users, days, cells, last + 1)
    measure = partial(shift, snapshot.popularity, divergence=jensen_shannon_of_counts)
    labels = tuple(str(number + 1) for number in range(last + 1))
    return question.measured(
        cases, measure, config, bars=_bars("group, from popular to rare", labels, snapshot.popularity, cases)
    )


def _history(snapshot: Snapshot | None, seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "history",
        "history length",
        "Population stability index of how many interactions users had before a day on which they had some. Users with "
        f"fewer in all than any that the bundle was trained on are left out ({seen.left_out:,}).",
        config.max_psi,
    )
    bins = None if snapshot is None else snapshot.history
    return _stability(question, bins, "before", "interactions before the day", seen, config)


def _activity(snapshot: Snapshot | None, seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "activity",
        "activity",
        "Population stability index of how many interactions users had on a day on which they had some; of the same "
        "users as history length.",
        config.max_psi,
    )
    bins = None if snapshot is None else snapshot.activity
    return _stability(question, bins, "active", "interactions on the day", seen, config)


def _stability(
    question: _Question, bins: Bins | None, column: str, axis: str, seen: Seen, config: DriftConfig
) -> Figure:
    if seen.interactions is None:
        return question.not_compared(_missing(seen))
    if bins is None:
        return question.not_compared(NO_CLOCK)
    days = user_days(seen.interactions)
    cases = _Cases(days.users, days.days, bins.of(getattr(days, column)), len(bins.edges) + 1)
    measure = partial(shift, bins.seen, divergence=psi_of_counts)
    return question.measured(cases, measure, config, bars=_bars(axis, bins.labels, bins.seen, cases))


def _missing(seen: Seen) -> str:
    return NO_PLACE if seen.events is None else NO_SNAPSHOT


# ----------------------------------------------------------------------------------------------------- of the answers


def _popularity_answers(seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "popularity_answers",
        "answered by popularity",
        "Share of this bundle's answers that were neither the policy's nor the TRM's: users without a history, or "
        "models that did not answer in time.",
        config.max_popularity_answers,
    )
    if seen.answers is None:
        return question.not_compared(NO_LOG)
    rows = _in_days(seen.answers.rows, seen)
    return question.measured(_answer_cases(rows, rows["path"] == "popularity"), _share, config)


def _policy_answers(bundle: Bundle, seen: Seen, config: DriftConfig) -> Figure:
    import polars as pl

    question = _Question(
        "policy_answers",
        "answered by the policy",
        "Share of this bundle's answers that were the policy's; shadow mode's are left out.",
        config.min_policy_answers,
        at_least=True,
    )
    if seen.answers is None:
        return question.not_compared(NO_LOG)
    if bundle.serve != "policy":
        return question.not_compared("the bundle serves the TRM alone")
    rows = _in_days(seen.answers.rows, seen)
    if len(rows) and rows["shadow"].all():
        return question.not_compared("in shadow mode the TRM answers")
    rows = rows.filter(~pl.col("shadow"))
    return question.measured(_answer_cases(rows, rows["path"] == "policy"), _share, config)


def _hit_loss(seen: Seen, config: DriftConfig) -> Figure:
    question = _Question(
        "hit_loss",
        "loss of hit share",
        f"Of answers after which their user took something within {HIT_HOURS} hours, the share that held an item of "
        "that: how much of it was lost in these days against this bundle's answers before them. The plot has the hit "
        "share itself.",
        config.max_hit_loss,
    )
    if seen.answers is None or seen.events is None:
        return question.not_compared(NO_LOG if seen.answers is None else NO_PLACE)
    if not seen.clocked:
        return question.not_compared(NO_CLOCK)
    cases, since = _hits(seen.answers, seen.events, seen.until), int(seen.since // DAY)
    earlier = _of_all(_select(cases, cases.days < since).table())
    few = len(earlier) < config.min_users

    def lost(table: Integers) -> Interval | None:
        return None if few else loss(earlier, _of_all(table))

    figure = question.measured(_select(cases, cases.days >= since), lost, config, daily=_share)
    if few:
        least = f"fewer than {config.min_users:,} decide nothing"
        figure = replace(figure, why=f"{len(earlier):,} users had such answers before these days, and {least}")
    return replace(figure, days=_by_day(cases, _share, _least_a_day(config)))


def _hits(answers: Answers, events: pl.DataFrame, until: float) -> _Cases:
    """Answers that were followed by events: cell 1 holds those that had one of their items.

    The last hours' answers are left out: what followed them is not known yet.
    """
    import polars as pl

    rows = answers.rows.filter(pl.col("user").is_not_null()).with_columns(at=pl.col("at").dt.epoch("us") / 1e6)
    rows = rows.filter(pl.col("at") <= until - HIT_HOURS * 3600)
    took = taken_by_user(events, set(rows["user"]), answers.user_hash)
    found: list[tuple[str, int, int]] = []
    for user, at, items in rows.select("user", "at", "items").iter_rows():
        taken = taken_within(took.get(user, ([], [])), at, HIT_HOURS * 3600)
        if taken:
            found.append((user, int(at // DAY), int(not taken.isdisjoint(items))))
    users = _codes(pl.Series([user for user, _, _ in found], dtype=pl.String))
    days, cells = (np.asarray([case[place] for case in found], dtype=np.int64) for place in (1, 2))
    return _Cases(users, days, cells, 2)


def _in_days(rows: pl.DataFrame, seen: Seen) -> pl.DataFrame:
    import polars as pl

    since, until = (datetime.fromtimestamp(at, UTC) for at in (seen.since, seen.until))
    return rows.filter(pl.col("at").is_between(since, until))


def _answer_cases(rows: pl.DataFrame, hits: pl.Series) -> _Cases:
    """Answers by user; each that names none is a user's of its own."""
    import polars as pl

    users = rows.with_row_index().select(
        pl.coalesce(pl.format("u{}", pl.col("user")), pl.format("row {}", pl.col("index")))
    )
    days = (rows["at"].dt.epoch("s") // DAY).to_numpy()
    return _Cases(_codes(users.to_series()), days, hits.cast(pl.Int64).to_numpy(), 2)


# ------------------------------------------------------------------------------------------------------------ details


def _share(table: Integers) -> Interval:
    return share(_of_all(table))


def _of_all(table: Integers) -> Integers:
    """(users, 2) hits and cases, from misses and hits."""
    return np.stack([table[:, 1], table.sum(axis=1)], axis=1)


def _codes(names: pl.Series) -> Integers:
    """A number for each distinct name."""
    return np.unique(names.to_numpy(), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _select(cases: _Cases, mask: NDArray[np.bool_]) -> _Cases:
    return _Cases(cases.users[mask], cases.days[mask], cases.cells[mask], cases.number)


def _least_a_day(config: DriftConfig) -> int:
    """Users whom a day needs to have a figure of its own."""
    return max(config.min_users // config.days, 2)


def _by_day(cases: _Cases, measure: Measure, least: int) -> tuple[Day, ...]:
    """The measure of each day from the first with cases to the last, those without any among them."""
    days = cases.days[cases.days != _NO_DAY]
    found = []
    for day in range(int(days.min()), int(days.max()) + 1) if len(days) else ():
        table = cases.table(day)
        value = measure(table) if len(table) >= least else None
        date = (datetime.fromtimestamp(0, UTC) + timedelta(days=day)).date()
        found.append(Day(date.isoformat(), None if value is None else value.mean, len(table)))
    return tuple(found)


def _bars(axis: str, labels: tuple[str, ...], trained: Distribution, cases: _Cases) -> Bars:
    counts = np.bincount(cases.cells, minlength=cases.number)
    now = counts / max(int(counts.sum()), 1)
    return Bars(axis, labels, tuple(trained.shares.tolist()), tuple(now.tolist()))
