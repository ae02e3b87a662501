"""Approximate search of a large catalogue: FAISS's inverted file over 8-bit codes, its candidates scored exactly.

Items are assigned to cells by spherical k-means; a query looks into the ``probes`` nearest cells. ``probes`` is doubled
at construction until recall@20 against the exact search reaches the target on a sample of queries; what was reached is
``recall``. Filters are applied inside the search (IDSelector), with more cells the fewer items they keep; where an
exact search of what they keep is faster it is done instead. For exclusion more candidates are fetched. A query that
gets fewer than ``k`` results is searched exactly, so they are fewer only when exclusion and filters leave fewer.
Memory beyond the exact index: one byte per dimension and item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeprec.trm.search.contract import Barred, Found, Rows, Subset, parts
from deeprec.trm.search.exact import ExactIndex
from deeprec.trm.search.topk import ordered
from deeprec.types import FloatArray

RECALL_AT = 20
_POINTS_PER_CELL = 50
_ITERATIONS = 8
_GATHER, _MULTIPLY = 4.0, 0.25
"""Cost of gathering an item for an exact search, and of its product with a query, beside looking at it in a cell."""


class ApproximateIndex:
    """An inverted file beside the exact index it is measured against.

    Attributes:
        cells: number of cells.
        probes: cells that an unfiltered query looks into.
        recall: recall@20 against the exact search on the sample.
    """

    def __init__(self, exact: ExactIndex, sample: FloatArray, target: float) -> None:
        """Build it and tune it to a recall on (queries, width) unit-length queries; about 20 s per million items."""
        import faiss

        self._faiss: Any = faiss
        self._exact, count = exact, len(exact)
        self.cells: int = max(1, min(round(2 * count**0.5), count // _POINTS_PER_CELL))
        self._file = _inverted_file(exact.vectors, self.cells)
        truth = exact.search(sample, RECALL_AT).rows
        self.probes, self.recall = 1, 0.0
        while True:
            self.recall = recall(self.search(sample, RECALL_AT).rows, truth)
            if self.recall >= target or self.probes >= self.cells:
                break
            self.probes = min(2 * self.probes, self.cells)

    def search(
        self,
        queries: FloatArray,
        k: int,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Found:
        """See ``contract.Index``; some of the k best may be missing, and worse ones stand in for them."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = Found.nothing(len(queries), k)
        for subset, places in parts(len(queries), allowed):
            probes = self._probes(subset, len(places))
            if probes is not None:
                barred = Barred.of(excluded, places)
                rows, scores = self._probe(queries[places], k, barred, subset, probes)
                found.rows[places], found.scores[places] = rows, scores
        short = np.flatnonzero(found.rows[:, -1] < 0).tolist()
        if short:
            again = self._exact.search(
                queries[short],
                k,
                None if excluded is None else [excluded[place] for place in short],
                None if allowed is None else [allowed[place] for place in short],
            )
            found.rows[short], found.scores[short] = again
        return found

    def ranks(
        self,
        queries: FloatArray,
        targets: Rows,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Rows:
        """Exact; see ``contract.Index``."""
        return self._exact.ranks(queries, targets, excluded, allowed)

    def __str__(self) -> str:
        return (
            f"approximate index of {len(self._exact):,} items: {self.probes} of {self.cells} cells are searched, "
            f"recall@{RECALL_AT} {self.recall:.3f}"
        )

    def _probes(self, subset: Subset | None, queries: int) -> int | None:
        """Cells to search, so that as many allowed items are met as without a filter; None: search exactly.

        Per query the cells cost as many steps as they hold items, an exact search ``_GATHER / queries + _MULTIPLY`` per
        item kept.
        """
        if subset is None:
            return self.probes
        share, opened = len(subset.rows) / len(self._exact), self.probes / self.cells
        if share**2 * (_GATHER / queries + _MULTIPLY) < opened:
            return None
        return min(self.cells, int(np.ceil(self.probes / share)))

    def _probe(self, queries: FloatArray, k: int, barred: Barred, subset: Subset | None, probes: int) -> Found:
        faiss = self._faiss
        most = int(np.bincount(barred.owners, minlength=1).max())
        fetched = min(2 * k + most, len(self._exact))
        selector = None if subset is None else faiss.IDSelectorBitmap(np.packbits(subset.mask, bitorder="little"))
        settings = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        rows = np.sort(self._file.search(queries, fetched, params=settings)[1], axis=1)
        owners, columns = np.nonzero(rows >= 0)
        candidates = rows[owners, columns]
        if len(barred.rows):
            size = len(self._exact)
            good = ~np.isin(owners * size + candidates, barred.owners * size + barred.rows)
            owners, candidates = owners[good], candidates[good]
        return ordered(len(queries), k, owners, candidates, self._exact.score(queries, owners, candidates))


def recall(found: Rows, truth: Rows) -> float:
    """Share of the rows of (queries, k) truth that are among those found."""
    hits = sum(len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True))
    return hits / max(int((truth >= 0).sum()), 1)


def _inverted_file(vectors: FloatArray, cells: int) -> Any:
    import faiss

    width = vectors.shape[1]
    index: Any = faiss.index_factory(width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.niter = True, _ITERATIONS
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _POINTS_PER_CELL, 1
    some = np.random.default_rng(0).permutation(len(vectors))[: cells * _POINTS_PER_CELL]
    index.train(np.ascontiguousarray(vectors[np.sort(some)]))
    index.add(vectors)
    return index
