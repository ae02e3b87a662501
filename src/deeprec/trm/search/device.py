"""Exact search over item vectors that live on an accelerator, with exclusion and filters inside the search.

The same contract as ``exact.ExactIndex``: results in order of score, equal scores in row order. Blocks of scores only
nominate candidates; a candidate's score is summed in float64, so it does not depend on the batch. Memory beyond the
vectors: ``SCORES`` scores at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deeprec.metrics import MISS
from deeprec.trm.search.contract import Barred, Found, Rows, Subset, parts
from deeprec.trm.search.exact import margin
from deeprec.trm.search.topk import ordered
from deeprec.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

SCORES = 1 << 24
"""Scores held at once."""


class DeviceIndex:
    """All item vectors, searched exhaustively with torch on their device."""

    def __init__(self, vectors: Tensor) -> None:
        """Take (items, width) float32 unit vectors on any device."""
        self._vectors = vectors
        self._margin = margin(vectors.shape[1])

    def __str__(self) -> str:
        return f"exact index of {len(self._vectors):,} items on {self._vectors.device}"

    def search(
        self,
        queries: FloatArray,
        k: int,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Found:
        """See ``contract.Index``."""
        import torch

        found = Found.nothing(len(queries), k)
        for subset, places in parts(len(queries), allowed):
            some = self._to(queries[places])
            best = some.new_full((len(places), k), -torch.inf)
            kept: list[tuple[Tensor, Tensor, Tensor]] = []
            for start, scores in self._blocks(some, Barred.of(excluded, places), subset):
                ahead = torch.topk(scores, min(k, scores.shape[1]), dim=1).values
                best = torch.topk(torch.cat([best, ahead], dim=1), k, dim=1).values
                least = (best[:, -1:] - self._margin).clamp_min(torch.finfo(torch.float32).min)
                owners, columns = torch.nonzero(scores >= least, as_tuple=True)
                kept.append((owners, columns + start, scores[owners, columns]))
            if kept:
                owners, rows, scores = (torch.cat(column) for column in zip(*kept, strict=True))
                good = scores >= best[owners, -1] - self._margin
                owners, rows = owners[good], rows[good]
                exact = self._exact(some, owners, rows).cpu().numpy()
                one = ordered(len(places), k, owners.cpu().numpy(), rows.cpu().numpy(), exact)
                found.rows[places], found.scores[places] = one
        return found

    def ranks(
        self,
        queries: FloatArray,
        targets: Rows,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Rows:
        """See ``contract.Index``."""
        import torch

        ranks = np.full(len(queries), MISS, dtype=np.int64)
        for subset, places in parts(len(queries), allowed):
            some, barred = self._to(queries[places]), Barred.of(excluded, places)
            wanted = self._to(targets[places])
            level = self._exact(some, torch.arange(len(places), device=some.device), wanted)
            counts = torch.zeros(len(places), dtype=torch.int64, device=some.device)
            for start, scores in self._blocks(some, barred, subset):
                above = scores > level[:, None] + self._margin
                counts += above.sum(dim=1)
                owners, columns = torch.nonzero((scores >= level[:, None] - self._margin) ^ above, as_tuple=True)
                exact, rows = self._exact(some, owners, columns + start), columns + start
                ahead = (exact > level[owners]) | ((exact == level[owners]) & (rows < wanted[owners]))
                counts += torch.bincount(owners[ahead], minlength=len(places))
            usable = barred.spares(targets[places], subset)
            ranks[places[usable]] = counts.cpu().numpy()[usable]
        return ranks

    def _blocks(self, queries: Tensor, barred: Barred, subset: Subset | None) -> Iterator[tuple[int, Tensor]]:
        """First row and scores (queries, rows) of successive blocks, −∞ where barred."""
        import torch

        barred = barred.among(None)
        step = max(1, SCORES // len(queries))
        for start in range(0, len(self._vectors), step):
            scores = queries @ self._vectors[start : start + step].T
            if subset is not None:
                scores[:, self._to(~subset.mask[start : start + step])] = -torch.inf
            low, high = np.searchsorted(barred.rows, (start, start + scores.shape[1]))
            scores[self._to(barred.owners[low:high]), self._to(barred.rows[low:high] - start)] = -torch.inf
            yield start, scores

    def _exact(self, queries: Tensor, owners: Tensor, rows: Tensor) -> Tensor:
        """(pairs,) float32 scores of (query, row) pairs."""
        return (queries[owners].double() * self._vectors[rows].double()).sum(dim=1).float()

    def _to(self, values: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(self._vectors.device)
