from __future__ import annotations

import gc

import pytest

from deeprec.errors import TrmError
from deeprec.trm import filters
from deeprec.trm.filters import filter_mask
from deeprec.types import Catalogue, Filter, Item

CATALOGUE = Catalogue(
    (
        Item("a", "Up | Down", {"genres": "Comedy|Drama", "year": 1990, "price": "7.5"}),
        Item("b", "Up", {"genres": "Horror", "year": 2001.0, "price": "12"}),
        Item("c", "Left", {"genres": None, "year": None, "price": "n/a"}),
    )
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Filter("genres", "=", "Comedy"), [True, False, False]),
        (Filter("genres", "=", "Com"), [False, False, False]),
        (Filter("genres", "=", " COMEDY "), [True, False, False]),
        (Filter("genres", "!=", "comedy"), [False, True, True]),
        (Filter("title", "=", "up"), [False, True, False]),
        (Filter("genres", "!=", "Comedy"), [False, True, True]),
        (Filter("year", ">=", 1990), [True, True, False]),
        (Filter("year", "<=", "1990"), [True, False, False]),
        (Filter("year", "=", "2001"), [False, True, False]),
        (Filter("price", ">=", 8), [False, True, False]),
        (Filter("title", "=", "Up"), [False, True, False]),
        (Filter("title", "=", "Up | Down"), [True, False, False]),
    ],
)
def test_conditions(condition: Filter, expected: list[bool]) -> None:
    assert filter_mask(CATALOGUE, condition).tolist() == expected


def test_unknown_column_names_the_known_ones() -> None:
    with pytest.raises(TrmError, match=r"no item has a column 'colour'; filter on one of genres, price, title, year"):
        filter_mask(CATALOGUE, Filter("colour", "=", "red"))


def test_order_of_a_word_is_refused() -> None:
    with pytest.raises(TrmError, match="compares numbers"):
        filter_mask(CATALOGUE, Filter("year", ">=", "old"))


def test_missing_and_odd_cells() -> None:
    catalogue = Catalogue(
        (
            Item("a", "1990", {"tag": "x| y |"}),
            Item("b", "nan", {"tag": float("nan")}),
            Item("c", "u", {}),
            Item("d", "u", {"tag": 7}),
            Item("e", "u", {"tag": "7.0|x"}),
        )
    )

    def holds(*condition: str | float) -> list[int]:
        return [row for row, good in enumerate(filter_mask(catalogue, Filter(*condition))) if good]  # type: ignore[arg-type]

    assert holds("tag", "=", "x") == [0, 4]
    assert holds("tag", "=", "y") == [0]
    assert holds("tag", "=", "7") == [3, 4]
    assert holds("tag", "!=", "x") == [1, 2, 3]
    assert holds("tag", ">=", 1) == [3]
    assert holds("title", "=", 1990) == [0]
    assert holds("title", "=", "nan") == [1]
    assert holds("tag", "=", float("nan")) == []


def test_a_column_is_read_once_per_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = filters._read_column

    def watched(catalogue: Catalogue, name: str) -> object:
        read.append(name)
        return original(catalogue, name)

    monkeypatch.setattr(filters, "_read_column", watched)
    catalogue = Catalogue(CATALOGUE.items)
    for value in (1990, 1995, 2000):
        filter_mask(catalogue, Filter("year", ">=", value))
        filter_mask(catalogue, Filter("genres", "!=", str(value)))
    assert sorted(read) == ["genres", "year"]


def test_columns_go_with_their_catalogue() -> None:
    before = len(filters._KNOWN)
    catalogue = Catalogue(CATALOGUE.items)
    filter_mask(catalogue, Filter("year", ">=", 1990))
    assert len(filters._KNOWN) == before + 1
    del catalogue
    gc.collect()
    assert len(filters._KNOWN) == before
