"""The dataset artifact: a directory with ``interactions.parquet``, ``items.parquet`` and ``dataset.json``.

``interactions.parquet`` has user_id (string), item_id (string), timestamp (int64) and possibly rating; its rows are
grouped by user and time-ordered within one, so file order is the order of every history, ties included.
``items.parquet`` has item_id, a unique title, the text columns and a year; row order is the catalogue's.
``dataset.json`` has counts, column roles (``text_columns``, ``year_column``), ``source``, ``time_unit`` (``seconds``,
or ``order`` where timestamps are only positions), ``policy_positions``, ``missing_titles``, the sha256 of both tables,
and the ingest report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.data.phrases import item_phrases
from deeprec.errors import DataError
from deeprec.store import file_digest, read_artifact, write_artifact
from deeprec.types import Catalogue, Item, JsonDict

if TYPE_CHECKING:
    import polars as pl

KIND = "dataset"
INTERACTIONS = "interactions.parquet"
ITEMS = "items.parquet"
INFO = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """Interactions and catalogue in memory.

    ``sequences`` maps a user id to item ids, oldest first; ``timestamps`` to the matching Unix seconds or positions.
    ``info`` is ``dataset.json``.
    """

    catalogue: Catalogue
    sequences: Mapping[str, tuple[str, ...]]
    timestamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    info: JsonDict = field(default_factory=dict)

    @property
    def policy_positions(self) -> int:
        """How many items before the validation target are the policy's targets."""
        return int(self.info.get("policy_positions", 1))

    @property
    def time_unit(self) -> str:
        """``seconds`` or ``order``."""
        return str(self.info.get("time_unit", "seconds"))

    @property
    def repeats(self) -> str:
        """Which of a user's interactions with one item is kept: ``first``, ``last`` or ``all``."""
        return str(self.info.get("repeats", "first"))


def write_dataset(
    path: str | Path,
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    *,
    source: str,
    time_unit: str,
    text_columns: Sequence[str],
    year_column: str | None,
    policy_positions: int,
    repeats: str = "first",
    missing_titles: int = 0,
    report: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> None:
    """Write a dataset artifact. ``interactions`` must already be grouped by user and time-ordered.

    Raises:
        StoreError: the place cannot be written.
    """
    with write_artifact(path, KIND, config=config, seed=seed) as work:
        interactions.write_parquet(work / INTERACTIONS)
        items.write_parquet(work / ITEMS)
        info = {
            "users": interactions["user_id"].n_unique(),
            "items": items.height,
            "interactions": interactions.height,
            "text_columns": list(text_columns),
            "year_column": year_column,
            "source": source,
            "time_unit": time_unit,
            "policy_positions": policy_positions,
            "repeats": repeats,
            "missing_titles": missing_titles,
            "files": {name: file_digest(work / name) for name in (INTERACTIONS, ITEMS)},
            "report": dict(report or {}),
        }
        (work / INFO).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_info(path: str | Path) -> JsonDict:
    """``dataset.json`` alone, without reading or checking the tables.

    Raises:
        ArtifactError: no dataset there.
        DataError: ``dataset.json`` cannot be read.
    """
    place = Path(path)
    read_artifact(place, KIND, verify=False)
    try:
        info = json.loads((place / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {place / INFO}: {error}; import the data again") from error
    if not isinstance(info, dict):
        raise DataError(f"{place / INFO} holds no mapping; import the data again")
    return info


def read_dataset(path: str | Path) -> Dataset:
    """Read a dataset, checking every file's hash.

    Raises:
        ArtifactError: no dataset there, or a file differs from its manifest.
        DataError: the tables cannot be read or do not fit together.
    """
    import polars as pl

    place = Path(path)
    read_artifact(place, KIND)
    info = read_info(place)
    try:
        items = pl.read_parquet(place / ITEMS)
        interactions = pl.read_parquet(place / INTERACTIONS, columns=["user_id", "item_id", "timestamp"])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read the tables of {place}: {error}; import the data again") from error
    catalogue = build_catalogue(items, info["text_columns"], info["year_column"])
    sequences, timestamps = _histories(interactions, catalogue, place)
    return Dataset(catalogue, sequences, timestamps, info)


def build_catalogue(items: pl.DataFrame, text_columns: Sequence[str], year_column: str | None) -> Catalogue:
    """Items with their phrases, in row order."""
    names = [name for name in items.columns if name not in ("item_id", "title")]
    found = []
    for row in items.iter_rows(named=True):
        attributes = {name: row[name] for name in names}
        phrases = item_phrases(attributes, text_columns, year_column)
        found.append(Item(row["item_id"], row["title"], attributes, phrases))
    return Catalogue(tuple(found), tuple(text_columns), year_column)


def _histories(
    interactions: pl.DataFrame, catalogue: Catalogue, place: Path
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """Histories whose item ids are the catalogue's own string objects, so that long logs cost a pointer an item."""
    import polars as pl

    ids = [item.item_id for item in catalogue.items]
    rows = pl.DataFrame({"item_id": ids, "row": range(len(ids))}, schema={"item_id": pl.String, "row": pl.Int64})
    joined = interactions.join(rows, on="item_id", how="left", maintain_order="left")
    if joined["row"].null_count():
        unknown = joined.filter(pl.col("row").is_null())["item_id"][0]
        raise DataError(f"{place / INTERACTIONS} names item {unknown!r}, absent from {ITEMS}; import the data again")
    grouped = joined.group_by("user_id", maintain_order=True).agg("row", "timestamp")
    sequences: dict[str, tuple[str, ...]] = {}
    timestamps: dict[str, tuple[int, ...]] = {}
    for user, item_rows, times in grouped.iter_rows():
        sequences[user] = tuple([ids[row] for row in item_rows])
        timestamps[user] = tuple(times)
    return sequences, timestamps
