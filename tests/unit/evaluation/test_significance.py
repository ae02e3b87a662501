"""The bootstrap against numbers that can be computed by hand or in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeprec.evaluation.significance import (
    bootstrap_means,
    compare,
    interval,
    metrics_per_user,
    ratio,
    verdict_sentence,
)
from deeprec.metrics import MISS, metrics_from_ranks


def test_metrics_per_user_by_hand() -> None:
    values = metrics_per_user(np.array([0, 3, 7, MISS]))
    assert values["recall@1"].tolist() == [1, 0, 0, 0]
    assert values["recall@5"].tolist() == [1, 1, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 1, 0]
    assert values["ndcg@10"] == pytest.approx([1, 1 / math.log2(5), 1 / math.log2(9), 0], abs=1e-6)
    assert values["mrr"] == pytest.approx([1, 0.25, 0.125, 0])


def test_metrics_per_user_average_to_the_metrics() -> None:
    ranks = np.random.default_rng(0).integers(-1, 10, size=200)
    means = {name: float(values.mean()) for name, values in metrics_per_user(ranks).items()}
    assert means == pytest.approx(metrics_from_ranks(ranks), abs=1e-6)


def test_one_user_resamples_to_itself() -> None:
    assert bootstrap_means(np.array([[0.25, 1.0]]), 5, seed=1).tolist() == [[0.25, 1.0]] * 5


def test_two_users_give_the_binomial_distribution() -> None:
    means = bootstrap_means(np.array([[0.0], [1.0]]), 40_000, seed=3)[:, 0]
    shares = [float((means == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_standard_error_of_a_hit_rate() -> None:
    hits = np.repeat([1.0, 0.0], [300, 700])[:, None]
    means = bootstrap_means(hits, 4000, seed=5)[:, 0]
    error = math.sqrt(0.3 * 0.7 / 1000)
    assert float(means.std()) == pytest.approx(error, rel=0.05)
    found = interval(means, 0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - 1.96 * error, 0.3 + 1.96 * error), abs=0.003)


def test_resamples_do_not_depend_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 3))
    whole = bootstrap_means(values, 30, seed=7)
    monkeypatch.setattr("deeprec.evaluation.significance._CELLS_AT_ONCE", 350)
    assert np.allclose(bootstrap_means(values, 30, seed=7), whole)


def test_a_constant_difference_has_no_spread() -> None:
    figures = compare({"policy": np.zeros(40, np.int64), "trm": np.full(40, MISS)}, [("policy", "trm")], 100, seed=0)
    assert figures["differences"]["policy_minus_trm"]["recall@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert figures["intervals"]["trm"]["mrr"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_narrows_the_interval() -> None:
    ranks = np.random.default_rng(2).integers(-1, 20, size=400)
    better = ranks.copy()
    better[:20] = 0
    found = compare({"a": better, "b": ranks}, [("a", "b")], 1000, seed=0)
    paired = found["differences"]["a_minus_b"]["ndcg@10"]
    alone = found["intervals"]["a"]["ndcg@10"]
    assert paired["low"] > 0
    assert paired["high"] - paired["low"] < alone["high"] - alone["low"]
    assert paired["mean"] == pytest.approx(alone["mean"] - found["intervals"]["b"]["ndcg@10"]["mean"])


def test_the_seed_fixes_the_result() -> None:
    ranks = {"a": np.array([0, 1, MISS, 4]), "b": np.array([1, MISS, 2, 3])}
    assert compare(ranks, [("a", "b")], 200, seed=4) == compare(ranks, [("a", "b")], 200, seed=4)
    assert compare(ranks, [("a", "b")], 200, seed=4) != compare(ranks, [("a", "b")], 200, seed=5)


def test_no_users_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one user"):
        bootstrap_means(np.zeros((0, 1)), 10, seed=0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.03, "policy beats the TRM"), (-0.03, -0.01, "policy is below the TRM"), (-0.01, 0.01, "No difference")],
)
def test_verdict_sentence(low: float, high: float, expected: str) -> None:
    sentence = verdict_sentence("policy", "TRM", {"mean": (low + high) / 2, "low": low, "high": high})
    assert expected in sentence
    assert f"{low:+.4f} to {high:+.4f}" in sentence


def test_a_ratio_by_hand_and_none_over_nothing() -> None:
    hit, late, miss = np.array([0, 0]), np.array([2, 2]), np.array([MISS, MISS])
    found = ratio(hit, late, 100, seed=0)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio(hit, miss, 100, seed=0) is None
    assert ratio(hit, np.array([0, MISS]), 100, seed=0) is None  # a resample may hold the second user only
