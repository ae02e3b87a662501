"""What every reader returns, and the checks every reader needs.

Ids may be integers or strings while a source is read and cleaned (integers keep a large log small); both tables of one
source use the same type, and ``ingest`` writes strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from deeprec.errors import DataError
from deeprec.wire.ids import MAX_ID


@dataclass(frozen=True)
class Source:
    """One source as read, before cleaning.

    ``interactions`` has user_id, item_id, timestamp (int64, null where missing) and possibly rating, in file order;
    ``items`` has item_id, title (null where missing) and further columns. ``time_unit`` is ``seconds`` or ``order``.
    ``text_columns`` and ``year_column``, where given, are the source's own column roles and come before the
    configuration's.
    """

    name: str
    interactions: pl.DataFrame
    items: pl.DataFrame
    time_unit: str
    text_columns: tuple[str, ...] | None = None
    year_column: str | None = None


def require_directory(path: str | Path, what: str) -> Path:
    """``path`` as a directory.

    Raises:
        DataError: it is not set, does not exist or is a file.
    """
    if not str(path):
        raise DataError(f"no directory named for {what}; set data.path to it")
    place = Path(path)
    if not place.is_dir():
        state = "is not a directory" if place.exists() else "does not exist"
        raise DataError(f"{place} {state}; set data.path to the directory of {what}")
    return place


def require_file(path: Path) -> Path:
    """``path`` as a file with something in it.

    Raises:
        DataError: it is missing (naming what is there) or empty.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; {path.parent} holds {listing(path.parent)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; copy or download it again")
    return path


def listing(place: Path, limit: int = 8) -> str:
    """Names of a directory's entries, for a message."""
    names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"


def column_names(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        DataError: it cannot be read.
    """
    with reading(require_file(path)):
        return list(pl.read_parquet_schema(path))


def require_columns(found: Sequence[str], needed: Sequence[str], path: Path, cure: str) -> None:
    """
    Raises:
        DataError: a needed column is absent; the message names the columns found.
    """
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}; {cure}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Polars and the file system raise while ``path`` is read into one clear error."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"cannot read {path}: {lines[0]}; the file may be damaged or of another format") from error


def renamed(
    frame: pl.LazyFrame,
    needed: Mapping[str, str],
    optional: Mapping[str, str],
    path: Path,
    cure: str,
) -> pl.LazyFrame:
    """Select columns under our names. Both mappings are our name → the file's name.

    Raises:
        DataError: a needed column is absent, or the header cannot be read.
    """
    with reading(path):
        found = frame.collect_schema().names()
    require_columns(found, list(needed.values()), path, cure)
    chosen = {**needed, **{ours: theirs for ours, theirs in optional.items() if theirs in found}}
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in chosen.items())


def as_timestamps(column: pl.Series, path: Path) -> pl.Series:
    """Unix seconds (or positions) as int64; dates and times are taken as UTC.

    Raises:
        DataError: a value is neither an integer nor a date, for example ``2019-05-01`` as text.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("s").alias(column.name)
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    text = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    numbers = text.cast(pl.Float64, strict=False)
    exact = text.cast(pl.Int64, strict=False)
    whole = numbers.is_finite() & (numbers == numbers.floor()) & (numbers.abs() < 2.0**53)
    bad = text.is_not_null() & exact.is_null() & ~whole.fill_null(False)
    if bad.any():
        value = text.filter(bad)[0]
        raise DataError(f"{path}: {value!r} in the timestamp column is not an integer; give Unix seconds or positions")
    return exact.fill_null(numbers.cast(pl.Int64, strict=False)).alias(column.name)


def as_ratings(column: pl.Series, path: Path) -> pl.Series:
    """Ratings as float32, null where missing.

    Raises:
        DataError: a value is not a number.
    """
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.set(column == "", None)
    numbers = column.cast(pl.Float32, strict=False)
    bad = column.is_not_null() & numbers.is_null()
    if bad.any():
        raise DataError(f"{path}: {column.filter(bad)[0]!r} in the rating column is not a number; correct the file")
    return numbers


def as_ids(column: pl.Series) -> pl.Series:
    """Ids as strings, null where blank; whole numbers of a column of floats as their digits.

    Raises:
        DataError: one is longer than servers take.
    """
    text = column.cast(pl.String).str.strip_chars()
    if column.dtype.is_float():
        text = text.str.strip_suffix(".0")
    text = text.set(text == "", None)
    long = text.str.len_chars() > MAX_ID
    if long.any():
        first = text.filter(long)[0]
        raise DataError(
            f"{long.sum()} values of {column.name} are longer than {MAX_ID} characters, which is the most that servers "
            f"take of an id (the first begins with {first[:40]!r}); give shorter ids"
        )
    return text


def as_years(column: pl.Series) -> pl.Series:
    """Years as int64, null where there is none."""
    return column.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).alias(column.name)


def typed(interactions: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Interactions with string ids, int64 timestamps and float32 ratings."""
    columns = [as_ids(interactions["user_id"]), as_ids(interactions["item_id"])]
    columns.append(as_timestamps(interactions["timestamp"], path))
    if "rating" in interactions.columns:
        columns.append(as_ratings(interactions["rating"], path))
    return pl.DataFrame(columns)
