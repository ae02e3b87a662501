"""A new bundle against the live one: real tiny bundles answer, and one that answers worse is held back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.compared import against_live
from deeprec.bundle.refit import refit
from deeprec.bundle.shelf import Shelf
from deeprec.checks.gate import Verdict, require
from deeprec.config import BundleConfig, DataConfig, ExploreConfig, SampleConfig, TrmConfig
from deeprec.data.dataset import INTERACTIONS, ITEMS, read_dataset, read_info, write_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import test_examples as held_out_examples
from deeprec.data.splits import trm_sequences
from deeprec.errors import ArtifactError, CheckFailed
from deeprec.evaluation.against import Against, compare
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.outcome import ranks_of
from deeprec.metrics import metrics_from_ranks
from deeprec.trm.artifact import MEASURED, TrainedTrm, read_trm, write_trm
from deeprec.trm.model import Trm
from deeprec.trm.recommender import TrmRecommender
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.training import train_split
from tests.integration.parts import TEXT, make_bundle, make_run
from tests.integration.taught import teach

LEARNT = TrmConfig(width=16, layers=1, heads=2, max_length=20, epochs=30, learning_rate=5e-3, batch_size=16, bf16=False)
BuiltOnce = Callable[[str, Callable[[Path], object]], Path]


def against(new: Bundle, live: Bundle, dataset: Path, **settings: Any) -> Against:
    return compare(new, live, dataset, **{"min_users": 20, "resamples": 300, "progress": lambda line: None, **settings})


@pytest.fixture
def run(built_once: BuiltOnce) -> Path:
    return built_once("run", make_run)


@pytest.fixture(scope="module")
def learnt(built_once: BuiltOnce) -> Path:
    """A dataset of 300 users, a TRM that has learnt from it (``trm``), and one trained anew on all of it (``anew``)."""

    def build(place: Path) -> None:
        sample = SampleConfig(users=300, items=60, mean_history=20)
        ingest(DataConfig(source="sample", sample=sample), 0, place / "dataset")
        train_split(place / "dataset", trm_sequences, LEARNT, TEXT, 0, place / "trm")
        settings = LEARNT.model_copy(update={"epochs": 2})
        inputs = place / "dataset", place / "trm", "trm"
        refit(*inputs, settings, TEXT, BundleConfig(), 0, place / "anew", progress=lambda line: None)

    return built_once("learnt", build)


@pytest.fixture
def bundle(run: Path, learnt: Path, tmp_path: Path) -> Bundle:
    """A bundle that serves the TRM which has learnt."""
    made = Bundle.load(make_bundle(run, tmp_path / "served", serve="trm"))
    return served(replace(made, explore=ExploreConfig()), learnt / "trm", "live")


def served(bundle: Bundle, trm: Path, version: str) -> Bundle:
    """The bundle with another TRM."""
    return replace(bundle, parts={"trm": trm}, catalogue=read_trm(trm).catalogue, version=version)


def shuffled(trained: TrainedTrm) -> TrainedTrm:
    """The TRM with the rows of its items dealt anew."""
    with torch.no_grad():
        rows = trained.model.item_ids.weight
        rows.copy_(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))])
        trained.model.item_adaptor.experts.weight.zero_()
    return trained


def without(trained: TrainedTrm, gone: int) -> TrainedTrm:
    """The TRM of a time at which the last items of the catalogue were not there yet."""
    vocabulary, kept = trained.vocabulary, len(trained.catalogue) - gone
    names = {name: getattr(vocabulary, name)[:kept] for name in ("item_ids", "item_text", "popularity")}
    model = Trm(trained.model.config, torch.from_numpy(names["item_text"]))
    state = trained.model.state_dict()
    model.load_state_dict({**state, "item_ids.weight": state["item_ids.weight"][:kept]})
    catalogue = replace(trained.catalogue, items=trained.catalogue.items[:kept])
    return TrainedTrm(model.eval(), replace(vocabulary, **names), catalogue)


def test_equal_bundles_are_no_worse_with_a_difference_of_nothing(bundle: Bundle, learnt: Path) -> None:
    found = against(replace(bundle, version="new"), bundle, learnt / "dataset")
    assert (found.verdict, found.releases, found.users, found.unknown) == ("no worse", True, 300, 0)
    for sides in found.metrics.values():
        assert sides["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "the new bundle new is no worse than live: NDCG@10" in found.reason
    examples = held_out_examples(read_dataset(learnt / "dataset"))
    own = ranks_of(trm_answers(TrmRetriever.load(learnt / "trm"), examples, 10), examples, 10)
    assert found.metrics["ndcg@10"]["live"]["mean"] == pytest.approx(metrics_from_ranks(own)["ndcg@10"])
    require(found.gate().to_json())


def test_shuffled_weights_are_worse_and_not_released(bundle: Bundle, learnt: Path, tmp_path: Path) -> None:
    write_trm(tmp_path / "bad", shuffled(read_trm(learnt / "trm")), TEXT, {}, [], held_out=3)
    bad = served(bundle, tmp_path / "bad", "new")
    found = against(bad, bundle, learnt / "dataset")
    assert (found.verdict, found.releases) == ("worse", False)
    assert found.metrics["ndcg@10"]["difference"]["high"] < 0
    assert found.reason.endswith("; it is not released, and live stays live")
    with pytest.raises(CheckFailed, match="is worse than live"):
        require(found.gate().to_json())
    assert Verdict.from_json(found.gate().to_json()).rows[0].passed is False
    table = found.to_markdown()
    assert "| NDCG@10 | " in table
    assert "| hit share@10 | " in table
    assert found.to_json()["metrics"]["recall@10"]["difference"]["mean"] < 0
    assert against(bundle, bad, learnt / "dataset").verdict == "better"
    assert against(bad, bundle, learnt / "dataset", margin=1.0).verdict == "no worse"


def test_few_users_release_only_where_the_configuration_says_so(bundle: Bundle, learnt: Path, tmp_path: Path) -> None:
    new = replace(bundle, version="new")
    for allowed in (False, True):
        settings = {"users": 30, "min_users": 31, "release_inconclusive": allowed}
        found = against(new, bundle, learnt / "dataset", **settings)
        assert (found.verdict, found.releases, found.users) == ("inconclusive", allowed, 30)
        assert "30 users are too few to tell, at least 31 are asked for" in found.reason
        assert found.gate().passed is allowed


def test_the_same_seed_draws_the_same_users(bundle: Bundle, learnt: Path) -> None:
    first, same, other = (
        against(bundle, bundle, learnt / "dataset", users=40, seed=seed).metrics["ndcg@10"]["live"]
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_what_the_live_bundle_does_not_know_is_a_miss_for_it(bundle: Bundle, learnt: Path, tmp_path: Path) -> None:
    old = without(read_trm(learnt / "trm"), 20)
    write_trm(tmp_path / "old", old, TEXT, {}, [], held_out=3)
    found = against(replace(bundle, version="new"), served(bundle, tmp_path / "old", "old"), learnt / "dataset")
    examples = held_out_examples(read_dataset(learnt / "dataset"))
    gone = [example.target not in old.catalogue for example in examples]
    assert found.unknown == sum(gone) > 0
    answers = trm_answers(TrmRetriever.load(tmp_path / "old"), examples, 10)
    ranks = ranks_of(answers, examples, 10)
    assert set(ranks[np.array(gone)]) == {-1}
    assert found.metrics["ndcg@10"]["live"]["mean"] == pytest.approx(metrics_from_ranks(ranks)["ndcg@10"])


# ------------------------------------------------------------------------------------------------------ what was seen


def test_one_trained_anew_is_measured_as_the_one_it_stands_in_for(bundle: Bundle, learnt: Path) -> None:
    """Its own weights know the targets by heart."""
    anew = served(bundle, learnt / "anew", "anew")
    found = against(anew, bundle, learnt / "dataset")
    assert found.metrics["ndcg@10"]["new"] == found.metrics["ndcg@10"]["live"]


def test_one_that_keeps_no_such_weights_is_not_compared(bundle: Bundle, learnt: Path, tmp_path: Path) -> None:
    saved = TrmRecommender.load(learnt / "anew").save(tmp_path / "saved")
    assert not (saved / MEASURED).exists()
    old = served(bundle, saved, "old")
    found = against(replace(bundle, version="new"), old, learnt / "dataset")
    assert (found.verdict, found.releases, dict(found.metrics)) == ("inconclusive", False, {})
    assert "keeps no weights that these can measure; it is not released, and old stays live" in found.reason
    assert found.to_markdown().startswith("**against the live bundle: whether")
    assert against(bundle, old, learnt / "dataset", release_inconclusive=True).releases
    with pytest.raises(ArtifactError, match="trained anew on everything and keeps no weights"):
        against(old, bundle, learnt / "dataset")


# ---------------------------------------------------------------------------------------------------------- a policy


def test_a_bundle_answers_by_the_policy_that_it_serves(run: Path, built_once: BuiltOnce, tmp_path: Path) -> None:
    taught = built_once("taught", lambda place: teach(run, place))
    policy, trm = Bundle.load(taught / "bundle"), Bundle.load(make_bundle(run, tmp_path / "trm", serve="trm"))
    lines: list[str] = []
    found = against(policy, policy, run / "dataset", progress=lines.append)
    assert found.verdict == "no worse"
    assert found.metrics["ndcg@10"]["new"]["mean"] > 0
    assert found.k == 5
    assert any("60 of 60 users" in line for line in lines)
    mute = Bundle.load(make_bundle(run, tmp_path / "mute"))
    silent = against(mute, trm, run / "dataset")
    assert silent.metrics["recall@10"]["new"]["mean"] == 0, "an answer that breaks a rule is a miss"
    assert silent.metrics["recall@10"]["live"]["mean"] > 0


def test_a_policy_of_a_smaller_catalogue_answers_from_what_it_knows(
    run: Path, built_once: BuiltOnce, tmp_path: Path
) -> None:
    """Ten of the items are others now, and of some users it knows next to nothing."""
    live = Bundle.load(built_once("taught", lambda place: teach(run, place)) / "bundle")
    names = {item.item_id: f"new-{item.item_id}" for item in live.catalogue.items[:10]}
    tables = [pl.read_parquet(run / "dataset" / name) for name in (INTERACTIONS, ITEMS)]
    renamed = [table.with_columns(pl.col("item_id").replace(names)) for table in tables]
    info = read_info(run / "dataset")
    kept = {name: info[name] for name in ("source", "time_unit", "text_columns", "year_column", "policy_positions")}
    write_dataset(tmp_path / "dataset", *renamed, **kept)
    examples = held_out_examples(read_dataset(tmp_path / "dataset"))
    found = against(live, live, tmp_path / "dataset")
    assert found.unknown == sum(example.target.startswith("new-") for example in examples) > 0
    assert any(item.startswith("new-") for example in examples for item in example.history)
    assert found.metrics["recall@10"]["live"]["mean"] > 0


def test_the_live_bundle_of_a_shelf_is_what_it_is_held_against(run: Path, tmp_path: Path) -> None:
    old, new = (make_bundle(run, tmp_path / name, serve=name) for name in ("policy", "trm"))
    shelf = Shelf.make(tmp_path / "shelf")
    rule = {"min_users": 20, "resamples": 50, "progress": lambda line: None}
    assert against_live(new, shelf.address, run / "dataset", **rule) is None, "nothing is live"
    shelf.promote(shelf.push(Bundle.load(old)).version)
    found = against_live(new, shelf.address, run / "dataset", **rule)
    assert found is not None
    assert (found.new, found.live) == (Bundle.load(new).version, Bundle.load(old).version)
    assert found.verdict == "better", "the live policy gives no valid answer"
    assert against_live(old, shelf.address, run / "dataset", **rule) is None, "it is live itself"
