from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.config import DataConfig, SampleConfig
from deeprec.data.dataset import Dataset, read_dataset, read_info, write_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import trm_sequences, validation_examples
from deeprec.errors import ArtifactError, DataError
from deeprec.store import file_digest, read_artifact

SMALL = DataConfig(sample=SampleConfig(users=60, items=50, mean_history=14))


def test_same_seed_same_files(tmp_path: Path) -> None:
    ingest(SMALL, 3, tmp_path / "a")
    ingest(SMALL, 3, tmp_path / "b")
    ingest(SMALL, 4, tmp_path / "c")
    contents = [read_artifact(tmp_path / name, "dataset").contents for name in "abc"]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_dataset_json_and_histories(sample_dataset: Path, dataset: Dataset) -> None:
    info = json.loads((sample_dataset / "dataset.json").read_text())
    assert info == dataset.info == read_info(sample_dataset)
    assert info["users"] == len(dataset.sequences) == 150
    assert info["items"] == len(dataset.catalogue)
    assert info["interactions"] == sum(map(len, dataset.sequences.values()))
    assert (info["text_columns"], info["year_column"]) == (["genres", "maker"], "year")
    assert info["files"]["items.parquet"] == file_digest(sample_dataset / "items.parquet")
    assert set(dataset.timestamps) == set(dataset.sequences)
    for user, times in dataset.timestamps.items():
        assert list(times) == sorted(times)
        assert len(times) == len(set(dataset.sequences[user]))
    titles = [item.title for item in dataset.catalogue.items]
    assert len(set(titles)) == len(titles)


def test_sample_is_learnable(tmp_path: Path) -> None:
    """What followed the newest item before beats popularity by far, and phrases say much about the target."""
    ingest(DataConfig(sample=SampleConfig(users=500, items=300, mean_history=30)), 0, tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    index, count = dataset.catalogue.index, len(dataset.catalogue)
    follows, popular = np.zeros((count, count)), np.zeros(count)
    for items in trm_sequences(dataset).values():
        rows = [index[item] for item in items]
        np.add.at(popular, rows, 1)
        np.add.at(follows, (rows[:-1], rows[1:]), 1)
    gains: dict[str, list[float]] = {"popular": [], "follows": []}
    shared: dict[str, list[float]] = {"target": [], "any": []}
    phrases = [set(item.phrases) for item in dataset.catalogue.items]
    for example in validation_examples(dataset):
        seen, target, last = (
            [index[item] for item in example.history],
            index[example.target],
            index[example.history[-1]],
        )
        for name, scores in (("popular", popular.copy()), ("follows", follows[last] + popular * 1e-6)):
            scores[seen] = -1
            rank = int((scores > scores[target]).sum())
            gains[name].append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
        shared["target"].append(len(phrases[target] & phrases[last]))
        shared["any"].append(float(np.mean([len(found & phrases[last]) for found in phrases])))
    assert np.mean(gains["follows"]) > 4 * np.mean(gains["popular"])
    assert np.mean(shared["target"]) > 1.5 * np.mean(shared["any"])


def test_policy_positions_and_order_are_kept(tmp_path: Path) -> None:
    rows = [("u", item, 5) for item in "edcba"]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        tmp_path / "interactions.parquet"
    )
    pl.DataFrame({"item_id": list("abcdef"), "title": list("ABCDEF"), "genres": ["x"] * 6}).write_parquet(
        tmp_path / "items.parquet"
    )
    config = DataConfig(
        source="table", path=str(tmp_path), time_unit="order", policy_positions=2, min_item_interactions=1
    )
    report = ingest(config, 0, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert dataset.sequences == {"u": ("e", "d", "c", "b", "a")}
    assert (dataset.policy_positions, dataset.time_unit) == (2, "order")
    assert dataset.info["year_column"] is None
    assert "dropped 1 items: no interaction left" in report.lines
    assert report.lines[-1] == "kept 1 users, 5 items, 5 interactions"


def test_accepted_events_join_times_and_not_an_order(tmp_path: Path) -> None:
    """Ids of the source may be integers, those of events are text; a rating is kept where the source has some."""
    rows = [(1, item, 100 + item, 4.0) for item in range(5)]
    names = ["user_id", "item_id", "timestamp", "rating"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": list(range(7)), "title": list("ABCDEFG")}).write_parquet(tmp_path / "items.parquet")
    events = pl.DataFrame([("1", "5", 200, 5.0), ("1", "6", 201, 1.0), ("1", "gone", 202, 5.0)], names, orient="row")
    config = DataConfig(
        source="table", path=str(tmp_path), text_columns=(), min_item_interactions=1, min_rating=2.0, events=True
    )
    report = ingest(config, 0, tmp_path / "out", accepted=lambda: events)
    assert read_dataset(tmp_path / "out").sequences == {"1": ("0", "1", "2", "3", "4", "5")}
    assert "added 3 interactions: events that servers have accepted" in report.lines
    assert {"dropped 1 interactions: item not in the catalogue", "dropped 1 interactions: rated below 2"} <= set(
        report.lines
    )
    ordered = config.model_copy(update={"time_unit": "order"})
    with pytest.raises(DataError, match=r"data\.events adds events, whose times are seconds, .* only an order"):
        ingest(ordered, 0, tmp_path / "none", accepted=lambda: events)
    assert not (tmp_path / "none").exists()


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    for config in (
        SMALL.model_copy(update={"min_user_interactions": 500}),
        DataConfig(source="movielens", path=str(tmp_path)),
        DataConfig(source="table", path=str(tmp_path)),
    ):
        with pytest.raises(DataError):
            ingest(config, 0, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unknown_text_column(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,1,1\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A,x\n")
    config = DataConfig(source="movielens", path=str(tmp_path), text_columns=("brand",))
    with pytest.raises(DataError, match=r"no column 'brand'; they have item_id, title, genres, year"):
        ingest(config, 0, tmp_path / "out")


def test_reading_what_is_not_a_dataset(tmp_path: Path, sample_dataset: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    write_dataset(
        tmp_path / "odd",
        pl.DataFrame({"user_id": ["u"], "item_id": ["x"], "timestamp": [1]}),
        pl.DataFrame({"item_id": ["a"], "title": ["A"]}),
        source="table",
        time_unit="seconds",
        text_columns=(),
        year_column=None,
        policy_positions=1,
    )
    with pytest.raises(DataError, match="names item 'x'"):
        read_dataset(tmp_path / "odd")


def test_movielens_1m(real_data: Path, tmp_path: Path) -> None:
    report = ingest(DataConfig(source="movielens", path=str(real_data / "ml-1m")), 0, tmp_path / "out")
    assert (report.users, report.items, report.interactions) == (6040, 3416, 999611)
    assert len(read_dataset(tmp_path / "out").sequences) == 6040


def test_movielens_latest_small(real_data: Path, tmp_path: Path) -> None:
    report = ingest(DataConfig(source="movielens", path=str(real_data / "ml-latest-small")), 0, tmp_path / "out")
    assert report.users > 500
    assert read_dataset(tmp_path / "out").time_unit == "seconds"
