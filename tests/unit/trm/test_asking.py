from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.errors import TrmError
from deeprec.trm.asking import ItemNames, parse_filter, parse_preference
from deeprec.types import Catalogue, Filter, Item

TITLES = {
    "1": "Toy Story (1995)",
    "2": "Heat (1995)",
    "3": "I, Robot; You, Jane",
    "4": "heat (1995) ",
    "5": "300",
    "300": "Something Else",
    "6": "Good, the Bad; the Ugly; The",
    "7": "the Ugly",
}
NAMES = ItemNames(Catalogue(tuple(Item(item_id, title) for item_id, title in TITLES.items())))


def test_id_then_title_then_any_case() -> None:
    assert NAMES.find("300") == "300"
    assert NAMES.find(" Heat (1995) ") == "2"
    assert NAMES.find("toy  STORY (1995)") == "1"
    assert NAMES.find("HEAT (1995)") is None
    assert NAMES.find("") is None
    assert NAMES.resolve(["5", "Something Else"]) == ("5", "300")


def test_what_names_nothing_or_too_much_says_so() -> None:
    with pytest.raises(TrmError, match=r"no item has the id or title 'Toy Story'; did you mean 'Toy Story \(1995\)'"):
        NAMES.resolve(["Toy Story"])
    with pytest.raises(TrmError, match=r"did you mean 'Heat \(1995\)' or 'heat \(1995\) '"):
        NAMES.resolve(["Haet (1995)"])
    with pytest.raises(TrmError, match=r"2 items are called 'HEAT .* some case; name one by its id: 2, 4"):
        NAMES.resolve(["HEAT (1995)"])
    with pytest.raises(TrmError, match="'zzzz'; name an item by its id or title"):
        NAMES.resolve(["zzzz"])


def test_titles_with_a_separator_of_their_own() -> None:
    assert NAMES.split("Toy Story (1995); Heat (1995)") == ("1", "2")
    assert NAMES.split("I, Robot; You, Jane") == ("3",)
    assert NAMES.split("1;I, Robot; You, Jane; 2;") == ("1", "3", "2")
    assert NAMES.split("Good, the Bad; the Ugly; The; the Ugly") == ("6", "7")
    assert NAMES.split(" ; ") == ()
    with pytest.raises(TrmError, match="'Nowhere'"):
        NAMES.split("1; Nowhere; 2")


@given(st.lists(st.sampled_from(sorted(set(TITLES) - {"4"})), max_size=6))
def test_joined_titles_are_split_again(ids: list[str]) -> None:
    assert NAMES.split("; ".join(TITLES[item] for item in ids if item != "5")) == tuple(i for i in ids if i != "5")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("year >= 1990", Filter("year", ">=", 1990.0)),
        ("year<=1990.5", Filter("year", "<=", 1990.5)),
        ("genres = Science Fiction", Filter("genres", "=", "Science Fiction")),
        ("genres == Comedy", Filter("genres", "=", "Comedy")),
        ("genres != Comedy", Filter("genres", "!=", "Comedy")),
        ("list price = -3", Filter("list price", "=", -3.0)),
        ("title = '300'", Filter("title", "=", "300")),
        ("title = a >= b", Filter("title", "=", "a >= b")),
    ],
)
def test_filters(text: str, wanted: Filter) -> None:
    assert parse_filter(text) == wanted


@pytest.mark.parametrize("text", ["", "year", "year > 1990", "= 3", "year >=", "year => 1990", "year >> 3"])
def test_malformed_filters_are_refused(text: str) -> None:
    with pytest.raises(TrmError, match="not of the form COLUMN OPERATOR VALUE"):
        parse_filter(text)


def test_preferences() -> None:
    assert parse_preference(" Comedy;1990s ; ;comedy") == ("comedy", "1990s")
    assert parse_preference("anything") == parse_preference("") == parse_preference(()) == ()
    assert parse_preference(["Science  Fiction", "x"]) == ("science fiction", "x")
