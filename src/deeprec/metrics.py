"""Ranking metrics for one relevant item per user, from the target's rank.

With one target, Recall@k is the hit rate, DCG@k of a hit at 0-based rank r is 1 / log2(r + 2) and the ideal DCG is 1
(Järvelin and Kekäläinen, 2002); MRR is the mean of 1 / (r + 1). A miss counts 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.types import FloatArray

RECALL_AT = (1, 5, 10)
NDCG_AT = (5, 10)
MISS = -1


def target_ranks(answers: Sequence[Sequence[str | None]], targets: Sequence[str]) -> NDArray[np.int64]:
    """(users,) 0-based rank of each target in its answer by exact item id, ``MISS`` where absent."""
    return np.array(
        [
            list(answer).index(target) if target in answer else MISS
            for answer, target in zip(answers, targets, strict=True)
        ],
        dtype=np.int64,
    )


def ndcg_per_user(ranks: NDArray[np.int64], k: int = 10) -> FloatArray:
    """(users,) NDCG@k of each user."""
    hit = (ranks >= 0) & (ranks < k)
    return np.where(hit, 1.0 / np.log2(np.where(hit, ranks, 0) + 2.0), 0.0).astype(np.float32)


def metrics_from_ranks(ranks: NDArray[np.int64], *, mrr_at: int | None = None) -> dict[str, float]:
    """``recall@1/5/10``, ``ndcg@5/10`` and ``mrr`` as means over users; 0.0 for no users.

    Args:
        ranks: (users,) 0-based ranks, ``MISS`` for a miss.
        mrr_at: count only ranks below this for MRR, so that full rankings and answers of k items compare.
    """
    if len(ranks) == 0:
        return {**{f"recall@{k}": 0.0 for k in RECALL_AT}, **{f"ndcg@{k}": 0.0 for k in NDCG_AT}, "mrr": 0.0}
    hit = ranks >= 0
    counted = hit if mrr_at is None else hit & (ranks < mrr_at)
    return {
        **{f"recall@{k}": float((hit & (ranks < k)).mean()) for k in RECALL_AT},
        **{f"ndcg@{k}": float(ndcg_per_user(ranks, k).mean()) for k in NDCG_AT},
        "mrr": float(np.where(counted, 1.0 / (np.where(counted, ranks, 0) + 1.0), 0.0).mean()),
    }
