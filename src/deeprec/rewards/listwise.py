"""List-wise: whether, and how high, the target stands in the answer (method, section 3)."""

from __future__ import annotations

from collections.abc import Sequence


def listwise_value(answer: Sequence[str | None], target: str, answer_size: int) -> float:
    """1 + 0.2 · (k − i) for the target at 0-based rank i of the top k, 0 when absent. Items are compared by id."""
    top = list(answer[:answer_size])
    return 1.0 + 0.2 * (answer_size - top.index(target)) if target in top else 0.0
