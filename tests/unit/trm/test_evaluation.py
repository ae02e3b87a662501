from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.dataset import Dataset, write_dataset
from deeprec.data.splits import validation_examples
from deeprec.errors import StoreError, TrmError
from deeprec.trm.evaluation import evaluate, evaluate_trm, half_phrases, history_bins, measure, popularity_deciles
from deeprec.trm.report import group_figures
from deeprec.types import Catalogue, Example, Item, Query


class FakeRetriever:
    """Ranks written down by hand: rank 0 with all phrases of the target, 1 with half, else as the test says."""

    def __init__(self, ranks: dict[str, int]) -> None:
        phrases = {"a": ("x", "y", "z"), "b": ("v", "w"), "c": (), "d": ("u",)}
        self.catalogue = Catalogue(tuple(Item(name, name, {}, own) for name, own in phrases.items()))
        self.popularity = np.array([5, 5, 1, 9])
        self.ranks = ranks
        self.asked: list[Query] = []

    def rank_targets(self, queries: Sequence[Query], targets: Sequence[str]) -> Any:
        self.asked += queries
        return np.array([self._rank(query, target) for query, target in zip(queries, targets, strict=True)])

    def _rank(self, query: Query, target: str) -> int:
        if not query.history:
            return 2
        own = self.catalogue[target].phrases
        if query.preference == own and own:
            return 0
        if query.preference and set(query.preference) < set(own):
            return 1
        return self.ranks[target] + (100 if query.preference else 0)


EXAMPLES = [
    Example("u1", ("c",), "a"),
    Example("u2", ("c", "a"), "b"),
    Example("u3", ("a", "b", "d"), "c"),
    Example("u4", ("a",) * 8, "d"),
]


def test_figures_by_hand() -> None:
    retriever: Any = FakeRetriever({"a": 0, "b": 9, "c": 15, "d": 30})
    found = evaluate(retriever, EXAMPLES)
    metrics = found.metrics
    assert measure(retriever, EXAMPLES) == dict(metrics)
    assert metrics["recall@1"] == 0.25
    assert metrics["recall@10"] == 0.5
    assert metrics["recall@20"] == 0.75
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(11)) / 4)
    assert metrics["preference_recall@10"] == 0.75
    assert metrics["preference_recall@20"] == 1
    assert metrics["half_preference_recall@20"] == 1
    assert metrics["popularity_ndcg@10"] == found.popularity["ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert metrics["ratio_to_popularity"] == pytest.approx(metrics["ndcg@10"] / 0.5)


def test_the_misleading_preference_is_half_of_the_one_half_the_examples_on() -> None:
    retriever: Any = FakeRetriever({"a": 0, "b": 9, "c": 15, "d": 30})
    metrics = measure(retriever, EXAMPLES)
    misled = [query.preference for query in retriever.asked[-4:]]
    assert misled[0] == ()
    assert misled[1] == ("u",)
    assert len(misled[2]) == 2
    assert set(misled[2]) < {"x", "y", "z"}
    assert misled[3] in (("v",), ("w",))
    assert metrics["misled_ndcg@10"] == pytest.approx(1 / 4)


def test_groups_by_hand() -> None:
    retriever: Any = FakeRetriever({"a": 0, "b": 9, "c": 15, "d": 30})
    found = evaluate(retriever, EXAMPLES)
    assert [(group.label, group.users) for group in found.by_popularity] == [("1", 1), ("5", 2), ("9", 1)]
    assert [group.recall_10 for group in found.by_popularity] == [0, 1, 0]
    assert [(group.label, group.users) for group in found.by_history] == [("1", 1), ("2–3", 2), ("8–15", 1)]
    assert [group.recall_10 for group in found.by_history] == [1, 0.5, 0]
    assert found.by_history[1].popularity_ndcg_10 == pytest.approx(0.5)
    json.dumps(found.to_json())


def test_nothing_to_measure() -> None:
    retriever: Any = FakeRetriever({})
    found = evaluate(retriever, [])
    assert (found.users, found.by_popularity, found.by_history) == (0, (), ())
    assert found.metrics["recall@20"] == 0
    assert group_figures(found)


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6, unique=True).map(tuple), max_size=8))
def test_half_of_the_phrases_rounded_up_in_order(phrases: list[tuple[str, ...]]) -> None:
    halves = half_phrases(phrases)
    assert halves == half_phrases(phrases)
    for own, half in zip(phrases, halves, strict=True):
        assert len(half) == math.ceil(len(own) / 2)
        assert [phrase for phrase in own if phrase in half] == list(half)


@given(st.lists(st.integers(0, 200), max_size=300))
def test_deciles_hold_equal_counts_together_and_nothing_else(values: list[int]) -> None:
    counts = np.array(values, dtype=np.int64)
    groups, labels = popularity_deciles(counts)
    assert len(labels) <= 10
    assert sorted(set(groups.tolist())) == list(range(len(labels)))
    order = np.argsort(counts, kind="stable")
    assert all(a <= b for a, b in zip(groups[order], groups[order][1:], strict=False))
    assert len({(count, group) for count, group in zip(values, groups.tolist(), strict=True)}) == len(set(values))


def test_distinct_counts_make_ten_equal_groups() -> None:
    groups, labels = popularity_deciles(np.arange(1000))
    assert np.bincount(groups).tolist() in ([100] * 10, [101, *[100] * 8, 99])
    assert labels[0] == f"0–{np.bincount(groups)[0] - 1}"


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_history_bins_cover_their_lengths(lengths: list[int]) -> None:
    groups, labels = history_bins(np.array(lengths, dtype=np.int64))
    for length, group in zip(lengths, groups, strict=True):
        low, _, high = labels[group].replace(",", "").partition("–")
        assert int(low) <= length <= int(high or low)


def test_artifacts_are_evaluated_and_reported(toy_trm: Path, sample_dataset: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.html"
    found = evaluate_trm(toy_trm, sample_dataset, report, "test")
    written = json.loads(report.with_suffix(".json").read_text())
    assert written["split"] == "test"
    assert written["metrics"] == dict(found.metrics)
    assert sum(group["users"] for group in written["by_popularity"]) == found.users == 150
    page = report.read_text()
    assert "Gate" not in page
    assert "150 users, each one's test item" in page.replace("&#39;", "'")
    for heading in ("Accuracy", "With a preference", "Popular and rare targets", "Short and long histories"):
        assert f"<h2>{heading}</h2>" in page
    assert "Training loss" in page
    assert "http" not in page
    assert "src=" not in page


def test_splits_read_different_targets(toy_trm: Path, sample_dataset: Path) -> None:
    found = evaluate_trm(toy_trm, sample_dataset)
    assert found.metrics != evaluate_trm(toy_trm, sample_dataset, split="test").metrics


def test_bad_requests_are_refused(toy_trm: Path, sample_dataset: Path, dataset: Dataset, tmp_path: Path) -> None:
    import polars as pl

    with pytest.raises(TrmError, match="no split 'train'"):
        evaluate_trm(toy_trm, sample_dataset, split="train")  # type: ignore[arg-type]
    with pytest.raises(TrmError, match="another suffix"):
        evaluate_trm(toy_trm, sample_dataset, tmp_path / "report.json")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        evaluate_trm(toy_trm, sample_dataset, tmp_path / "file" / "report.html")
    rows = [("u", f"x{place}", place) for place in range(6)]
    write_dataset(
        tmp_path / "other",
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"),
        pl.DataFrame({"item_id": [f"x{place}" for place in range(6)], "title": list("abcdef")}),
        source="table",
        time_unit="order",
        text_columns=[],
        year_column=None,
        policy_positions=1,
    )
    with pytest.raises(TrmError, match="does not know item 'x4'"):
        evaluate_trm(toy_trm, tmp_path / "other")


def test_every_user_is_in_one_group(toy_trm: Path, dataset: Dataset) -> None:
    from deeprec.trm.recommender import TrmRecommender

    found = evaluate(TrmRecommender.load(toy_trm).retriever, validation_examples(dataset))
    for groups in (found.by_popularity, found.by_history):
        assert sum(group.users for group in groups) == found.users
        mean = sum(group.users * group.ndcg_10 for group in groups) / found.users
        assert mean == pytest.approx(found.metrics["ndcg@10"], abs=1e-6)
