"""The TRM of a bundle: trained anew on everything where it serves, and handed on where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.publish import extend_bundle
from deeprec.bundle.refit import refit
from deeprec.config import BundleConfig, TextConfig, TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.data.splits import everything_sequences, interaction_counts, popularity
from deeprec.errors import ArtifactError
from deeprec.evaluation.verdict import Served
from deeprec.explore.protocol import TitleBook
from deeprec.recommender.loading import load_recommender
from deeprec.store import read_artifact
from deeprec.trm.artifact import read_record, read_trm
from deeprec.trm.recommender import TrmRecommender
from deeprec.trm.training import train_split
from deeprec.types import Item
from deeprec.wire.request import TrmOnlyRequest

TRM = TrmConfig(width=16, layers=1, heads=2, max_length=12, epochs=1)
TEXT = TextConfig(provider="hashing", width=32)
Refit = Callable[..., tuple[Path, list[str]]]


@pytest.fixture
def do_refit(sample_dataset: Path, toy_trm: Path, tmp_path: Path) -> Refit:
    """``do_refit(serve, refit=True)``: the artifact that the task writes, and its log."""

    def run(serve: Served, **bundle: bool) -> tuple[Path, list[str]]:
        settings, lines = BundleConfig.model_validate(bundle), list[str]()
        inputs = sample_dataset, toy_trm, serve
        out = tmp_path / f"{serve}-trm"
        refit(*inputs, TRM, TEXT, settings, 4, out, checkpoint=tmp_path / "checkpoint", progress=lines.append)
        return out, lines

    return run


@pytest.fixture
def titles(dataset: Dataset) -> list[str]:
    return list(TitleBook(dataset.catalogue).titles)


def test_where_the_trm_serves_it_is_trained_on_every_last_item(
    do_refit: Refit, toy_trm: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out, lines = do_refit("trm")
    assert "trained anew on everything" in lines[0]
    assert lines[1].startswith("TRM epoch 1/1: loss")
    record = read_record(out)
    assert record.refit_of == read_artifact(toy_trm).digest
    assert (record.text, record.seed, record.metrics) == (TEXT, 4, {})
    assert all("ndcg@10" not in point for point in record.curves)
    trained = read_trm(out)
    assert trained.model.config == TRM
    counts = interaction_counts(dataset.catalogue, dataset.sequences)
    assert trained.vocabulary.popularity.tolist() == counts.tolist()
    assert counts.sum() == popularity(dataset).sum() + len(dataset.sequences) * (2 + dataset.policy_positions)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("serve", "settings", "reason"),
    [("policy", {}, "the policy serves"), ("trm", {"refit": False}, "bundle.refit is off")],
)
def test_elsewhere_the_trm_is_handed_on_as_it_is(
    do_refit: Refit, toy_trm: Path, serve: str, settings: dict[str, bool], reason: str
) -> None:
    out, [line] = do_refit(serve, **settings)
    assert read_artifact(out).digest == read_artifact(toy_trm).digest
    assert line.startswith(f"the TRM is handed on as it is: {reason}")


# ------------------------------------------------------------------------------------------------------- in a bundle


def test_a_bundle_serves_a_trm_that_was_trained_anew_and_keeps_its_policy(
    do_refit: Refit, make_bundle: Callable[..., Path], dataset: Dataset, titles: list[str], tmp_path: Path
) -> None:
    out, _ = do_refit("trm")
    bundle = Bundle.load(make_bundle(tmp_path / "bundle", titles, "trm", out))
    assert (bundle.serve, bundle.info["refit"]) == ("trm", True)
    assert bundle.why.endswith("; the TRM was trained anew on everything, the last items included")
    assert bundle.counts.tolist() == interaction_counts(dataset.catalogue, everything_sequences(dataset)).tolist()
    assert "refit" in bundle.metrics["seconds"]
    recommender = load_recommender(bundle)
    try:
        answer = asyncio.run(
            recommender.retrieve(TrmOnlyRequest(history=next(iter(dataset.sequences.values()))[:3], k=5))
        )
        assert len(answer.items) == 5
    finally:
        recommender.close()


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        ("policy", "the TRM stays the one that the policy was trained with"),
        ("trm", "the TRM is the one that was evaluated"),
    ],
)
def test_a_bundle_says_where_its_trm_was_not_trained_anew(
    do_refit: Refit,
    make_bundle: Callable[..., Path],
    dataset: Dataset,
    titles: list[str],
    tmp_path: Path,
    serve: str,
    said: str,
) -> None:
    out, _ = do_refit(serve, refit=False)
    bundle = Bundle.load(make_bundle(tmp_path / "bundle", titles, serve, out))
    assert (bundle.serve, bundle.info["refit"]) == (serve, False)
    assert bundle.why.endswith(f"; {said}")
    assert bundle.counts.tolist() == popularity(dataset).tolist()
    assert "train-trm" in bundle.metrics["seconds"]


def test_a_trm_trained_anew_still_fits_its_policy_with_items_added(
    do_refit: Refit, make_bundle: Callable[..., Path], titles: list[str], tmp_path: Path
) -> None:
    out, _ = do_refit("trm")
    old = make_bundle(tmp_path / "bundle", titles, "trm", out)
    new = extend_bundle(Bundle.load(old), [Item("n1", "A film; nobody: knows", {})], tmp_path / "bundle-2")
    assert new.info["refit"]
    assert new.why == Bundle.load(old).why
    assert read_record(new.part("trm")).extends == (read_artifact(out).digest,)
    saved = TrmRecommender.load(new.index).save(tmp_path / "saved")
    assert read_record(saved).refit_of == read_record(out).refit_of


def test_a_policy_is_not_served_with_a_trm_trained_anew(
    do_refit: Refit, make_bundle: Callable[..., Path], titles: list[str], tmp_path: Path
) -> None:
    out, _ = do_refit("trm")
    with pytest.raises(ArtifactError, match="trained anew on everything, but the policy is to be served"):
        make_bundle(tmp_path / "bundle", titles, "policy", out)


def test_a_trm_trained_anew_for_another_policys_is_refused(
    sample_dataset: Path, make_bundle: Callable[..., Path], titles: list[str], tmp_path: Path
) -> None:
    """That it was trained anew opens no door: it fits the policy of the one TRM that it names."""
    for name, refit_of in (("other", "0" * 64), ("own", None)):
        options = {"measure": False, "refit_of": refit_of}
        train_split(sample_dataset, everything_sequences, TRM, TEXT, 4, tmp_path / name, **options)
        with pytest.raises(ArtifactError, match="not made from this TRM"):
            make_bundle(tmp_path / "bundle", titles, "trm", tmp_path / name)
