from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deeprec.config import TextConfig, TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, TrmError
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.artifact import read_record
from deeprec.trm.recommender import TrmRecommender
from deeprec.types import Filter, Item


@pytest.fixture(scope="module")
def trm(toy_trm: Path) -> TrmRecommender:
    return TrmRecommender.load(toy_trm)


def titles(trm: TrmRecommender, *rows: int) -> list[str]:
    return [trm.catalogue.items[row].title for row in rows]


def test_a_history_of_titles_equals_one_of_ids(trm: TrmRecommender) -> None:
    ids = [trm.catalogue.items[row].item_id for row in (3, 9)]
    found = trm.recommend(titles(trm, 3, 9), k=5)
    assert found == trm.recommend(ids, k=5) == trm.recommend([title.upper() for title in titles(trm, 3, 9)], k=5)
    assert [item.rank for item in found] == [1, 2, 3, 4, 5]
    assert all(item.title == trm.catalogue[item.item_id].title for item in found)
    assert not {item.item_id for item in found} & set(ids)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].rank = 2  # type: ignore[misc]


def test_nothing_gives_popularity_and_a_preference_alone_works(trm: TrmRecommender) -> None:
    order = np.argsort(-trm.retriever.popularity, kind="stable")
    assert [item.title for item in trm.recommend(k=4)] == titles(trm, *order[:4])
    by_text = trm.recommend(preference="Drama; 1980s; anything", k=4)
    assert by_text == trm.recommend(preference=("drama", "1980s"), k=4)
    assert by_text != trm.recommend(k=4)


def test_filters_and_exclusion_hold(trm: TrmRecommender) -> None:
    first, second = titles(trm, 0, 1)
    everything = len(trm.catalogue)
    found = trm.recommend([first], filters=["year >= 1990", Filter("genres", "!=", "Drama")], k=everything)
    wanted = {
        item.item_id
        for item in trm.catalogue.items[1:]
        if item.attributes["year"] and item.attributes["year"] >= 1990  # type: ignore[operator]
        if "Drama" not in str(item.attributes["genres"]).split("|")
    }
    assert {item.item_id for item in found} == wanted
    assert second not in [item.title for item in trm.recommend([first], exclude=[second], k=everything)]
    assert first in [item.title for item in trm.recommend([first], allow_seen=True, k=everything)]


def test_unknown_names_are_refused(trm: TrmRecommender) -> None:
    close = titles(trm, 5)[0]
    with pytest.raises(TrmError, match=f"no item has the id or title '{close}x'; did you mean '{close}'"):
        trm.recommend([f"{close}x"])
    with pytest.raises(TrmError, match="no item has the id or title 'qqqq'"):
        trm.similar("qqqq")
    with pytest.raises(TrmError, match="not of the form"):
        trm.recommend(filters=["year > 3"])


def test_similar_items(trm: TrmRecommender) -> None:
    title = titles(trm, 7)[0]
    found = trm.similar(title, k=6)
    assert len(found) == 6
    assert title not in [item.title for item in found]
    vectors = trm.retriever.item_vectors().collaborative
    order = np.argsort(-(vectors @ vectors[7]), kind="stable")
    assert [item.item_id for item in found] == [trm.catalogue.items[row].item_id for row in order if row != 7][:6]


def test_added_items_are_saved_with_their_origin(trm: TrmRecommender, toy_trm: Path, tmp_path: Path) -> None:
    grown = trm.add_items([Item("n1", "A film nobody knows", {"genres": "Noir"})])
    assert "n1" not in trm.catalogue
    assert grown.catalogue["n1"].phrases == ("noir",)
    place = grown.add_items([Item("n2", "Another")]).save(tmp_path / "trm")
    loaded = TrmRecommender.load(place)
    assert {"n1", "n2"} <= {item.item_id for item in loaded.recommend(preference="noir", k=1000)}
    record = read_record(place)
    assert record.extends == (read_artifact(toy_trm).digest,)
    assert (record.seed, record.metrics) == (4, {"ndcg@10": 0.3})


def test_saving_what_was_loaded_changes_nothing(trm: TrmRecommender, toy_trm: Path, tmp_path: Path) -> None:
    assert read_artifact(trm.save(tmp_path / "copy")).files == read_artifact(toy_trm).files


def test_a_bundle_is_opened_by_its_trm(trm: TrmRecommender, toy_trm: Path, tmp_path: Path) -> None:
    import shutil

    with write_artifact(tmp_path / "bundle", "bundle") as work:
        shutil.copytree(toy_trm, work / "trm")
    assert TrmRecommender.load(tmp_path / "bundle").recommend(k=3) == trm.recommend(k=3)


def test_what_is_no_trm_is_refused(sample_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="kind 'dataset', not 'trm'"):
        TrmRecommender.load(sample_dataset)
    with pytest.raises(ArtifactError, match="does not exist"):
        TrmRecommender.load(tmp_path / "absent")


def test_training_gives_a_recommender(sample_dataset: Path, dataset: Dataset, tmp_path: Path) -> None:
    config = TrmConfig(width=16, layers=1, heads=2, max_length=12, epochs=2, batch_size=16, bf16=False)
    text = TextConfig(provider="hashing", width=32)
    seen: list[str] = []
    trained = TrmRecommender.train(
        sample_dataset, tmp_path / "trm", config, text, progress=lambda line: seen.append(str(line))
    )
    assert len(seen) == 2
    assert trained.retriever.popularity.sum() == sum(len(items) - 2 for items in dataset.sequences.values())
    assert [path.name for path in tmp_path.iterdir()] == ["trm"]
    assert read_record(tmp_path / "trm").metrics["ndcg@10"] > 0
