"""Publishing features and reading them back, on old timestamps and on orders."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from deeprec.config import FeaturesConfig
from deeprec.data.dataset import write_dataset
from deeprec.errors import FeatureError
from deeprec.features import store as store_module
from deeprec.features.store import HistoryStore, publish
from deeprec.store import read_artifact

OLD = 956_703_932
HISTORIES = {"u1": ["b", "a", "c"], "u 2/é": ["c", "b", "a", "b"], "3": ["a", "b", "c", "a", "b"]}
TITLES = {"a": "Toy <Story> | 97", "b": "Ünïcode", "c": "C"}


def write(place: Path, histories: dict[str, list[str]], *, time_unit: str, start: int) -> Path:
    rows = [(user, item, start + n) for user, items in histories.items() for n, item in enumerate(items)]
    interactions = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
    genres = ["Comedy|Drama", "", "War"]
    items = pl.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values()), "genres": genres})
    write_dataset(
        place,
        interactions,
        items,
        source="hand",
        time_unit=time_unit,
        text_columns=["genres"],
        year_column=None,
        policy_positions=1,
    )
    return place


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A publication of interactions from the year 2000: (features path, artifact, counts)."""
    place = tmp_path_factory.mktemp("old")
    dataset = write(place / "dataset", HISTORIES, time_unit="seconds", start=OLD)
    counts = publish(dataset, FeaturesConfig(path=str(place / "features")), place / "artifact")
    return place / "features", place / "artifact", counts


def test_old_interactions_are_published_whole(old):
    path, artifact, counts = old
    assert counts == {"users": 3, "items": 3, "rows": 12, "events": 0, "read_back": 6, "truncated": 0}
    assert read_artifact(artifact, "features").parents.keys() == {"dataset"}
    assert json.loads((artifact / "record.json").read_text()) == {"path": str(path), **counts}
    found = HistoryStore(path).histories(list(HISTORIES))
    assert found == [tuple(items) for items in HISTORIES.values()]


def test_an_unknown_user_has_no_history(old):
    store = HistoryStore(old[0])
    assert store.history("nobody") is None
    assert store.histories([]) == []
    assert store.histories(["nobody", "u1"]) == [None, ("b", "a", "c")]


def test_items_are_read_with_their_phrases(old):
    store = HistoryStore(old[0])
    assert store.item("a") == {"title": TITLES["a"], "phrases": ("comedy", "drama")}
    assert store.item("b") == {"title": TITLES["b"], "phrases": ()}
    assert store.item("x") is None


def test_threads_read_what_they_ask_for(old):
    store = HistoryStore(old[0])
    asked = [*HISTORIES, "nobody"] * 50
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(store.history, asked))
    assert found == [tuple(HISTORIES[user]) if user in HISTORIES else None for user in asked]


def test_rows_carry_the_event_time_and_a_later_created_time(old):
    frame = pl.read_parquet(old[0] / "current" / "offline" / "user_history.parquet").sort("user_id")
    assert frame["event_timestamp"].to_list() == [
        datetime.fromtimestamp(OLD + len(HISTORIES[user]) - 1, UTC) for user in frame["user_id"]
    ]
    assert frame["created"].min() > datetime(2020, 1, 1, tzinfo=UTC)
    assert frame["last_timestamp"].to_list() == [OLD + len(HISTORIES[user]) - 1 for user in frame["user_id"]]


def test_a_published_store_can_be_moved(old, tmp_path):
    version = (old[0] / "current").resolve()
    moved = tmp_path / "moved" / "versions" / version.name
    for file in version.rglob("*"):
        target = moved / file.relative_to(version)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "moved" / "current").symlink_to(f"versions/{version.name}")
    assert HistoryStore(tmp_path / "moved").history("u1") == ("b", "a", "c")
    assert str(old[0]).encode() not in (version / "registry.db").read_bytes()


def test_an_order_takes_the_ingest_time(tmp_path):
    dataset = write(tmp_path / "dataset", HISTORIES, time_unit="order", start=0)
    publish(dataset, FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "artifact")
    assert HistoryStore(tmp_path / "features").history("3") == ("a", "b", "c", "a", "b")
    frame = pl.read_parquet(tmp_path / "features" / "current" / "offline" / "user_history.parquet")
    ingested = datetime.fromisoformat(read_artifact(dataset).created)
    assert set(frame["event_timestamp"]) == {ingested}


def test_a_second_publication_replaces_the_first_for_open_readers(tmp_path):
    features = FeaturesConfig(path=str(tmp_path / "features"))
    publish(write(tmp_path / "one", HISTORIES, time_unit="seconds", start=OLD), features, tmp_path / "artifact")
    reader = HistoryStore(tmp_path / "features")
    assert reader.history("u1") == ("b", "a", "c")
    (tmp_path / "features" / ".building-killed").mkdir()
    second = write(tmp_path / "two", {"u1": ["c", "c", "a", "b"]}, time_unit="seconds", start=OLD)
    counts = publish(second, features.model_copy(update={"history_length": 3}), tmp_path / "artifact")
    assert counts == {"users": 1, "items": 3, "rows": 3, "events": 0, "read_back": 4, "truncated": 1}
    assert reader.history("u1") == ("c", "a", "b")
    assert reader.history("3") is None
    assert len(list((tmp_path / "features" / "versions").iterdir())) == 1
    assert not (tmp_path / "features" / ".building-killed").exists()


def test_a_failed_publication_leaves_the_previous_one(tmp_path, monkeypatch):
    dataset = write(tmp_path / "dataset", HISTORIES, time_unit="seconds", start=OLD)
    features = FeaturesConfig(path=str(tmp_path / "features"))
    publish(dataset, features, tmp_path / "artifact")
    before = sorted(path.name for path in (tmp_path / "features" / "versions").iterdir())
    monkeypatch.setattr(HistoryStore, "histories", lambda _, users: [("a",)] * len(users))
    with pytest.raises(FeatureError, match="differs from the dataset"):
        publish(dataset, features, tmp_path / "second")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "features" / "versions").iterdir()) == before
    assert not list((tmp_path / "features").glob(".building-*"))
    assert not (tmp_path / "second").exists()
    assert HistoryStore(tmp_path / "features").history("u1") == ("b", "a", "c")


def test_a_second_publisher_is_refused(tmp_path):
    dataset = write(tmp_path / "dataset", HISTORIES, time_unit="seconds", start=OLD)
    place = tmp_path / "features"
    with store_module._sole_publisher(place), pytest.raises(FeatureError, match="is running"):
        publish(dataset, FeaturesConfig(path=str(place)), tmp_path / "artifact")


@pytest.mark.parametrize("start", [-10, 4_000_000_000])
def test_impossible_times_are_refused(tmp_path, start):
    dataset = write(tmp_path / "dataset", {"u1": ["a", "b"]}, time_unit="seconds", start=start)
    with pytest.raises(FeatureError, match="before 1970 or in the future"):
        publish(dataset, FeaturesConfig(path=str(tmp_path / "features")), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_an_empty_path_names_the_cure(tmp_path):
    with pytest.raises(FeatureError, match=r"features\.path is empty; set it"):
        publish(tmp_path, FeaturesConfig(), tmp_path / "artifact")


def test_a_missing_store_is_a_feature_error(tmp_path):
    with pytest.raises(FeatureError, match="no feature store at"):
        HistoryStore(tmp_path / "nowhere").history("u1")
    with pytest.raises(FeatureError, match="no feature store at"):
        HistoryStore(tmp_path / "nowhere").open()


@pytest.mark.parametrize("name", ["feature_store.yaml", "registry.db", "online/online.db"])
@pytest.mark.parametrize("fault", ["missing", "corrupt"])
def test_a_broken_store_is_a_feature_error(old, tmp_path, name, fault):
    version = (old[0] / "current").resolve()
    copy = tmp_path / "versions" / "v"
    for part in ("feature_store.yaml", "registry.db", "online/online.db"):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        (copy / part).write_bytes((version / part).read_bytes())
    os.symlink("versions/v", tmp_path / "current")
    if fault == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"\x00nothing of the kind" * 100)
    with pytest.raises(FeatureError):
        HistoryStore(tmp_path).history("u1")


def test_feast_is_not_imported_before_the_first_read():
    import subprocess

    code = "import deeprec.features.store, sys; assert not {'feast', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
