from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.config import TextConfig, TrmConfig, TrmGate
from deeprec.data.dataset import Dataset, read_dataset, write_dataset
from deeprec.errors import ArtifactError, TrmError
from deeprec.trm.artifact import TrainedTrm, read_trm, write_trm
from deeprec.trm.evaluation import measure
from deeprec.trm.learning import loss as loss_module
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import HashingEmbedder
from deeprec.trm.training import EpochReport, fit, train, train_everything, train_trm
from deeprec.types import Example, Query
from tests import forkserver


@pytest.fixture
def dataset(world: Dataset, tmp_path: Path) -> Path:
    return written(world, world.sequences, tmp_path / "dataset")


def written(world: Dataset, sequences: Mapping[str, Sequence[str]], place: Path) -> Path:
    rows = [(user, item, step) for user, items in sequences.items() for step, item in enumerate(items)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame(
        [{"item_id": one.item_id, "title": one.title, **one.attributes} for one in world.catalogue.items]
    )
    write_dataset(
        place,
        interactions,
        items,
        source="table",
        time_unit="order",
        text_columns=["genres"],
        year_column="year",
        policy_positions=1,
    )
    return place


def with_other_last_items(world: Dataset, count: int) -> dict[str, tuple[str, ...]]:
    """The histories with each user's last ``count`` items replaced by others."""
    changed = {}
    for user, items in world.sequences.items():
        kept, last = items[:-count], items[-count:]
        changed[user] = (*kept, *(f"m{(int(item[1:]) + 7) % 40}" for item in last))
        assert all(one != other for one, other in zip(changed[user][-count:], last, strict=True))
    return changed


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
    assert page.count("<svg") == 4
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


def test_the_trm_on_everything_before_the_validation_item_sees_neither_that_nor_the_test_item(
    world: Dataset, tmp_path: Path, trm_config: TrmConfig, text_config: TextConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    short = trm_config.model_copy(update={"epochs": 2})
    found = {}
    for name, sequences in {
        "as it is": world.sequences,
        "others at the end": with_other_last_items(world, 2),
        "one that it sees": with_other_last_items(world, 3),
    }.items():
        data = written(world, sequences, tmp_path / name / "dataset")
        metrics = train_everything(data, short, text_config, 0, tmp_path / name / "trm")
        found[name] = (tmp_path / name / "trm" / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / name / "trm" / "metrics.json").read_text()) == metrics
        assert read_trm(tmp_path / name / "trm").vocabulary.popularity.sum() == sum(
            len(items) - 2 for items in sequences.values()
        )
    assert found["as it is"] == found["others at the end"]
    assert found["as it is"] != found["one that it sees"]
    assert "validation NDCG@10" in capsys.readouterr().out


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


def test_a_loss_that_is_not_finite_stops_and_names_the_batch_and_its_users(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loss_module.catalogue_loss, []

    def broken(*args: torch.Tensor, **options: bool) -> torch.Tensor:
        calls.append(1)
        return real(*args, **options) * (float("nan") if len(calls) == 10 else 1.0)

    monkeypatch.setattr(loss_module, "catalogue_loss", broken)
    named = r"loss is nan .* at epoch 2, batch 1 of \d sequences of up to \d+ items \(users 'u\d+', 'u\d+', .*\); lower"
    with pytest.raises(TrmError, match=named):
        fit(world.catalogue, world.sequences, trm_config, embedder, 0)


def test_a_gradient_that_is_not_finite_stops_before_the_step(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(users: torch.Tensor, *args: torch.Tensor, **options: bool) -> torch.Tensor:
        return (users * 0).sqrt().sum()

    monkeypatch.setattr(loss_module, "catalogue_loss", broken)
    with pytest.raises(TrmError, match="norm of its gradient nan at epoch 1, batch 0"):
        train_trm(
            world, world.sequences, trm_config, TextConfig(provider="hashing", width=48), embedder, 0, tmp_path / "trm"
        )
    assert not (tmp_path / "trm").exists()


# --------------------------------------------------------------------------------------------------------- checkpoints


class Stopped(Exception):
    """What a test stops a training with."""


def weights(trained: TrainedTrm) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


@pytest.mark.parametrize("sampled", [False, True])
def test_stopped_at_any_epoch_and_gone_on_with_the_weights_are_the_same(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, tmp_path: Path, sampled: bool
) -> None:
    update = {"epochs": 4, "sampled_above": 10, "negatives": 16} if sampled else {"epochs": 4}
    short = trm_config.model_copy(update=update)
    expected, curves = fit(world.catalogue, world.sequences, short, embedder, 1)
    for stop in (1, 2, 3, 4):
        place = tmp_path / str(stop)

        def stopping(line: EpochReport, stop: int = stop) -> None:
            if line.epoch == stop:
                raise Stopped

        with pytest.raises(Stopped):
            fit(world.catalogue, world.sequences, short, embedder, 1, progress=stopping, checkpoint=place)
        seen: list[EpochReport] = []
        torch.manual_seed(stop)
        found, again = fit(world.catalogue, world.sequences, short, embedder, 1, progress=seen.append, checkpoint=place)
        assert [line.epoch for line in seen] == list(range(stop + 1, 5))
        assert [point["loss"] for point in again] == [point["loss"] for point in curves]
        pairs = zip(weights(found).values(), weights(expected).values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


KILLED = """
import os, signal, sys
from pathlib import Path
from deeprec.config import TextConfig, TrmConfig
from deeprec.trm.learning import learner
from deeprec.trm.training import train

steps, real = [], learner.Learner.update

def killed(*args):
    steps.append(1)
    if len(steps) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

learner.Learner.update = killed
place = Path(sys.argv[1])
trm, text = TrmConfig.model_validate_json(sys.argv[2]), TextConfig.model_validate_json(sys.argv[3])
train(place / "dataset", trm, text, 0, place / "trm", place / "report.html", checkpoint=place / "checkpoint")
"""


def test_killed_in_the_middle_of_an_epoch_and_gone_on_the_artifact_is_the_same(
    dataset: Path, tmp_path: Path, trm_config: TrmConfig, text_config: TextConfig
) -> None:
    short = trm_config.model_copy(update={"epochs": 4})
    settings = [short.model_dump_json(), text_config.model_dump_json()]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *settings, "19"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = forkserver.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "trm").exists()
    assert [entry.name for entry in (tmp_path / "checkpoint").iterdir()] == ["epoch-00002"]
    options = {"checkpoint": tmp_path / "checkpoint"}
    train(dataset, short, text_config, 0, tmp_path / "trm", tmp_path / "report.html", **options)
    assert not (tmp_path / "checkpoint").exists()
    train(dataset, short, text_config, 0, tmp_path / "whole", tmp_path / "report.html")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("trm", "whole"))
    assert one == other


def test_a_checkpoint_of_another_training_is_refused(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    short = trm_config.model_copy(update={"epochs": 1})
    fit(world.catalogue, world.sequences, short, embedder, 1, checkpoint=tmp_path)
    with pytest.raises(TrmError, match=r"seed is 1 there and 2 here; .* remove"):
        fit(world.catalogue, world.sequences, short, embedder, 2, checkpoint=tmp_path)


# ------------------------------------------------------------------------------------------------------------- sampled


def test_a_sampled_softmax_learns_the_walk_too(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder
) -> None:
    sampled = trm_config.model_copy(update={"sampled_above": 10, "negatives": 20, "learning_rate": 1e-2})
    trained, curves = fit(world.catalogue, world.sequences, sampled, embedder, 3)
    assert trained.vocabulary.item_text.dtype == np.float16
    assert curves[-1]["loss"] < curves[0]["loss"]
    examples = [
        Example(f"v{start}", tuple(f"m{(start + 3 * step) % 40}" for step in range(4)), f"m{(start + 12) % 40}")
        for start in range(40)
    ]
    metrics = measure(TrmRetriever(trained, world.catalogue, embedder), examples)
    assert metrics["ndcg@10"] > 0.5


def test_averaged_weights_are_returned(world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder) -> None:
    short = trm_config.model_copy(update={"epochs": 1})
    averaged, plain = (
        fit(world.catalogue, world.sequences, short.model_copy(update={"average": decay}), embedder, 1)[0]
        for decay in (0.9, 0.0)
    )
    one, other = weights(averaged), weights(plain)
    assert not torch.equal(one["item_ids.weight"], other["item_ids.weight"])
    assert (one["item_ids.weight"] - other["item_ids.weight"]).abs().max() < 0.1


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
    assert all(line.positions_per_second > 0 for line in seen)
    assert seen[0].seconds_left > seen[1].seconds_left == 0


def test_progress_says_what_is_left() -> None:
    line = EpochReport(2, 5, 3.21234, 12.34, 0.5, 12345.6, 1500.0)
    expected = "TRM epoch 2/5: loss 3.2123, 12.3 s, 12,346 positions/s, validation NDCG@10 0.5000, about 25 min left"
    assert str(line) == expected
    assert "left" not in str(EpochReport(5, 5, 3.2, 12.3, None, 1.0, 0.0))
