"""The name of a source's contents: what changes it, and what there must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config import DataConfig
from deeprec.data.version import check_source, source_version
from deeprec.errors import DataError


def named(path: Path) -> str:
    return source_version(DataConfig(source="table", path=str(path)))


def test_it_follows_contents_and_names_of_files_and_nothing_else(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "items.csv").write_text("item_id\na\n", encoding="utf-8")
    before = named(one)
    assert before == named(two)
    (two / "items.csv").write_text("item_id\nb\n", encoding="utf-8")
    changed = named(two)
    (two / "items.csv").rename(two / "things.csv")
    assert len({before, changed, named(two)}) == 3


def test_generated_data_are_named_so() -> None:
    """KFP takes no empty parameter from a task."""
    assert source_version(DataConfig()) == "generated"


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_where_there_is_nothing_one_sentence_says_so(path: str) -> None:
    for look in (check_source, source_version):
        with pytest.raises(DataError, match=r"(there is nothing at /nowhere|data\.path is empty).*data\.path=DIR"):
            look(DataConfig(source="movielens", path=path))
