"""Title search and filter columns, on a catalogue small enough to know every answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.serving.page.lookup import MAX_VALUES, CatalogueLookup, fold
from deeprec.types import Catalogue, Item

TITLES = (
    "Amélie (2001)",
    "The Matrix",
    "Matrix, The Animated",
    "A Room with a View",
    "Dramatic Room",
    "ROOM",
    "Straße nach Süden",
    "東京物語",
    "two\nlines  and a\ttab",
)
CATALOGUE = Catalogue(tuple(Item(f"i{row}", title) for row, title in enumerate(TITLES)))


def found(text: str, limit: int = 20) -> list[str]:
    return [item.item_id for item in CatalogueLookup(CATALOGUE).find(text, limit)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("amelie", ["i0"]),
        ("ÁMÉLIE", ["i0"]),
        ("room", ["i5", "i3", "i4"]),
        ("  rOOm ", ["i5", "i3", "i4"]),
        ("ma", ["i2", "i1", "i4"]),
        ("the matrix", ["i1", "i2"]),
        ("matrix the", ["i1", "i2"]),
        ("strasse", ["i6"]),
        ("suden", ["i6"]),
        ("京物", ["i7"]),
        ("lines and a tab", ["i8"]),
        ("(2001)", ["i0"]),
        ("i4", ["i4"]),
        ("nothing of it", []),
    ],
)
def test_a_title_is_found_by_its_beginning_first_then_by_words_then_anywhere(text: str, ids: list[str]) -> None:
    assert found(text) == ids


def test_the_limit_cuts_and_empty_text_gives_the_first_items() -> None:
    assert found("room", 2) == ["i5", "i3"]
    assert found("", 3) == ["i0", "i1", "i2"]
    assert [item.item_id for item in CatalogueLookup(Catalogue(())).find("x", 5)] == []


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8), st.text(max_size=8), st.integers(1, 10))
def test_every_title_that_holds_the_text_is_found_once(titles: list[str], text: str, limit: int) -> None:
    catalogue = Catalogue(tuple(Item(f"id {row}", title) for row, title in enumerate(titles)))
    ids = [item.item_id for item in CatalogueLookup(catalogue).find(text, limit)]
    query = fold(text)
    holding = [row for row, title in enumerate(titles) if all(word in fold(title) for word in query.split())]
    assert len(ids) == len(set(ids)) == min(limit, len(holding) if query else len(titles))
    assert {f"id {row}" for row in holding} >= set(ids)
    beginning = [f"id {row}" for row in holding if fold(titles[row]).startswith(query)]
    assert ids[: len(beginning)] == beginning[:limit]


def test_columns_offer_a_range_or_the_frequent_values() -> None:
    items = [
        Item("a", "A", {"genres": "Drama|Comedy", "year": 1990, "price": "2.5", "text": "x" * 61, "gone": None}),
        Item("b", "B", {"genres": "Drama", "year": "1985", "price": "10", "text": "y"}),
        Item("c", "C", {"genres": " Comedy | Drama |", "year": None, "price": None, "maker": "M"}),
    ]
    columns = {column["name"]: column for column in CatalogueLookup(Catalogue(tuple(items))).columns}
    assert columns["genres"] == {
        "name": "genres",
        "numeric": False,
        "values": [{"value": "Drama", "count": 3}, {"value": "Comedy", "count": 2}],
    }
    assert columns["year"] == {"name": "year", "numeric": True, "low": 1985, "high": 1990, "values": []}
    assert (columns["price"]["low"], columns["price"]["high"]) == (2.5, 10)
    assert columns["text"]["values"] == []
    assert columns["gone"] == {"name": "gone", "numeric": False, "values": []}
    assert columns["maker"]["values"] == [{"value": "M", "count": 1}]


def test_values_and_phrases_are_bounded_and_most_frequent_first() -> None:
    items = tuple(Item(str(row), str(row), {"tag": f"t{row}|all"}, ("all", f"p{row}")) for row in range(3 * MAX_VALUES))
    lookup = CatalogueLookup(Catalogue(items))
    (tag,) = lookup.columns
    assert len(tag["values"]) == len(lookup.phrases) == MAX_VALUES
    assert tag["values"][0] == {"value": "all", "count": len(items)}
    assert lookup.phrases[0] == {"value": "all", "count": len(items)}
