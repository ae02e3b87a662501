"""Users by part of their id, from a file laid out as a publication's."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import FeatureError
from deeprec.features.store import publish
from deeprec.features.users import HISTORIES, KnownUser, UserDirectory


@pytest.fixture
def store(tmp_path: Path) -> Path:
    file = tmp_path / "current" / HISTORIES
    file.parent.mkdir(parents=True)
    users = ["anna", "Hanna", "ANton", "bob", "a.b", "50%"]
    pl.DataFrame({"user_id": users, "interactions": list(range(6))}).write_parquet(file)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("an", ["anna", "ANton", "Hanna"]),
        (" ANN ", ["anna", "Hanna"]),
        ("", ["anna", "Hanna", "ANton", "bob", "a.b", "50%"]),
        ("a.", ["a.b"]),
        ("%", ["50%"]),
        (".*", []),
    ],
)
def test_ids_that_begin_so_come_first(store: Path, text: str, ids: list[str]) -> None:
    assert [user.user_id for user in UserDirectory(store).find(text, 10)] == ids


def test_the_limit_holds_and_a_new_file_is_seen(store: Path) -> None:
    users = UserDirectory(store)
    assert users.find("an", 2) == (KnownUser("anna", 0), KnownUser("ANton", 2))
    pl.DataFrame({"user_id": ["new"], "interactions": [7]}).write_parquet(store / "current" / HISTORIES)
    assert users.find("", 10) == (KnownUser("new", 7),)


def test_the_newest_come_first(store: Path) -> None:
    users = {"user_id": ["a", "b", "c", "d"], "last_timestamp": [2, 9, 2, 5]}
    pl.DataFrame(users).write_parquet(store / "current" / HISTORIES)
    assert UserDirectory(store).newest(3) == ("b", "d", "a")
    assert UserDirectory(store).newest(9) == ("b", "d", "a", "c")


def test_a_store_that_is_not_there_is_a_feature_error(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="publish the features again"):
        UserDirectory(tmp_path).find("a", 1)
    with pytest.raises(FeatureError, match="publish the features again"):
        UserDirectory(tmp_path).newest(1)


def test_it_reads_what_is_published(sample_dataset: Path, dataset: Dataset, tmp_path: Path) -> None:
    publish(sample_dataset, FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "published")
    found = UserDirectory(tmp_path / "features").find("", 10_000)
    assert {user.user_id: user.interactions for user in found} == {
        user: len(items) for user, items in dataset.sequences.items()
    }
    assert len(UserDirectory(tmp_path / "features").newest(7)) == 7
