from __future__ import annotations

import pytest

from deeprec.errors import TrmError
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
