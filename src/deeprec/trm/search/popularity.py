"""The order of items by training interactions: what is answered without a history and a preference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.metrics import MISS
from deeprec.trm.search.contract import Barred, Rows, Subset, parts
from deeprec.types import FloatArray


class Popularity:
    """Items by (items,) counts, most popular first, ties in row order."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._order = np.argsort(-counts, kind="stable")
        self._places = np.empty_like(self._order)
        self._places[self._order] = np.arange(len(counts))
        self._logs = np.log1p(counts.astype(np.float32))

    def scores(self, rows: Rows) -> FloatArray:
        """``log(1 + count) / log(1 + largest count)`` of some rows."""
        return np.asarray(self._logs[rows] / max(float(self._logs.max(initial=0.0)), 1.0), dtype=np.float32)

    def best(self, k: int, excluded: Rows, subset: Subset | None) -> Rows:
        """The at most ``k`` most popular rows that are allowed and not excluded."""
        count = k + len(excluded)
        while True:
            rows = self._order[:count]
            good = ~np.isin(rows, excluded)
            if subset is not None:
                good &= subset.mask[rows]
            if count >= len(self._order) or good.sum() >= k:
                return np.asarray(rows[good][:k])
            count *= 4

    def ranks(
        self,
        queries: FloatArray,
        targets: Rows,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Rows:
        """As ``Index.ranks`` by popularity; of (queries, width) only the number counts."""
        ranks = np.full(len(queries), MISS, dtype=np.int64)
        for subset, places in parts(len(queries), allowed):
            wanted, barred = targets[places], Barred.of(excluded, places).distinct()
            usable, own = barred.spares(wanted, subset), self._places[wanted]
            ahead, gone = own, self._places[barred.rows] < own[barred.owners]
            if subset is not None:
                kept = subset.mask[self._order]
                ahead = (np.cumsum(kept) - kept)[own]
                gone &= subset.mask[barred.rows]
            counted = ahead - np.bincount(barred.owners[gone], minlength=len(places))
            ranks[places[usable]] = counted[usable]
        return ranks
