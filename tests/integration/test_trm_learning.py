"""What a trained TRM can do, on generated data with the packaged text encoder: the promises, at a size for tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import trm_cold
from deeprec.config import DataConfig, SampleConfig, TextConfig, TrmConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import standalone_sequences, test_examples, validation_examples
from deeprec.trm.evaluation import measure
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.trm.training import fit


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("learning") / "dataset"
    ingest(DataConfig(sample=SampleConfig(users=900, items=500)), 0, place)
    return place


def test_items_and_users_that_training_never_saw(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = tmp_path / "cold.json"
    settings = ("--set", "trm.epochs=8", "--set", "trm.max_length=60")
    monkeypatch.setattr(sys, "argv", ["trm_cold", "--data", str(place), *settings, "--out", str(figures)])
    trm_cold.main()
    found = json.loads(figures.read_text())
    assert found["over chance"] >= 5
    assert found["others after"] >= 0.98 * found["others before"]
    for length in (1, 2, 5):
        assert found[f"history {length}"] > found[f"popularity {length}"]
    assert found["preference alone"] > found["popularity alone"]


def test_a_true_preference_helps_and_a_false_one_does_not_ruin(place: Path) -> None:
    dataset, embedder = read_dataset(place), load_embedder(TextConfig())
    trm = TrmConfig(epochs=8, max_length=60, dropout=0.2)
    trained, _ = fit(dataset.catalogue, standalone_sequences(dataset), trm, embedder, 0)
    retriever = TrmRetriever(trained, dataset.catalogue, embedder)
    for examples in (validation_examples(dataset), test_examples(dataset)):
        found = measure(retriever, examples)
        assert found["half_preference_recall@20"] >= 1.25 * found["recall@20"]
        assert found["misled_ndcg@10"] >= 0.6 * found["ndcg@10"]
        assert found["ndcg@10"] >= 3 * found["popularity_ndcg@10"]
