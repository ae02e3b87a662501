"""The place in a directory: files that are missing, damaged, read only or moved, and what is imported to read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import Dataset, write_dataset
from deeprec.errors import ConfigError, FeatureError, StoreError
from deeprec.features.directory import DirectoryPlace
from deeprec.features.publish import publish

OLD = 956_703_932
HISTORIES = {"u1": ["b", "a", "c"], "u 2/é": ["c", "b", "a", "b"], "3": ["a", "b", "c", "a", "b"]}
TITLES = {"a": "Toy <Story> | 97", "b": "Ünïcode", "c": "C"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with one publication."""
    place = tmp_path_factory.mktemp("made")
    rows = [(user, item, OLD + n) for user, items in HISTORIES.items() for n, item in enumerate(items)]
    interactions = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
    genres = ["Comedy|Drama", "", "War"]
    items = pl.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values()), "genres": genres})
    write_dataset(
        place / "dataset",
        interactions,
        items,
        source="hand",
        time_unit="seconds",
        text_columns=["genres"],
        year_column=None,
        policy_positions=1,
    )
    publish(place / "dataset", FeaturesConfig(path=str(place / "features")), place / "artifact")
    return place


def test_items_are_read_with_their_phrases(made: Path) -> None:
    published = DirectoryPlace(made / "features").newest()
    assert published.items(["a", "b", "x"]) == [
        {"title": TITLES["a"], "phrases": ("comedy", "drama")},
        {"title": TITLES["b"], "phrases": ()},
        None,
    ]


def test_threads_read_what_they_ask_for(made: Path) -> None:
    published = DirectoryPlace(made / "features").newest()
    asked = [*HISTORIES, "nobody"] * 50
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(published.history, asked))
    assert found == [tuple(HISTORIES[user]) if user in HISTORIES else None for user in asked]


def test_it_can_be_moved(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "features", tmp_path / "moved")
    assert DirectoryPlace(tmp_path / "moved").newest().history("u1") == ("b", "a", "c")
    for file in (tmp_path / "moved").rglob("*.db"):
        assert str(made).encode() not in file.read_bytes()


def test_it_can_be_read_where_nothing_can_be_written(made: Path, tmp_path: Path) -> None:
    """Even by root, which permissions do not stop: the files are opened as SQLite opens what is on a read-only disk."""
    shutil.copytree(made / "features", tmp_path / "features")
    before = {file: file.read_bytes() for file in (tmp_path / "features").rglob("*") if file.is_file()}
    for path in (tmp_path / "features").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "features").chmod(0o555)
    place = DirectoryPlace(tmp_path / "features")
    assert place.newest().histories(["u1", "nobody"]) == [("b", "a", "c"), None]
    place.close()
    assert {file: file.read_bytes() for file in (tmp_path / "features").rglob("*") if file.is_file()} == before


def test_an_empty_path_names_the_cure(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.path is empty; set it"):
        publish(made / "dataset", FeaturesConfig(), tmp_path / "artifact")


def test_a_missing_place_is_a_feature_error(tmp_path: Path) -> None:
    for use in (DirectoryPlace.newest, DirectoryPlace.publications, lambda place: place.open("x")):
        with pytest.raises(FeatureError, match="no feature store at"):
            use(DirectoryPlace(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"", b"\x00nothing of the kind" * 100, None])
def test_a_damaged_publication_is_a_feature_error_and_is_made_anew(
    made: Path, tmp_path: Path, content: bytes | None
) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    [file] = (tmp_path / "features" / "publications").iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    place = DirectoryPlace(tmp_path / "features")
    with pytest.raises(FeatureError, match="is no whole publication; publish the features again"):
        place.open(file.stem)
    publish(made / "dataset", FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "artifact")
    assert DirectoryPlace(tmp_path / "features").newest().history("u1") == ("b", "a", "c")


def test_a_place_that_cannot_be_made_is_a_store_error(made: Path, tmp_path: Path) -> None:
    (tmp_path / "features").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write the feature store .*name another place"):
        publish(made / "dataset", FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "artifact")


def test_it_has_what_is_published(sample_dataset: Path, dataset: Dataset, tmp_path: Path) -> None:
    publish(sample_dataset, FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "published")
    published = DirectoryPlace(tmp_path / "features").newest()
    assert {user.user_id: user.interactions for user in published.find("", 10_000)} == {
        user: len(items) for user, items in dataset.sequences.items()
    }
    assert dict(zip(dataset.sequences, published.histories(list(dataset.sequences)), strict=True)) == dataset.sequences


def test_neither_feast_nor_pandas_is_imported(made: Path) -> None:
    code = (
        "import sys; from deeprec.features.directory import DirectoryPlace; import deeprec.features.events; "
        "place = DirectoryPlace(sys.argv[1]); place.newest().history('u1'); "
        "assert not {'feast', 'pandas', 'alembic', 'polars'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(made / "features")], check=True)
