"""What a publication holds, as the Parquet tables that Feast's offline side reads: one row per user, one per item."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from deeprec.features.publication import BaseRow, Publication
from deeprec.types import Catalogue


def history_frame(
    rows: Sequence[BaseRow], publication: Publication, ingested: datetime, made: datetime
) -> pl.DataFrame:
    """One row per user. The event time is that of the newest interaction; where timestamps are an order, of ingest."""
    histories = [row.base.history for row in rows]
    in_order = publication.time_unit == "order"
    times = [ingested if in_order else datetime.fromtimestamp(one.timestamps[-1], UTC) for one in histories]
    return pl.DataFrame(
        {
            "user_id": [row.user_id for row in rows],
            "item_ids": [list(history.item_ids) for history in histories],
            "timestamps": [list(history.timestamps) for history in histories],
            "interactions": [history.interactions for history in histories],
            "logged": [row.base.logged for row in rows],
            **_times(times, made),
        },
        schema={
            "user_id": pl.String,
            "item_ids": pl.List(pl.String),
            "timestamps": pl.List(pl.Int64),
            "interactions": pl.Int64,
            "logged": pl.Int64,
            **_time_types(),
        },
    )


def item_frame(catalogue: Catalogue, ingested: datetime, made: datetime) -> pl.DataFrame:
    """One row per item of the catalogue."""
    items = catalogue.items
    return pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "phrases": [list(item.phrases) for item in items],
            **_times([ingested] * len(items), made),
        },
        schema={"item_id": pl.String, "title": pl.String, "phrases": pl.List(pl.String), **_time_types()},
    )


def _times(events: Sequence[datetime], made: datetime) -> dict[str, list[datetime]]:
    return {"event_timestamp": list(events), "created": [made] * len(events)}


def _time_types() -> dict[str, Any]:
    moment = pl.Datetime("us", "UTC")
    return {"event_timestamp": moment, "created": moment}
