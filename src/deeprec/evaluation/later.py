"""What users took after an answer, and which of two lists held it: the TRM's, which they saw, or the policy's.

Later events are rows of user, item and time (seconds since 1970) from JSON lines or Parquet. An event counts for each
earlier request of its user that is at most a window before it. Figures are means of users' means, so that a user who
asks often counts once; intervals are over users.

Users saw only one of the lists, and take what they see: the figures favour it. They can show that the policy is better,
not that it is worse.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprec.errors import DataError
from deeprec.evaluation.shadow import LISTS, both_lists, paired
from deeprec.evaluation.significance import Interval, bootstrap_means, interval, verdict_sentence

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("user_id", "item_id", "timestamp")
CAVEAT = (
    "Users saw only the TRM's list and take what they see, so later events favour it: a policy that is level here, or "
    "ahead, has done well; one that is behind has not been shown to be worse. Only an A/B test can show that."
)
FEW_USERS = 100
_LATEST = 100_000_000_000
"""Seconds since 1970 beyond any clock: what is larger is in milliseconds."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of both lists and the paired difference, policy minus TRM."""

    trm: Interval
    policy: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class Later:
    """Figures over the ``requests`` of ``users`` with ``taken`` later items in the window, that the policy answered."""

    window_hours: float
    requests: int
    users: int
    taken: int
    metrics: Mapping[str, Compared]
    verdict: str
    caveat: str = CAVEAT


def later_events(
    rows: pl.DataFrame,
    events: pl.DataFrame,
    *,
    k: int,
    window_hours: float = 24.0,
    user_hash: Callable[[str], str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Later:
    """Which list held what users took afterwards.

    Args:
        rows: rows of shadow mode (``shadow.shadow_rows``).
        events: from ``read_events``.
        k: places of the lists that count.
        window_hours: for how long after an answer an event counts.
        user_hash: the log's keyed hash; ids are also looked for as they are.
        resamples: bootstrap resamples of users.
        seed: fixes the resamples.

    Raises:
        DataError: no event can be joined to a request that the policy answered.
    """
    import polars as pl

    answered = both_lists(rows).filter(pl.col("user").is_not_null())
    took = taken_by_user(events, set(answered["user"]), user_hash)
    scores: dict[str, list[tuple[float, ...]]] = {}
    taken = 0
    for user, at, *lists in answered.select("user", pl.col("at").dt.epoch("us"), "trm_items", "policy_items").rows():
        items = taken_within(took.get(user, ([], [])), at / 1e6, window_hours * 3600)
        if items:
            taken += len(items)
            cut = paired(lists[0], lists[1], k)
            scores.setdefault(user, []).append(tuple(score for one in cut for score in _scores(one, items)))
    if not scores:
        raise DataError(_nothing_joins(answered, events, len(took), window_hours, user_hash is not None))
    values = np.array([np.mean(per_request, axis=0) for per_request in scores.values()])
    metrics = _compare(values, k, resamples, seed)
    return Later(
        window_hours=window_hours,
        requests=sum(map(len, scores.values())),
        users=len(scores),
        taken=taken,
        metrics=metrics,
        verdict=_verdict(metrics, len(scores), k),
    )


def read_events(place: str | Path) -> pl.DataFrame:
    """Events as ``user_id``, ``item_id`` (strings) and ``timestamp`` (seconds since 1970), in no order.

    Args:
        place: a file of JSON lines (.jsonl) or Parquet, or a directory of them.

    Raises:
        DataError: there are none, or a row is no event.
    """
    import polars as pl

    folder = Path(place)
    files = [folder] if folder.is_file() else sorted((*folder.rglob("*.jsonl"), *folder.rglob("*.parquet")))
    if not files:
        state = "holds no .jsonl or .parquet file" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {state}; name the later events, or the feature store that accepted them")
    frames = [_read_parquet(file) if file.suffix == ".parquet" else _read_lines(file) for file in files]
    events = pl.concat(frames)
    if events.is_empty():
        raise DataError(f"{folder} holds no events")
    late = events["timestamp"].max()
    if isinstance(late, float) and late > _LATEST:
        raise DataError(f"{folder} has the timestamp {late:.0f}; timestamps are seconds since 1970, not milliseconds")
    return events


# ---------------------------------------------------------------------------------------------------------- measuring


def taken_by_user(
    events: pl.DataFrame, users: set[str], user_hash: Callable[[str], str] | None
) -> dict[str, tuple[list[float], list[str]]]:
    """Times (ascending) and items of the events of the log's users, by the log's name of the user."""
    names: dict[str, str] = {}
    for user in events["user_id"].unique():
        for name in (user_hash(user) if user_hash else user, user):
            if name in users:
                names[user] = name
                break
    found: dict[str, tuple[list[float], list[str]]] = {}
    for user, item, at in events.sort("timestamp", maintain_order=True).select(COLUMNS).iter_rows():
        if user in names:
            times, items = found.setdefault(names[user], ([], []))
            times.append(at)
            items.append(item)
    return found


def taken_within(took: tuple[list[float], list[str]], start: float, seconds: float) -> set[str]:
    """What of a user's events (times, ascending, and items) came after ``start``, within so many seconds."""
    times, items = took
    return set(items[bisect_right(times, start) : bisect_right(times, start + seconds)])


def _scores(items: Sequence[str], taken: set[str]) -> tuple[float, float]:
    """Hit rate and NDCG of one list: gains of 1 for each item taken, over those of a list that begins with them."""
    gains = [1.0 / np.log2(rank + 2.0) for rank, item in enumerate(items) if item in taken]
    ideal = sum(1.0 / np.log2(rank + 2.0) for rank in range(min(len(taken), len(items))))
    return float(bool(gains)), float(sum(gains) / ideal) if ideal else 0.0


def _compare(values: np.ndarray[Any, np.dtype[np.float64]], k: int, resamples: int, seed: int) -> dict[str, Compared]:
    """``values`` (users, 4): hit rate and NDCG of the TRM's lists, then of the policy's."""
    means, observed = bootstrap_means(values, resamples, seed), values.mean(axis=0)
    found = {}
    for column, name in enumerate((f"hit_rate@{k}", f"ndcg@{k}")):
        trm, policy = (column + 2 * place for place in range(len(LISTS)))
        found[name] = Compared(
            trm=interval(means[:, trm], observed[trm]),
            policy=interval(means[:, policy], observed[policy]),
            difference=interval(means[:, policy] - means[:, trm], observed[policy] - observed[trm]),
        )
    return found


def _verdict(metrics: Mapping[str, Compared], users: int, k: int) -> str:
    if all(metric.difference.low == metric.difference.high == 0 for metric in metrics.values()):
        return "Both lists held the same later items for every user, so these events cannot tell them apart."
    difference = metrics[f"ndcg@{k}"].difference
    figures = {"mean": difference.mean, "low": difference.low, "high": difference.high}
    sentence = verdict_sentence("policy", "TRM", figures, f"NDCG@{k}")
    few = f" Few users have later events yet ({users}); wait for at least {FEW_USERS}." if users < FEW_USERS else ""
    return sentence + few


def _nothing_joins(answered: pl.DataFrame, events: pl.DataFrame, same: int, hours: float, hashed: bool) -> str:
    import polars as pl

    if answered.is_empty():
        return "the policy answered no request of a named user, so no event can be joined; leave out --events"
    if not same:
        cure = (
            "name events of the same users, and keep the log's key beside it"
            if hashed
            else "name events of the same users; a log of hashed users needs its file `key` beside it"
        )
        users, asked = events["user_id"].n_unique(), answered["user"].n_unique()
        return f"none of the {users:,} users with events is among the {asked:,} whom the policy answered; {cure}"
    last = answered.select(pl.col("at").max().dt.strftime("%Y-%m-%d %H:%M")).item()
    return (
        f"no user took anything within {hours:g} hours after a request that the policy answered; the last of these was "
        f"at {last} UTC; name later events, or a wider --window-hours"
    )


# ------------------------------------------------------------------------------------------------------------ reading


def _read_parquet(file: Path) -> pl.DataFrame:
    import polars as pl

    try:
        found = pl.read_parquet(file, columns=list(COLUMNS))
        if found["timestamp"].dtype.is_temporal():
            found = found.with_columns(pl.col("timestamp").dt.epoch("us") / 1e6)
        return found.select(
            pl.col("user_id").cast(pl.String), pl.col("item_id").cast(pl.String), pl.col("timestamp").cast(pl.Float64)
        ).drop_nulls()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file} is no file of events with the columns {', '.join(COLUMNS)}: {error}") from error


def _read_lines(file: Path) -> pl.DataFrame:
    import polars as pl

    try:
        rows = list(_events(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    types = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Float64}
    return pl.DataFrame(rows, schema=types, orient="row")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no time")


def _events(file: Path) -> Iterator[tuple[str, str, float]]:
    """Each line's event. A last line without an end is left out: it is being written, or its writer was killed."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_refuse)
                yield str(row["user_id"]), str(row["item_id"]), float(row["timestamp"])
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith("\n"):
                    return
                raise DataError(
                    f"{file} line {number} is no event ({type(error).__name__}: {error}); each line is a JSON object "
                    f"with {', '.join(COLUMNS)} (seconds since 1970)"
                ) from error
