from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.cleaning import clean, k_core, one_of_repeats, time_ordered, unique_titles
from deeprec.errors import DataError

Row = tuple[str, str, int]


def table(rows: list[Row]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def titles(*pairs: tuple[str, str | None]) -> pl.DataFrame:
    return pl.DataFrame(list(pairs), schema={"item_id": pl.String, "title": pl.String}, orient="row")


def test_k_core_by_hand() -> None:
    """Dropping the rare item c leaves u3 with one row; dropping u3 leaves b with two, still enough."""
    rows = [("u1", "a", 1), ("u1", "b", 2), ("u2", "a", 1), ("u2", "b", 2), ("u3", "b", 1), ("u3", "c", 2)]
    assert k_core(table(rows), 2, 2).rows() == rows[:4]
    assert k_core(table(rows), 1, 1).rows() == rows
    assert k_core(table(rows), 2, 3).is_empty()


rows_of = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 3)), max_size=30)


@given(rows_of, st.integers(1, 3), st.integers(1, 3))
def test_k_core_holds_and_is_the_largest(rows: list[Row], min_user: int, min_item: int) -> None:
    found = k_core(table(rows), min_user, min_item).rows()
    assert all(count >= min_user for count in Counter(row[0] for row in found).values())
    assert all(count >= min_item for count in Counter(row[1] for row in found).values())
    remaining = list(rows)
    while True:
        users, items = Counter(row[0] for row in remaining), Counter(row[1] for row in remaining)
        kept = [row for row in remaining if users[row[0]] >= min_user and items[row[1]] >= min_item]
        if kept == remaining:
            break
        remaining = kept
    assert found == remaining


@given(rows_of)
def test_order_is_stable_and_the_first_duplicate_stays(rows: list[Row]) -> None:
    ordered = time_ordered(table(rows)).rows()
    assert ordered == sorted(rows, key=lambda row: (row[0], row[2]))
    expected: dict[tuple[str, str], Row] = {}
    for row in ordered:
        expected.setdefault((row[0], row[1]), row)
    assert one_of_repeats(table(ordered)).rows() == list(expected.values())


def test_ties_keep_file_order() -> None:
    rows = [("u", item, 5) for item in "dacb"]
    assert [row[1] for row in time_ordered(table(rows)).rows()] == list("dacb")


def test_titles_by_hand() -> None:
    items = titles(("1", "A"), ("2", None), ("3", "A"), ("4", "A (2)"), ("5", "  "), ("6", "B\n c"), ("7", "A"))
    found, missing, duplicates = unique_titles(items)
    assert found["title"].to_list() == ["A", "Item 2", "A (3)", "A (2)", "Item 5", "B c", "A (4)"]
    assert (missing, duplicates) == (2, 2)


@given(st.lists(st.one_of(st.none(), st.sampled_from(["A", "A (2)", "A (3)", "Item 1", " A", "", "B"])), min_size=1))
def test_titles_are_always_unique(values: list[str | None]) -> None:
    items = titles(*((str(row), value) for row, value in enumerate(values)))
    found = unique_titles(items)[0]["title"].to_list()
    assert len(set(found)) == len(values)
    assert all(title.strip() for title in found)
    assert unique_titles(items)[0]["title"].to_list() == found


def test_every_drop_is_counted() -> None:
    rows: list[Row | tuple[None, str, int] | tuple[str, str, None]] = [
        ("u", "a", 1), ("u", "a", 2), ("u", "x", 3), (None, "a", 4), ("u", "b", None), ("u", "b", 6), ("v", "a", 7),
    ]  # fmt: skip
    items = titles(("a", "A"), ("b", None), ("c", "C"), ("a", "again"))
    found = clean(table(rows), items, min_user_interactions=2, min_item_interactions=1)  # type: ignore[arg-type]
    assert found.interactions.rows() == [("u", "a", 1), ("u", "b", 6)]
    assert found.items["item_id"].to_list() == ["a", "b"]
    assert [drop.rows for drop in found.interaction_drops] == [1, 1, 1, 1, 1]
    assert sum(drop.rows for drop in found.interaction_drops) == len(rows) - 2
    assert [drop.rows for drop in found.item_drops] == [1, 1]
    assert found.missing_titles == 1


def test_mostly_unknown_items_are_an_error() -> None:
    rows: list[Row] = [("u", "x", 1), ("u", "y", 2), ("u", "a", 3)]
    with pytest.raises(DataError, match="2 of 3 interactions name items"):
        clean(table(rows), titles(("a", "A")), min_user_interactions=1, min_item_interactions=1)


def test_nothing_left_says_why() -> None:
    with pytest.raises(DataError, match=r"no user is left.*9-core of users"):
        clean(table([("u", "a", 1)]), titles(("a", "A")), min_user_interactions=9)
    with pytest.raises(DataError, match="0 interactions"):
        clean(table([]), titles(("a", "A")))


def test_min_rating() -> None:
    rated = table([("u", "a", 1), ("u", "b", 2)]).with_columns(rating=pl.Series([3.0, 4.0]))
    items = titles(("a", "A"), ("b", "B"))
    found = clean(rated, items, min_rating=3.5, min_user_interactions=1, min_item_interactions=1)
    assert found.interactions["item_id"].to_list() == ["b"]
    with pytest.raises(DataError, match="have no rating"):
        clean(rated.drop("rating"), items, min_rating=3.5)
