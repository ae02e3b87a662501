"""Hand-computed values of the parts besides format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.rewards.diversity import diversity_values, mean_pairwise_cosine
from deeprec.rewards.interaction import interaction_value
from deeprec.rewards.listwise import listwise_value
from deeprec.rewards.pointwise import pointwise_value
from deeprec.types import Catalogue, Item, ItemVectors


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


def test_the_numbers_of_the_method(catalogue, vectors):
    """k = 10: rank 0 and 9 of the target; ten equal items are worth 10 whatever their weights."""
    assert listwise_value(tuple("abcdefghij"), "j", 10) == pytest.approx(1.2)
    assert pointwise_value(("a",) * 10, "a", catalogue, vectors) == pytest.approx(10.0)
    # w = (1 − i/10)²: 1, 0.81, 0.64, … sum to 3.85, and the target first is worth 10/3.85 of the rest unknown.
    assert pointwise_value(("a", *[None] * 9), "a", catalogue, vectors) == pytest.approx(10 / 3.85)
    assert pointwise_value((None, "a", *[None] * 8), "a", catalogue, vectors) == pytest.approx(8.1 / 3.85)


@st.composite
def answers(draw):
    """Unit vectors of five items, and an answer of items and unknown lines."""
    rows = draw(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=10, max_size=10))
    made = np.array(rows, dtype=np.float32) + np.array([2, 0, 0], dtype=np.float32)
    unit = made / np.linalg.norm(made, axis=1, keepdims=True)
    answer = draw(st.lists(st.sampled_from(["i0", "i1", "i2", "i3", "i4", None, "gone"]), min_size=1, max_size=10))
    return ItemVectors(unit[:5], unit[5:]), tuple(answer)


@given(answers())
def test_an_unknown_title_is_worth_a_similarity_of_0(drawn):
    vectors, answer = drawn
    catalogue = Catalogue(tuple(Item(f"i{row}", f"Item {row}") for row in range(5)))
    total = weighted = 0.0
    for place, item_id in enumerate(answer):
        weight = (1 - place / len(answer)) ** 2
        total += weight
        if item_id is not None and item_id != "gone":
            row = int(item_id[1])
            cosines = [float(made[row] @ made[0]) for made in (vectors.text, vectors.collaborative)]
            weighted += weight * sum(cosines) / 2
    assert pointwise_value(answer, "i0", catalogue, vectors) == pytest.approx(10 * weighted / total, abs=1e-4)
    assert pointwise_value(tuple(None for _ in answer), "i0", catalogue, vectors) == 0.0
