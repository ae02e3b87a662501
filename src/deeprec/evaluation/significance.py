"""How sure the figures are: percentile bootstrap over users, paired between recommenders.

A resample draws as many users as there are, with replacement, and is shared by all recommenders, so that a
difference between two of them is taken on the same users (Efron and Tibshirani, 1993, chapters 13 and 16). Users are
the only source of variation considered: not seeds, not training runs. Only ranks come in; no file or model is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from deeprec.metrics import NDCG_AT, RECALL_AT, ndcg_per_user
from deeprec.types import JsonDict

CONFIDENCE = 0.95
COMPARED = ("ndcg@10", "recall@10")
_CELLS_AT_ONCE = 8_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users and its percentile interval at ``CONFIDENCE``."""

    mean: float
    low: float
    high: float


def metrics_per_user(ranks: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Metric name → (users,) value of each user; their means are ``metrics.metrics_from_ranks`` of the same ranks."""
    hit = ranks >= 0
    return {
        **{f"recall@{k}": (hit & (ranks < k)).astype(np.float64) for k in RECALL_AT},
        **{f"ndcg@{k}": ndcg_per_user(ranks, k).astype(np.float64) for k in NDCG_AT},
        "mrr": np.where(hit, 1.0 / (np.where(hit, ranks, 0) + 1.0), 0.0),
    }


def bootstrap_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, columns) means of resampled rows of ``values`` (users, columns), the same rows for every column.

    A resample is drawn as the number of times each user occurs in it (multinomial), which makes all means one matrix
    product; memory stays below some 100 MB.

    Raises:
        ValueError: there are no users.
    """
    users = len(values)
    if users == 0:
        raise ValueError("a bootstrap needs at least one user; there are none")
    generator = np.random.default_rng(seed)
    chance = np.full(users, 1.0 / users)
    step = max(1, _CELLS_AT_ONCE // users)
    means = [
        generator.multinomial(users, chance, size=min(step, resamples - start)).astype(np.float64) @ values
        for start in range(0, resamples, step)
    ]
    return np.concatenate(means) / users


def interval(means: NDArray[np.float64], mean: float) -> Interval:
    """The central interval of resampled ``means`` (resamples,) around an observed mean."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(mean), float(low), float(high))


def ratio(
    ranks: NDArray[np.int64], others: NDArray[np.int64], resamples: int, seed: int, metric: str = "ndcg@10"
) -> Interval | None:
    """How many times ``others``' metric one recommender has, on the same users; None where theirs is 0.

    Args:
        ranks: (users,) 0-based ranks of the targets, and ``others`` likewise, in the same order.
    """
    values = np.stack([metrics_per_user(one)[metric] for one in (ranks, others)], axis=1)
    observed, means = values.mean(axis=0), bootstrap_means(values, resamples, seed)
    if not observed[1] or not means[:, 1].all():
        return None
    return interval(means[:, 0] / means[:, 1], observed[0] / observed[1])


def compare(
    ranks: Mapping[str, NDArray[np.int64]], differences: Sequence[tuple[str, str]], resamples: int, seed: int
) -> JsonDict:
    """Intervals of every metric of every recommender, and of paired differences.

    Args:
        ranks: recommender → (users,) 0-based rank of the target, the same users in the same order for all.
        differences: pairs (a, b), reported as ``a_minus_b`` for the metrics of ``COMPARED``.
        resamples: number of bootstrap resamples.
        seed: fixes the resamples.

    Returns:
        ``{"confidence", "resamples", "intervals": {recommender: {metric: {"mean", "low", "high"}}},
        "differences": {"a_minus_b": {metric: {"mean", "low", "high"}}}}``.
    """
    per_user = {name: metrics_per_user(values) for name, values in ranks.items()}
    keys = [(name, metric) for name, metrics in per_user.items() for metric in metrics]
    column = {key: number for number, key in enumerate(keys)}
    values = np.stack([per_user[name][metric] for name, metric in keys], axis=1)
    means, observed = bootstrap_means(values, resamples, seed), values.mean(axis=0)

    def difference(a: str, b: str, metric: str) -> Interval:
        first, second = column[(a, metric)], column[(b, metric)]
        return interval(means[:, first] - means[:, second], observed[first] - observed[second])

    return {
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "intervals": {
            name: {
                metric: asdict(interval(means[:, column[(name, metric)]], observed[column[(name, metric)]]))
                for metric in metrics
            }
            for name, metrics in per_user.items()
        },
        "differences": {
            f"{a}_minus_{b}": {metric: asdict(difference(a, b, metric)) for metric in COMPARED} for a, b in differences
        },
    }


def verdict_sentence(name: str, other: str, difference: Mapping[str, float], metric: str = "NDCG@10") -> str:
    """One sentence saying whether ``name`` beats ``other``, from a difference's mean, low and high."""
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    figures = f"difference in {metric} {mean:+.4f}, {CONFIDENCE:.0%} interval {low:+.4f} to {high:+.4f}"
    if low > 0:
        return f"The {name} beats the {other}: {figures}."
    if high < 0:
        return f"The {name} is below the {other}: {figures}."
    return f"No difference between the {name} and the {other} can be told from these users: {figures}."
