from __future__ import annotations

import pytest

from deeprec.data.phrases import decade, item_phrases


def test_order_case_and_duplicates() -> None:
    attributes = {"genres": "Comedy|Drama|comedy", "maker": "Drama", "year": 1995}
    assert item_phrases(attributes, ("genres", "maker"), "year") == ("comedy", "drama", "1990s")
    assert item_phrases(attributes, ("maker", "genres"), None) == ("drama", "comedy")


def test_values_that_say_nothing_are_left_out() -> None:
    attributes = {"genres": "(no genres listed)||Anything| ", "maker": None, "year": None}
    assert item_phrases(attributes, ("genres", "maker", "absent"), "year") == ()
    assert item_phrases({"genres": "x" * 61}, ("genres",), None) == ()


def test_separators_and_markup_become_spaces() -> None:
    assert item_phrases({"maker": "A; B\n<c>"}, ("maker",), None) == ("a b c",)


@pytest.mark.parametrize(
    ("year", "expected"),
    [(1995, "1990s"), (2000.0, "2000s"), ("1989", "1980s"), ("soon", None), (float("nan"), None), (95, None)],
)
def test_decade(year: str | float, expected: str | None) -> None:
    assert decade(year) == expected
