"""New items from a file (CSV, TSV, Parquet or JSON lines), with phrases made as the catalogue's own were.

The file has item_id and title, and the attribute columns of the catalogue as far as it has any; a mapping renames
columns. Which columns give phrases is what the catalogue says (``Catalogue.text_columns``, ``year_column``): it keeps
what the import was told. A text column that the file lacks gives no phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.data.phrases import item_phrases
from deeprec.data.source import as_ids, as_years, reading, require_columns, require_file
from deeprec.errors import DataError
from deeprec.types import Catalogue, Item

if TYPE_CHECKING:
    import polars as pl

_CURE = "map it with --column, for example --column item_id=sku"
_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


def read_items(path: Path, catalogue: Catalogue, columns: Mapping[str, str] | None = None) -> tuple[Item, ...]:
    """The items of a file, in its order.

    Args:
        catalogue: says which columns give phrases and what attributes are called.
        columns: our column name → the file's.

    Raises:
        DataError: the file is missing, empty or damaged, a column is missing, or an item has no id.
    """
    frame = _typed(_renamed(_read(require_file(Path(path))), catalogue, columns or {}, Path(path)), catalogue)
    if frame.is_empty():
        raise DataError(f"{path} has no rows; give a file with at least one item")
    if frame["item_id"].null_count():
        raise DataError(f"{path} has {frame['item_id'].null_count()} rows without an item_id; give every item one")
    names = [name for name in frame.columns if name not in ("item_id", "title")]
    found = []
    for row in frame.iter_rows(named=True):
        attributes = {name: row[name] for name in names}
        phrases = item_phrases(attributes, catalogue.text_columns, catalogue.year_column)
        found.append(Item(row["item_id"], row["title"] or "", attributes, phrases))
    return tuple(found)


def _read(path: Path) -> pl.DataFrame:
    import polars as pl

    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(_SUFFIXES)}; convert it to one of them")
    with reading(path):
        if suffix == ".parquet":
            return pl.read_parquet(path)
        if suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(path, infer_schema_length=None)
        return pl.read_csv(path, separator="\t" if suffix == ".tsv" else ",", infer_schema=False)


def _renamed(frame: pl.DataFrame, catalogue: Catalogue, columns: Mapping[str, str], path: Path) -> pl.DataFrame:
    """Under our names: what is mapped, and every column the catalogue knows by the name it has in the file."""
    import polars as pl

    known = {"item_id", "title", *catalogue.text_columns, *_attributes(catalogue)}
    if catalogue.year_column:
        known.add(catalogue.year_column)
    for ours in columns:
        if ours not in known:
            raise DataError(f"--column maps {ours!r}, which this catalogue does not have; it has {_listed(known)}")
    names = {ours: columns.get(ours, ours) for ours in known}
    needed = [names["item_id"], names["title"], *columns.values()]
    require_columns(frame.columns, list(dict.fromkeys(needed)), path, _CURE)
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in sorted(names.items()) if theirs in frame.columns)


def _typed(frame: pl.DataFrame, catalogue: Catalogue) -> pl.DataFrame:
    """Ids and texts as strings, lists joined by ``|``, and numbers where the catalogue has numbers."""
    import polars as pl

    numeric = _numeric(catalogue)
    columns = []
    for name in frame.columns:
        column = frame[name]
        if name == "item_id":
            columns.append(as_ids(column))
        elif name == catalogue.year_column:
            columns.append(as_years(column))
        elif column.dtype == pl.List:
            columns.append(column.cast(pl.List(pl.String)).list.join("|", ignore_nulls=True))
        elif name in numeric:
            columns.append(column.cast(pl.Float64, strict=False))
        else:
            columns.append(column.cast(pl.String))
    return pl.DataFrame(columns)


def _attributes(catalogue: Catalogue) -> set[str]:
    return {name for item in catalogue.items for name in item.attributes}


def _numeric(catalogue: Catalogue) -> set[str]:
    """Attributes whose values are numbers, text columns aside."""
    found: dict[str, bool] = {}
    for item in catalogue.items:
        for name, value in item.attributes.items():
            if value is not None:
                found[name] = found.get(name, True) and not isinstance(value, str)
    return {name for name, number in found.items() if number} - set(catalogue.text_columns)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
