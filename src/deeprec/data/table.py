"""Generic CSV, TSV and Parquet: a file of interactions and a file of items, with a column mapping.

``data.columns`` maps our names to the files'. A key may be limited to one file, as in ``items.item_id``; a name that is
not mapped stands for itself. CSV values are read as text, so ids keep leading zeros. Lists in Parquet cells become
values joined by ``|``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from deeprec.data.source import (
    Source,
    as_ids,
    as_years,
    reading,
    renamed,
    require_columns,
    require_directory,
    require_file,
    typed,
)
from deeprec.errors import DataError

_CURE = "map it with data.columns, for example --column user_id=customer"
_OURS = ("user_id", "item_id", "timestamp", "rating", "title")


def read_table(
    path: str | Path,
    interactions: str,
    items: str,
    columns: Mapping[str, str],
    text_columns: tuple[str, ...],
    year_column: str | None,
    time_unit: str,
) -> Source:
    """Read both files of the directory. Every column of the items is kept.

    Raises:
        DataError: a file is missing, empty or damaged, a column is missing, or a value has the wrong type.
    """
    place = require_directory(path, "the interactions and items")
    _check_mapping(columns, text_columns, year_column)
    log, catalogue = require_file(place / interactions), require_file(place / items)
    with reading(log):
        needed = {name: _name(columns, "interactions", name) for name in ("user_id", "item_id", "timestamp")}
        rating = {"rating": _name(columns, "interactions", "rating")}
        if any(key in columns for key in ("rating", "interactions.rating")):
            needed |= rating
        frame = typed(renamed(_scan(log), needed, rating, log, _CURE).collect(engine="streaming"), log)
    return Source("table", frame, _read_items(catalogue, columns, text_columns, year_column), time_unit)


def _check_mapping(columns: Mapping[str, str], text_columns: tuple[str, ...], year_column: str | None) -> None:
    known = {*_OURS, *text_columns, *([year_column] if year_column else [])}
    for key in columns:
        table, _, name = key.rpartition(".")
        if name not in known or table not in ("", "interactions", "items"):
            raise DataError(f"data.columns maps {key!r}, which is none of ours; known are {', '.join(sorted(known))}")


def _name(columns: Mapping[str, str], table: str, ours: str) -> str:
    return columns.get(f"{table}.{ours}") or columns.get(ours) or ours


def _scan(path: Path) -> pl.LazyFrame:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return pl.scan_parquet(path)
    if suffix in (".csv", ".tsv"):
        return pl.scan_csv(path, separator="\t" if suffix == ".tsv" else ",", infer_schema=False)
    raise DataError(f"{path} is neither .csv, .tsv nor .parquet; convert it to one of them")


def _read_items(
    path: Path, columns: Mapping[str, str], text_columns: tuple[str, ...], year_column: str | None
) -> pl.DataFrame:
    with reading(path):
        frame = _scan(path)
        found = frame.collect_schema().names()
        names = {ours: _name(columns, "items", ours) for ours in ("item_id", "title", *text_columns)}
        if names["item_id"] not in found and "item_id" in found:
            names["item_id"] = "item_id"
        require_columns(found, list(names.values()), path, _CURE)
        if year_column and _name(columns, "items", year_column) in found:
            names[year_column] = _name(columns, "items", year_column)
        taken = {*names, *names.values()}
        names |= {name: name for name in found if name not in taken}
        items = frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items()).collect(engine="streaming")
    items = items.with_columns(as_ids(items["item_id"]), *(_text(items[name]) for name in ("title", *text_columns)))
    if year_column in items.columns:
        items = items.with_columns(as_years(items[str(year_column)]))
    plain = [name for name in items.columns if items[name].dtype.is_numeric() or items[name].dtype == pl.String]
    return items.select(plain)


def _text(column: pl.Series) -> pl.Series:
    if column.dtype == pl.List:
        return column.cast(pl.List(pl.String)).list.join("|", ignore_nulls=True)
    return column.cast(pl.String)
