"""Point-wise: how alike the answered items are to the target, the first ones weighing most (method, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deeprec.types import Catalogue, ItemVectors


def pointwise_value(
    answer: Sequence[str | None], target: str, catalogue: Catalogue, vectors: ItemVectors
) -> float | None:
    """10 · Σ wᵢ sᵢ / Σ wᵢ with wᵢ = (1 − i/n)², n = items answered, i from 0.

    sᵢ is the mean of the text cosine and the collaborative cosine of item i with the target, 0 for an item outside the
    catalogue. None when nothing was answered or the target is outside the catalogue.
    """
    if not answer or target not in catalogue:
        return None
    weights = (1 - np.arange(len(answer)) / len(answer)) ** 2
    similarities = np.zeros(len(answer))
    known = [place for place, item_id in enumerate(answer) if item_id in catalogue]
    if known:
        rows = [catalogue.index[str(answer[place])] for place in known]
        goal = catalogue.index[target]
        text = vectors.text[rows] @ vectors.text[goal]
        collaborative = vectors.collaborative[rows] @ vectors.collaborative[goal]
        similarities[known] = (text + collaborative) / 2
    return float(10 * (weights @ similarities) / weights.sum())
