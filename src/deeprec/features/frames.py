"""What a publication holds, as tables: one row per user with its history, one row per item with its attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from deeprec.data.dataset import Dataset
from deeprec.errors import FeatureError
from deeprec.features.history import UserHistory


def live_histories(
    data: Dataset, events: Iterable[tuple[str, list[tuple[int, str]]]], limit: int
) -> dict[str, UserHistory]:
    """The histories, of at most ``limit`` items, of users of whom ``events`` knows more than the dataset.

    ``events`` has each user's (timestamp, item id). Items that the catalogue does not have are left out.
    """
    found = {}
    for user, interactions in events:
        base = published_history(data, user, limit)
        history = base.with_interactions((pair for pair in interactions if pair[1] in data.catalogue), limit)
        if history != base:
            found[user] = history
    return found


def published_history(data: Dataset, user: str, limit: int) -> UserHistory:
    """The user's history as the dataset has it, its newest ``limit`` items; empty for a user it does not have."""
    items, times = data.sequences.get(user, ()), data.timestamps.get(user, ())
    return UserHistory(items[-limit:], times[-limit:], len(items))


def history_frame(
    data: Dataset, live: dict[str, UserHistory], ingested: datetime, published: datetime, limit: int
) -> pl.DataFrame:
    """One row per user of the dataset or of ``live``, whose histories win.

    The event time is that of the newest interaction; where timestamps are an order, of ingest.

    Raises:
        FeatureError: an interaction of the dataset is before 1970 or in the future.
    """
    if data.time_unit != "order":
        _check_times(data, published)
    users = list(dict.fromkeys([*data.sequences, *live]))
    rows = [live.get(user) or published_history(data, user, limit) for user in users]
    last = [row.timestamps[-1] for row in rows]
    events = [ingested if data.time_unit == "order" else datetime.fromtimestamp(time, UTC) for time in last]
    return pl.DataFrame(
        {
            "user_id": users,
            "item_ids": [list(row.item_ids) for row in rows],
            "timestamps": [list(row.timestamps) for row in rows],
            "interactions": [row.interactions for row in rows],
            "last_timestamp": last,
            **_times(events, published),
        },
        schema={
            "user_id": pl.String,
            "item_ids": pl.List(pl.String),
            "timestamps": pl.List(pl.Int64),
            "interactions": pl.Int64,
            "last_timestamp": pl.Int64,
            **_time_types(),
        },
    )


def item_frame(data: Dataset, ingested: datetime, published: datetime) -> pl.DataFrame:
    """One row per item of the catalogue."""
    items = data.catalogue.items
    return pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "phrases": [list(item.phrases) for item in items],
            **_times([ingested] * len(items), published),
        },
        schema={"item_id": pl.String, "title": pl.String, "phrases": pl.List(pl.String), **_time_types()},
    )


def _check_times(data: Dataset, published: datetime) -> None:
    now = published.timestamp()
    if wrong := [user for user, times in data.timestamps.items() if not 0 <= times[-1] <= now]:
        raise FeatureError(
            f"{len(wrong)} users' newest interactions are before 1970 or in the future (user {wrong[0]!r} at "
            f"{data.timestamps[wrong[0]][-1]}); correct the timestamps, or import them with time_unit order"
        )


def _times(events: Sequence[datetime], published: datetime) -> dict[str, list[datetime]]:
    return {"event_timestamp": list(events), "created": [published] * len(events)}


def _time_types() -> dict[str, Any]:
    moment = pl.Datetime("us", "UTC")
    return {"event_timestamp": moment, "created": moment}
