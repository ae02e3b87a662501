from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from deeprec.data.items import read_items
from deeprec.errors import DataError
from deeprec.types import Catalogue, Item

CATALOGUE = Catalogue(
    (
        Item("1", "One", {"genres": "Comedy|Drama", "maker": "Acme", "year": 1995, "price": 2.5}, ()),
        Item("2", "Two", {"genres": None, "maker": None, "year": None, "price": None}, ()),
    ),
    ("genres", "maker"),
    "year",
)


def test_phrases_follow_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        "sku,name,genres,year,price,colour\n007,Seven,Comedy|Sci; Fi,1962,3,red\n8,,n/a,soon,,blue\n"
    )
    found = read_items(tmp_path / "new.csv", CATALOGUE, {"item_id": "sku", "title": "name"})
    assert [item.item_id for item in found] == ["007", "8"]
    assert found[0].phrases == ("comedy", "sci fi", "1960s")
    assert found[0].attributes == {"genres": "Comedy|Sci; Fi", "price": 3.0, "year": 1962}
    assert found[1].title == ""
    assert found[1].phrases == ()
    assert found[1].attributes == {"genres": "n/a", "price": None, "year": None}


def test_parquet_and_json_lines_with_lists(tmp_path: Path) -> None:
    rows = [{"item_id": 7, "title": "Seven", "genres": ["Comedy", "Drama"], "year": 1995}]
    pl.DataFrame(rows).write_parquet(tmp_path / "new.parquet")
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("new.parquet", "new.jsonl"):
        [item] = read_items(tmp_path / name, CATALOGUE)
        assert (item.item_id, item.phrases) == ("7", ("comedy", "drama", "1990s"))


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("new.csv", "sku,title\n1,One\n", {}, "no column item_id; it has sku, title; map it with --column"),
        ("new.csv", "item_id,title\n1,One\n", {"maker": "brand"}, "no column brand"),
        ("new.csv", "item_id,title\n1,One\n", {"colour": "title"}, "'colour', which this catalogue does not have"),
        ("new.csv", "item_id,title\n", {}, "no rows"),
        ("new.csv", "item_id,title\n1,One\n ,Two\n", {}, "1 rows without an item_id"),
        ("new.txt", "item_id,title\n", {}, "is none of .csv"),
        ("new.jsonl", "{broken", {}, "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, columns: dict[str, str], message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_items(tmp_path / name, CATALOGUE, columns)
    with pytest.raises(DataError, match="does not exist"):
        read_items(tmp_path / "absent.csv", CATALOGUE)
