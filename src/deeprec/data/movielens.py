"""MovieLens: an unpacked official ``ml-1m``, ``ml-latest-small`` or ``ml-32m``, or a prepared directory.

- ``ratings.dat``, ``movies.dat``: fields separated by ``::``; titles are Latin-1 where they are not UTF-8.
- ``ratings.csv``, ``movies.csv``: UTF-8 with a header.
- ``interactions.parquet`` (user_id, item_id, position), ``items.parquet`` (item_id, title, genres): only an order.

Years come from titles such as ``Toy Story (1995)``. Only the columns needed are read, ids stay integers.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from deeprec.data.source import Source, listing, reading, renamed, require_directory, require_file
from deeprec.errors import DataError

_NO_GENRES = "(no genres listed)"
_CURE = "give an unpacked MovieLens directory"


def read_movielens(path: str | Path) -> Source:
    """Read whichever of the three layouts the directory holds.

    Raises:
        DataError: no layout is complete, or a file cannot be read.
    """
    place = require_directory(path, "MovieLens, for example ml-1m")
    if (place / "ratings.dat").exists() or (place / "movies.dat").exists():
        return _source(_read_dat_ratings(place / "ratings.dat"), _read_dat_movies(place / "movies.dat"), "seconds")
    if (place / "ratings.csv").exists() or (place / "movies.csv").exists():
        return _source(_read_csv_ratings(place / "ratings.csv"), _read_csv_movies(place / "movies.csv"), "seconds")
    if (place / "interactions.parquet").exists() or (place / "items.parquet").exists():
        return _read_prepared(place)
    raise DataError(
        f"{place} holds {listing(place)}, which is no MovieLens data; name a directory with ratings.dat and "
        f"movies.dat, or ratings.csv and movies.csv"
    )


def _source(interactions: pl.DataFrame, movies: pl.DataFrame, time_unit: str) -> Source:
    items = movies.with_columns(
        pl.col("genres").replace([_NO_GENRES, ""], [None, None]),
        pl.col("title").str.extract(r"\((\d{4})[^()]{0,8}\)\s*$").cast(pl.Int64).alias("year"),
    )
    return Source("movielens", interactions, items, time_unit, year_column="year")


def _read_dat_ratings(path: Path) -> pl.DataFrame:
    schema: dict[str, type[pl.DataType]] = {f"column_{number}": pl.String for number in range(1, 8)}
    schema |= {"column_1": pl.Int32, "column_3": pl.Int32, "column_5": pl.Float32, "column_7": pl.Int64}
    frame = pl.scan_csv(require_file(path), separator=":", has_header=False, quote_char=None, schema=schema)
    names = {"user_id": "column_1", "item_id": "column_3", "rating": "column_5", "timestamp": "column_7"}
    with reading(path):
        return renamed(frame, names, {}, path, _CURE).collect(engine="streaming")


def _read_dat_movies(path: Path) -> pl.DataFrame:
    with reading(require_file(path)):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line:
            continue
        identity, _, rest = line.partition("::")
        title, separator, genres = rest.rpartition("::")
        if not separator or not identity.isdigit():
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not id::title::genres; {_CURE}")
        rows.append((int(identity), title, genres))
    return pl.DataFrame(rows, schema={"item_id": pl.Int32, "title": pl.String, "genres": pl.String}, orient="row")


def _read_csv_ratings(path: Path) -> pl.DataFrame:
    schema: dict[str, type[pl.DataType]] = {
        "userId": pl.Int32,
        "movieId": pl.Int32,
        "rating": pl.Float32,
        "timestamp": pl.Int64,
    }
    names = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
    return _read_csv(path, schema, names)


def _read_csv_movies(path: Path) -> pl.DataFrame:
    schema: dict[str, type[pl.DataType]] = {"movieId": pl.Int32, "title": pl.String, "genres": pl.String}
    return _read_csv(path, schema, {"item_id": "movieId", "title": "title", "genres": "genres"})


def _read_csv(path: Path, schema: dict[str, type[pl.DataType]], names: dict[str, str]) -> pl.DataFrame:
    with reading(require_file(path)):
        frame = pl.scan_csv(path, schema_overrides=schema)
        return renamed(frame, names, {}, path, _CURE).collect(engine="streaming")


def _read_prepared(place: Path) -> Source:
    log, catalogue = require_file(place / "interactions.parquet"), require_file(place / "items.parquet")
    with reading(log):
        names = {"user_id": "user_id", "item_id": "item_id", "timestamp": "position"}
        interactions = renamed(pl.scan_parquet(log), names, {}, log, _CURE).collect(engine="streaming")
        interactions = interactions.with_columns(pl.col("user_id", "item_id", "timestamp").cast(pl.Int64))
    with reading(catalogue):
        names = {"item_id": "item_id", "title": "title", "genres": "genres"}
        items = renamed(pl.scan_parquet(catalogue), names, {}, catalogue, _CURE).collect()
        items = items.with_columns(pl.col("item_id").cast(pl.Int64), pl.col("title", "genres").cast(pl.String))
    return _source(interactions, items, "order")
