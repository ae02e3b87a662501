"""The name of a source's contents: what changes it, and what there must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config import DataConfig
from deeprec.data.version import check_source, source_version
from deeprec.errors import DataError


def named(path: Path) -> str:
    return source_version(DataConfig(source="table", path=str(path)))


@pytest.mark.parametrize("name", ["items.csv", "2026/11/items.csv"])
def test_it_follows_contents_and_names_of_files_and_nothing_else(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / name).parent.mkdir(parents=True)
        (tmp_path / folder / name).write_text("item_id\na\n", encoding="utf-8")
    file = tmp_path / "two" / name
    before = named(tmp_path / "one")
    assert before == named(tmp_path / "two")
    file.write_text("item_id\nb\n", encoding="utf-8")
    changed = named(tmp_path / "two")
    file.rename(file.with_name("things.csv"))
    renamed = named(tmp_path / "two")
    assert len({before, changed, renamed}) == 3


def test_a_file_can_be_a_source(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("a", encoding="utf-8")
    before = named(file)
    file.write_text("b", encoding="utf-8")
    assert named(file) != before


def test_generated_data_are_named_so() -> None:
    """KFP takes no empty parameter from a task."""
    assert source_version(DataConfig()) == "generated"


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_where_there_is_nothing_one_sentence_says_so(path: str) -> None:
    for look in (check_source, source_version):
        with pytest.raises(DataError, match=r"(there is nothing at /nowhere|data\.path is empty).*data\.path=DIR"):
            look(DataConfig(source="movielens", path=path))
