"""Between two states of a model: some of the way back from what it was taught last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_HALVINGS = 7
"""A hundredth of the way: no share of a few hundred answers tells less apart."""


def draw_back(
    model: Any, before: Mapping[str, torch.Tensor], share: Callable[[], float], wanted: float
) -> tuple[float, float]:
    """Draw the weights toward ``before``, in place, as little as it takes for ``share()`` to be at least ``wanted``.

    A weighted mean of the weights a model had before and after a training behaves in between (Wortsman et al., Robust
    Fine-Tuning of Zero-Shot Models, 2022); how far to go is found by halving.

    Args:
        before: parameters by name, as in ``named_parameters``.
        share: of the model as it is then; taken to fall on the way from ``before``.

    Returns:
        How much of the way from ``before`` is left, 1 where nothing had to be drawn back, and ``share()`` there.
    """
    after = {name: weights.detach().clone() for name, weights in model.named_parameters()}

    def go(way: float) -> float:
        with torch.no_grad():
            for name, weights in model.named_parameters():
                weights.copy_(torch.lerp(before[name], after[name], way))
        return share()

    found = share()
    if found >= wanted:
        return 1.0, found
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if go(middle) >= wanted else (low, middle)
    return low, go(low)
