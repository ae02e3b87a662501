"""RecBole atomic files: a directory with one ``.inter`` and one ``.item`` file.

Tab-separated, with typed headers such as ``user_id:token`` and ``genre:token_seq``. The values of a ``token_seq`` text
column are separated by spaces and become ``|``; a title is kept as it is. Columns are found under our names or the
usual ones of published files (``movie_title``, ``class``, ``release_year``, …), or as ``data.columns`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from deeprec.data.source import (
    Source,
    as_ids,
    as_years,
    listing,
    reading,
    renamed,
    require_columns,
    require_directory,
    require_file,
    typed,
)
from deeprec.errors import DataError

_USUAL = {
    "title": ("title", "movie_title", "item_name", "name", "artist_name", "book_title"),
    "genres": ("genres", "genre", "class", "categories", "category"),
    "year": ("year", "release_year", "publication_year"),
}
_CURE = "map it with data.columns, for example --column title=movie_title"


def read_recbole(
    path: str | Path, columns: Mapping[str, str], text_columns: tuple[str, ...], year_column: str | None
) -> Source:
    """Read the directory. ``columns`` maps our names to the files', without the types of their headers.

    Raises:
        DataError: not exactly one file of each kind, a column is missing, or a value has the wrong type.
    """
    place = require_directory(path, "RecBole atomic files")
    log, catalogue = _only(place, ".inter"), _only(place, ".item")
    interactions = _read_interactions(log, columns)
    return Source("recbole", interactions, _read_items(catalogue, columns, text_columns, year_column), "seconds")


def _only(place: Path, suffix: str) -> Path:
    found = sorted(place.glob(f"*{suffix}"))
    if len(found) != 1:
        raise DataError(f"{place} holds {len(found)} {suffix} files ({listing(place)}); it must hold exactly one")
    return require_file(found[0])


def _scan(path: Path) -> tuple[pl.LazyFrame, dict[str, str]]:
    """The file with bare column names, all strings, and each column's declared type."""
    with reading(path):
        frame = pl.scan_csv(path, separator="\t", infer_schema=False, quote_char=None)
        headers = frame.collect_schema().names()
    types = dict(header.partition(":")[::2] for header in headers)
    untyped = [header for header in headers if ":" not in header]
    if untyped:
        raise DataError(f"{path}: header {untyped[0]!r} has no type; RecBole headers look like user_id:token")
    return frame.rename({header: header.partition(":")[0] for header in headers}), types


def _read_interactions(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    frame, _ = _scan(path)
    needed = {name: columns.get(name, name) for name in ("user_id", "item_id", "timestamp")}
    optional = {"rating": columns.get("rating", "rating")}
    with reading(path):
        return typed(renamed(frame, needed, optional, path, _CURE).collect(engine="streaming"), path)


def _read_items(
    path: Path, columns: Mapping[str, str], text_columns: tuple[str, ...], year_column: str | None
) -> pl.DataFrame:
    frame, types = _scan(path)
    names = {"item_id": columns.get("item_id", "item_id")}
    wanted = ["title", *text_columns, *([year_column] if year_column else [])]
    for ours in wanted:
        usual = [columns[ours]] if ours in columns else _USUAL.get(ours, (ours,))
        names[ours] = next((name for name in usual if name in types), usual[0])
    if year_column and names[year_column] not in types:
        del names[year_column]
    require_columns(list(types), list(names.values()), path, _CURE)
    with reading(path):
        items = renamed(frame, names, {}, path, _CURE).collect()
    lists = [name for name in text_columns if types[names[name]] == "token_seq"]
    items = items.with_columns(as_ids(items["item_id"]), pl.col(lists).str.strip_chars().str.replace_all(r"\s+", "|"))
    if year_column in items.columns:
        items = items.with_columns(as_years(items[str(year_column)]))
    return items
