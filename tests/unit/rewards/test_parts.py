"""Hand-computed values of the parts besides format."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.rewards.diversity import diversity_values, mean_pairwise_cosine
from deeprec.rewards.interaction import interaction_value
from deeprec.rewards.listwise import listwise_value
from deeprec.rewards.pointwise import pointwise_value


def test_interaction():
    assert [interaction_value(calls) for calls in range(6)] == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


def test_diversity(make, embedder):
    batch = [
        make(calls=()),
        make(calls=(((), "ab"),)),
        make(calls=(((), "ab"), (("comedy",), "cd"))),
        make(calls=((("drama",), "ab"), (("drama",), "cd"))),
        make(calls=((("comedy",), "ab"), (("drama",), "cd"), (("dark comedy",), "cd"))),
        make(calls=((("comedy", "drama"), "ab"), (("comedy",), "cd"))),
    ]
    # cosines: 0 → 0.2; 1 → 0; mean of (0, 0.8, 0.6) = 7/15 → 0.2 · 8/15; (1, 1)/√2 · (0, 1) = 1/√2
    expected = [0.0, 0.0, 0.2, 0.0, 0.2 * 8 / 15, 0.2 * (1 - 0.5**0.5)]
    assert diversity_values(batch, embedder) == pytest.approx(expected, abs=1e-6)
    assert embedder.requests == [("anything", "comedy", "dark comedy", "drama")]


def test_diversity_asks_nothing_of_the_embedder_without_pairs(make, embedder):
    assert diversity_values([make(calls=(((), "ab"),))], embedder) == [0.0]
    assert embedder.requests == []


def test_mean_pairwise_cosine():
    assert mean_pairwise_cosine(np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)) == pytest.approx(1 / 3)


def test_listwise():
    assert listwise_value(("a", "b", "c"), "a", 3) == pytest.approx(1.6)
    assert listwise_value(("a", "b", "c"), "c", 3) == pytest.approx(1.2)
    assert listwise_value(("a", "b", "c"), "d", 3) == 0.0
    assert listwise_value(("a", "b", "c"), "c", 2) == 0.0
    assert listwise_value((), "a", 3) == 0.0
    assert listwise_value(tuple("abcdefghij"), "a", 10) == pytest.approx(3.0)


def test_pointwise(catalogue, vectors):
    # Target a: s_a = 1, s_b = (0.6 + 0)/2 = 0.3, s_c = (0 + 0.8)/2 = 0.4, s_d = (−1 + 0)/2 = −0.5.
    assert pointwise_value(("a",), "a", catalogue, vectors) == pytest.approx(10.0)
    # n = 2: weights 1 and 1/4.
    assert pointwise_value(("b", "c"), "a", catalogue, vectors) == pytest.approx(10 * (0.3 + 0.1) / 1.25)
    # n = 3: weights 1, 4/9, 1/9; the line outside the catalogue counts 0.
    expected = 10 * (0.4 + 0 - 0.5 / 9) / (14 / 9)
    assert pointwise_value(("c", None, "d"), "a", catalogue, vectors) == pytest.approx(expected)
    assert pointwise_value(("gone", None), "a", catalogue, vectors) == 0.0
    assert pointwise_value((), "a", catalogue, vectors) is None
    assert pointwise_value(("a",), "gone", catalogue, vectors) is None
