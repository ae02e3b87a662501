"""The component that names the data: by the contents of the source, or as the caller does, and by who was forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeprec.components.resolve_data import resolve_data
from deeprec.config import FeaturesConfig
from deeprec.features.places import open_place


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "ratings.dat").write_text("1::1::5::1\n", encoding="latin-1")
    return {"source": "movielens", "path": str(tmp_path / "source")}


def resolved(tmp_path: Path, data: dict[str, Any], data_version: str = "") -> str:
    resolve_data.python_func(
        data=data, data_version=data_version, features={"path": str(tmp_path)}, version=str(tmp_path / "version")
    )
    return (tmp_path / "version").read_text(encoding="utf-8")


def forget(tmp_path: Path, user_id: str) -> None:
    place = open_place(FeaturesConfig(path=str(tmp_path)))
    place.prepare()
    place.forget(user_id)
    place.close()


def test_it_changes_with_the_source_and_with_who_was_forgotten(tmp_path: Path, source: dict[str, Any]) -> None:
    first = resolved(tmp_path, source)
    assert resolved(tmp_path, source) == first
    (tmp_path / "source" / "ratings.dat").write_text("1::2::5::1\n", encoding="latin-1")
    second = resolved(tmp_path, source)
    forget(tmp_path, "u1")
    third = resolved(tmp_path, source)
    forget(tmp_path, "u2")
    assert len({first, second, third, resolved(tmp_path, source)}) == 4


def test_a_name_of_the_callers_own_stands_for_the_contents_alone(tmp_path: Path, source: dict[str, Any]) -> None:
    assert resolved(tmp_path, source, "2026-11") == "2026-11"
    forget(tmp_path, "u1")
    assert resolved(tmp_path, source, "2026-11").startswith("2026-11-")


def test_where_there_is_nothing_to_read_the_task_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolved(tmp_path, {"source": "movielens", "path": str(tmp_path / "gone")})
    assert capsys.readouterr().out.startswith("error: DataError: there is nothing at ")
    assert not (tmp_path / "version").exists()
