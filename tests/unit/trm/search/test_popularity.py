from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.metrics import MISS
from deeprec.trm.search.contract import Subset
from deeprec.trm.search.popularity import Popularity


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    k=st.integers(1, 70),
    share=st.sampled_from([None, 0.0, 0.1, 0.7]),
)
def test_lists_and_ranks_equal_a_plain_sort(counts: list[int], seed: int, k: int, share: float | None) -> None:
    generator = np.random.default_rng(seed)
    items = len(counts)
    excluded = [generator.integers(0, items, size=int(generator.integers(0, 12))) for _ in range(4)]
    subset = None if share is None else Subset(generator.random(items) < share)
    popularity = Popularity(np.array(counts))
    targets = generator.integers(0, items, size=4)
    expected = []
    for rows, target in zip(excluded, targets, strict=True):
        order = [
            row
            for row in sorted(range(items), key=lambda row: (-counts[row], row))
            if row not in rows and (subset is None or subset.mask[row])
        ]
        assert popularity.best(k, rows, subset).tolist() == order[:k]
        expected.append(order.index(target) if target in order else MISS)
    allowed = None if subset is None else [subset] * 4
    ranks = popularity.ranks(np.zeros((4, 2), dtype=np.float32), targets, excluded, allowed)
    assert ranks.tolist() == expected


def test_scores_are_logarithms_of_counts() -> None:
    scores = Popularity(np.array([0, 9, 99])).scores(np.array([2, 1, 0]))
    assert scores.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert Popularity(np.array([0, 0])).scores(np.array([0])).tolist() == [0.0]
