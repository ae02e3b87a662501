"""Several lists for one history merged into one: weighted reciprocal ranks (Cormack et al., 2009)."""

from __future__ import annotations

from collections.abc import Sequence

from deeprec.types import RetrievedItem

RANK_OFFSET = 5.0
BROAD_WEIGHT = 4.0
"""What the first list, a broad one, weighs against each later one."""


def merge(lists: Sequence[Sequence[RetrievedItem]]) -> list[str]:
    """Distinct item ids by weighted reciprocal rank, Σ w / (5 + rank), the first list weighing four times.

    Ties keep the order of first appearance, so one list alone keeps its order.
    """
    fused = merged_weights(lists)
    return sorted(fused, key=lambda item_id: -fused[item_id])


def merged_weights(lists: Sequence[Sequence[RetrievedItem]]) -> dict[str, float]:
    """Item id → Σ w / (5 + rank) over the lists, in order of first appearance; see ``merge``."""
    fused: dict[str, float] = {}
    for position, items in enumerate(lists):
        weight = BROAD_WEIGHT if position == 0 else 1.0
        for rank, item in enumerate(items):
            fused[item.item_id] = fused.get(item.item_id, 0.0) + weight / (RANK_OFFSET + rank)
    return fused
