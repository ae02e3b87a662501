"""What the data gate reads of a dataset: its two tables, its ``dataset.json``, and aggregates of them.

Tables are read as they lie and may break the Dataset contract; only a file that cannot be read is an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from deeprec.errors import DataError

_SPLIT_TARGETS = 3


@dataclass(frozen=True)
class Tables:
    """A dataset's tables, and ``info``, the content of ``dataset.json``."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    info: dict[str, Any]

    def frame(self, table: str) -> pl.DataFrame:
        """``interactions``, ``items`` or ``aggregates``."""
        return {"interactions": self.interactions, "items": self.items}[table] if table != "aggregates" else self.facts

    def pandas(self, table: str) -> Any:
        """The table as a pandas data frame."""
        return self.frame(table).to_pandas()

    @property
    def shortest_allowed(self) -> int | None:
        """Least history length that can be split: test, validation, policy targets, and one to train on."""
        positions = self.info.get("policy_positions")
        return positions + _SPLIT_TARGETS if isinstance(positions, int) else None

    @cached_property
    def facts(self) -> pl.DataFrame:
        """One row: orphans (interactions whose item is unknown), duplicates and missing_titles (shares), shortest."""
        keys = self.interactions.select(
            pl.col("user_id").cast(pl.String), pl.col("item_id").cast(pl.String), pl.col("timestamp")
        )
        known = self.items.select(pl.col("item_id").cast(pl.String)).unique()
        rows = keys.height
        lengths = keys.group_by("user_id").len()["len"]
        return pl.DataFrame(
            {
                "orphans": [keys.join(known, on="item_id", how="anti").height],
                "duplicates": [(rows - keys.unique().height) / rows if rows else 0.0],
                "missing_titles": [self._missing_titles()],
                "shortest": [lengths.min() if rows else 0],
            }
        )

    def _missing_titles(self) -> float:
        counted = self.info.get("missing_titles")
        titles = self.items["title"].cast(pl.String)
        if not isinstance(counted, int):
            stand_in = pl.concat_str([pl.lit("Item "), pl.col("item_id").cast(pl.String)])
            counted = int(self.items.select((titles.is_null() | (titles == stand_in)).sum()).item())
        return counted / len(titles) if len(titles) else 0.0


def read_tables(dataset: Path) -> Tables:
    """Read a Dataset directory.

    Raises:
        DataError: a file is missing, or is not Parquet or JSON.
    """
    info_path = dataset / "dataset.json"
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {info_path}: {error.strerror}; name a dataset that an import wrote") from error
    except ValueError as error:
        raise DataError(f"{info_path} is not valid JSON: {error}; import the data again") from error
    if not isinstance(info, dict):
        raise DataError(f"{info_path} holds a {type(info).__name__}, not an object; import the data again")
    return Tables(_read(dataset / "interactions.parquet"), _read(dataset / "items.parquet"), info)


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; name a dataset that an import wrote") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as Parquet ({reason}); import the data again") from error
