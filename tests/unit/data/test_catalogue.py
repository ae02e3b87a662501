from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.catalogue import FILE, distinct_titles, read_catalogue, write_catalogue
from deeprec.errors import ArtifactError
from deeprec.types import Catalogue, Item


def test_a_catalogue_reads_back_equal(catalogue: Catalogue, tmp_path: Path) -> None:
    write_catalogue(tmp_path, catalogue)
    found = read_catalogue(tmp_path)
    assert found == catalogue
    assert found.text_columns == ("genres", "maker")
    assert found.year_column == "year"
    assert len((tmp_path / FILE).read_text().splitlines()) == len(catalogue) + 2


def test_it_is_plain_json_one_item_a_line_with_equal_phrases_shared(tmp_path: Path) -> None:
    items = (
        Item("a", 'A "quoted"\nline  title', {"genres": "x|y", "price": float("nan")}, ("x", "y")),
        Item("b", "Ünïcode ; [bold]", {"genres": None, "price": Decimal("1.5")}, ("y",)),
    )
    write_catalogue(tmp_path, Catalogue(items))
    values = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert [row["id"] for row in values["items"]] == ["a", "b"]
    assert values["year_column"] is None
    found = read_catalogue(tmp_path)
    assert found.items[0].title == items[0].title
    assert [item.attributes["price"] for item in found.items] == [None, 1.5]
    assert found.items[0].phrases[1] is found.items[1].phrases[0]


def test_an_empty_catalogue(tmp_path: Path) -> None:
    write_catalogue(tmp_path, Catalogue(()))
    assert read_catalogue(tmp_path) == Catalogue(())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"items": [{}]}', '{"items": 3}'])
def test_what_is_no_catalogue_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"catalogue\.json"):
        read_catalogue(tmp_path)
    with pytest.raises(ArtifactError, match="make the artifact again"):
        read_catalogue(tmp_path / "absent")


def test_titles_are_numbered() -> None:
    assert distinct_titles(["A", "B", "A", "A (2)", "A"]) == ["A", "B", "A (3)", "A (2)", "A (4)"]
    assert distinct_titles(["A", "A"], {"A", "A (2)"}) == ["A (3)", "A (4)"]


@given(
    st.lists(st.sampled_from(["A", "A (2)", "B", "A (2) (2)"]), max_size=12),
    st.sets(st.sampled_from(["A", "B", "B (2)", "A (3)"])),
)
def test_titles_become_distinct_and_new_ones_stay(titles: list[str], taken: set[str]) -> None:
    found = distinct_titles(titles, taken)
    assert len(set(found)) == len(titles)
    assert not set(found) & taken
    for place, title in enumerate(titles):
        if title not in taken and title not in titles[:place]:
            assert found[place] == title
