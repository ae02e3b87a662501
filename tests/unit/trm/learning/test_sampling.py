from __future__ import annotations

import numpy as np
import pytest

from deeprec.trm.learning.sampling import Negatives


def test_weighted_sums_over_draws_are_those_over_the_catalogue() -> None:
    counts = np.array([0, 0, 1, 5, 400, 30, 0, 2, 8, 90])
    values = np.arange(10) + 1.0
    generator = np.random.default_rng(0)
    negatives = Negatives(counts, 50)
    sums = []
    for _ in range(4000):
        drawn = negatives.draw(generator)
        assert (np.diff(drawn.rows) > 0).all()
        sums.append((drawn.weights * values[drawn.rows]).sum())
    assert np.mean(sums) == pytest.approx(values.sum(), rel=0.01)


def test_popular_items_are_drawn_more_often_and_none_is_left_out() -> None:
    counts = np.array([0, 10, 1000])
    generator = np.random.default_rng(1)
    negatives = Negatives(counts, 4)
    seen = np.zeros(3)
    for _ in range(2000):
        seen[negatives.draw(generator).rows] += 1
    assert 0 < seen[0] < seen[1] < seen[2]


def test_a_catalogue_without_counts_is_drawn_evenly() -> None:
    drawn = Negatives(np.zeros(4, dtype=np.int64), 4000).draw(np.random.default_rng(2))
    assert drawn.weights == pytest.approx(np.ones(4), rel=0.15)
