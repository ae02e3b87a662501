from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.config import TextConfig, TrmConfig, TrmGate
from deeprec.data.dataset import Dataset, read_dataset, write_dataset
from deeprec.errors import ArtifactError, TrmError
from deeprec.trm import loss as loss_module
from deeprec.trm.artifact import TrainedTrm, read_trm, write_trm
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import HashingEmbedder
from deeprec.trm.training import EpochReport, fit, measure, schedule, train
from deeprec.types import Example, Query


@pytest.fixture
def dataset(world: Dataset, tmp_path: Path) -> Path:
    rows = [(user, item, place) for user, items in world.sequences.items() for place, item in enumerate(items)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame(
        [{"item_id": one.item_id, "title": one.title, **one.attributes} for one in world.catalogue.items]
    )
    write_dataset(
        tmp_path / "dataset",
        interactions,
        items,
        source="table",
        time_unit="order",
        text_columns=["genres"],
        year_column="year",
        policy_positions=1,
    )
    return tmp_path / "dataset"


def test_learns_the_walk_and_beats_popularity(retriever: TrmRetriever) -> None:
    examples = [
        Example(f"v{start}", tuple(f"m{(start + 3 * step) % 40}" for step in range(4)), f"m{(start + 12) % 40}")
        for start in range(40)
    ]
    metrics = measure(retriever, examples)
    assert metrics["ndcg@10"] > 0.6
    assert metrics["ratio_to_popularity"] > 3
    assert metrics["preference_recall@20"] >= metrics["preference_recall@10"] > 0.9


def test_same_seed_gives_the_same_weights(world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder) -> None:
    short = trm_config.model_copy(update={"epochs": 2})
    before = torch.random.get_rng_state()
    one, two, other = (fit(world.catalogue, world.sequences, short, embedder, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.model.item_ids.weight, other.model.item_ids.weight)


def test_train_writes_artifact_report_and_metrics(
    dataset: Path, tmp_path: Path, trm_config: TrmConfig, text_config: TextConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    short = trm_config.model_copy(update={"epochs": 6, "gate": TrmGate(min_ndcg_10=0.9)})
    verdict, metrics = train(dataset, short, text_config, 0, tmp_path / "trm", tmp_path / "report.html")
    assert not verdict.passed
    assert "validation NDCG@10" in verdict.reason
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "validation NDCG@10" in lines[-1]
    assert json.loads((tmp_path / "trm" / "metrics.json").read_text()) == metrics
    curves = json.loads((tmp_path / "trm" / "curves.json").read_text())
    assert [point["epoch"] for point in curves] == [1, 2, 3, 4, 5, 6]
    assert curves[-1]["loss"] < curves[0]["loss"]

    data = read_dataset(dataset)
    loaded = TrmRetriever.load(tmp_path / "trm", data.catalogue, HashingEmbedder(text_config.width))
    ids = {item for user in data.sequences.values() for item in user[:-3]}
    assert loaded.popularity.sum() == sum(len(user) - 3 for user in data.sequences.values())
    assert {item.item_id for item, count in zip(data.catalogue.items, loaded.popularity, strict=True) if count} == ids


def test_saved_and_read_again_gives_equal_results(
    trained: TrainedTrm, retriever: TrmRetriever, world: Dataset, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    write_trm(tmp_path / "trm", trained, TextConfig(provider="hashing", width=48), {}, [])
    loaded = TrmRetriever(read_trm(tmp_path / "trm"), world.catalogue, embedder)
    queries = [Query(("m1", "m4"), ("comedy",)), Query(()), Query(("m5",))]
    for found, wanted in zip(loaded.retrieve(queries, 10), retriever.retrieve(queries, 10), strict=True):
        assert [item.item_id for item in found] == [item.item_id for item in wanted]
        assert [item.score for item in found] == pytest.approx([item.score for item in wanted], abs=1e-5)


def test_changed_weights_are_refused(trained: TrainedTrm, tmp_path: Path) -> None:
    write_trm(tmp_path / "trm", trained, TextConfig(), {}, [])
    with (tmp_path / "trm" / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        read_trm(tmp_path / "trm")


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loss_module.catalogue_loss, []

    def broken(*args: torch.Tensor, **options: bool) -> torch.Tensor:
        calls.append(1)
        return real(*args, **options) * (float("nan") if len(calls) == 10 else 1.0)

    monkeypatch.setattr(loss_module, "catalogue_loss", broken)
    with pytest.raises(TrmError, match=r"loss is nan at epoch 2, batch 1 of \d sequences"):
        fit(world.catalogue, world.sequences, trm_config, embedder, 0)


def test_sequences_that_cannot_be_used_are_named(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder
) -> None:
    with pytest.raises(TrmError, match="none of 1 training sequences has two items"):
        fit(world.catalogue, {"u": ("m1",)}, trm_config, embedder, 0)
    with pytest.raises(TrmError, match="item 'ghost'"):
        fit(world.catalogue, {"u": ("m1", "ghost")}, trm_config, embedder, 0)


def test_progress_reports_every_epoch(world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder) -> None:
    seen: list[EpochReport] = []
    short = trm_config.model_copy(update={"epochs": 2})
    fit(world.catalogue, world.sequences, short, embedder, 0, progress=seen.append)
    assert [line.epoch for line in seen] == [1, 2]
    assert all(line.ndcg_10 is None and np.isfinite(line.loss) for line in seen)


def test_schedule_rises_and_falls() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.02
    assert all(a >= b for a, b in pairwise(rates[10:]))
