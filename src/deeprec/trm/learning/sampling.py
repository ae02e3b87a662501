"""Negatives for a sampled softmax over a large catalogue, shared by all positions of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POWER = 0.75
EVEN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Drawn:
    """Distinct catalogue ``rows`` (m,), ascending, and ``weights`` (m,): how many items each stands for.

    The weight is the number of times the row was drawn over the number expected, so that a sum over the rows, weighted,
    is in expectation the sum over the catalogue (the log-Q correction of Bengio and Senécal, 2008).
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]


class Negatives:
    """Draws with replacement: an even share of all items, the rest in proportion to training counts to the power 0.75.

    Popular items compete most for every position, the even share keeps every item's weight bounded (at most
    ``items / (EVEN_SHARE · draws)`` per draw).
    """

    def __init__(self, counts: NDArray[np.int64], draws: int) -> None:
        self._items, self._draws = len(counts), draws
        popular = counts.astype(np.float64) ** POWER
        total = popular.sum()
        self._popular = popular / total if total > 0 else np.full(len(counts), 1 / len(counts))
        self._edges = np.cumsum(self._popular)

    def draw(self, generator: np.random.Generator) -> Drawn:
        """One step's negatives."""
        even = generator.random(self._draws) < EVEN_SHARE
        drawn = generator.integers(self._items, size=self._draws)
        places = generator.random(int((~even).sum())) * self._edges[-1]
        drawn[~even] = np.minimum(np.searchsorted(self._edges, places, side="right"), self._items - 1)
        rows, times = np.unique(drawn, return_counts=True)
        chance = EVEN_SHARE / self._items + (1 - EVEN_SHARE) * self._popular[rows]
        return Drawn(rows, (times / (self._draws * chance)).astype(np.float32))
