"""Ranking metrics against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeprec.metrics import MISS, metrics_from_ranks, ndcg_per_user, target_ranks


def test_target_ranks_by_exact_id() -> None:
    answers = [("1", "10", "100"), ("10", "100", "1"), ("11", "12"), (), (None, "7")]
    assert target_ranks(answers, ["1", "1", "1", "1", "7"]).tolist() == [0, 2, MISS, MISS, 1]


def test_a_repeated_item_counts_at_its_first_place() -> None:
    assert target_ranks([("a", "b", "a", "b")], ["b"]).tolist() == [1]


def test_answers_and_targets_must_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        target_ranks([("a",)], ["a", "b"])


def test_ndcg_per_user_by_hand() -> None:
    ranks = np.array([0, 1, 2, 9, 10, MISS])
    expected = [1.0, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0.0, 0.0]
    assert ndcg_per_user(ranks, 10) == pytest.approx(expected, abs=1e-6)
    assert ndcg_per_user(ranks, 2) == pytest.approx([1.0, 1 / math.log2(3), 0, 0, 0, 0], abs=1e-6)


def test_metrics_from_ranks_by_hand() -> None:
    found = metrics_from_ranks(np.array([0, 4, 9, MISS]))
    assert found == pytest.approx(
        {
            "recall@1": 1 / 4,
            "recall@5": 2 / 4,
            "recall@10": 3 / 4,
            "ndcg@5": (1 + 1 / math.log2(6)) / 4,
            "ndcg@10": (1 + 1 / math.log2(6) + 1 / math.log2(11)) / 4,
            "mrr": (1 + 1 / 5 + 1 / 10) / 4,
        },
        abs=1e-6,
    )


def test_mrr_of_a_full_ranking_can_be_cut() -> None:
    ranks = np.array([0, 19])
    assert metrics_from_ranks(ranks)["mrr"] == pytest.approx((1 + 1 / 20) / 2)
    assert metrics_from_ranks(ranks, mrr_at=10)["mrr"] == pytest.approx(0.5)


def test_all_misses_and_no_users_are_zero() -> None:
    assert set(metrics_from_ranks(np.full(3, MISS)).values()) == {0.0}
    assert metrics_from_ranks(np.array([], dtype=np.int64)) == metrics_from_ranks(np.full(3, MISS))
