"""Exact search over the catalogue's item vectors on a CPU, with exclusion and filters inside the search.

Vectors and queries are float32 and of unit length at most, so a score is at most 1. Results come by score, equal scores
in row order, and fewer than ``k`` only when exclusion and filters leave fewer. A (query, row) pair's score has the same
bits whatever it was searched with: batches, filters and blocks only nominate candidates, ``score`` scores them.

Three ways to the same result, chosen by size:
- one query over a catalogue or a filter's items that fit the cache: FAISS's heap over that matrix;
- one query over more: all inner products by FAISS's kernel, then the best of them;
- several queries: matrix products, block by block.

The last two find the k best by two levels: the k-th largest of the blocks' maxima bounds the k-th best score from
below, so only what reaches it (less the rounding by which two ways of summing can differ) is looked at again.
Memory: the vectors, at most ``COMPACT_BYTES`` of copies of filtered matrices, ``SCORES`` scores at a time and, per
result asked for, some tens of bytes. Safe to call from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from operator import gt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeprec.metrics import MISS
from deeprec.trm.search.contract import NO_ROWS, Barred, Found, Index, Rows, Subset, parts, places_of
from deeprec.trm.search.topk import Best, ordered, pairs, rows_at
from deeprec.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from deeprec.config import IndexConfig

SCORES = 1 << 19
"""Scores held at once."""
GATHERED = 4096
"""Rows of a filtered matrix gathered at once."""
SMALL = 32_768
"""Largest matrix that one query searches with a heap."""
COMPACT_BYTES = 64 << 20
"""Bytes of filtered matrices that are kept."""
FEW = 4
"""Up to so many queries are searched one by one."""
_DENSE = 0.35
_PARALLEL = 16_384
_SMALL_PARALLEL = 8_192
"""With several threads FAISS splits larger matrices, and then multiplies, which rounds otherwise."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """What is searched: the whole catalogue, or some ``rows`` of it, with a copy of their ``vectors`` or without."""

    vectors: FloatArray | None
    pointer: Any
    rows: Rows | None


class ExactIndex:
    """All item vectors, searched exhaustively."""

    def __init__(self, vectors: FloatArray) -> None:
        """Take (items, width) float32 unit vectors; they are not copied where their memory is aligned already."""
        import faiss

        self._faiss: Any = faiss
        self.vectors = _aligned(vectors)
        self._margin = margin(vectors.shape[1])
        self._all = _Pool(self.vectors, faiss.swig_ptr(self.vectors), None)
        self._kept: OrderedDict[Subset, _Pool] = OrderedDict()
        self._copied = 0
        self._lock, self._local = threading.Lock(), threading.local()
        self._threads = faiss.omp_get_max_threads()
        self._workers = (
            ThreadPoolExecutor(self._threads, "deeprec-index", faiss.omp_set_num_threads, (1,))
            if self._threads > 1
            else None
        )
        self._small = 0 if not self._check_heap() else SMALL if self._threads == 1 else _SMALL_PARALLEL

    def __len__(self) -> int:
        return len(self.vectors)

    def __str__(self) -> str:
        return f"exact index of {len(self):,} items"

    def search(
        self,
        queries: FloatArray,
        k: int,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Found:
        """See ``contract.Index``."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if len(queries) == 1:
            subset = None if allowed is None else allowed[0]
            return self._search_one(queries, k, NO_ROWS if excluded is None else excluded[0], subset)
        groups = parts(len(queries), allowed)
        if len(groups) == 1 and len(queries) > FEW:
            return self._scan(queries, k, Barred.of(excluded, groups[0].places), groups[0].subset)
        found = Found.nothing(len(queries), k)
        for subset, places in groups:
            if len(places) <= FEW:
                for place in places.tolist():
                    barred = NO_ROWS if excluded is None else excluded[place]
                    one = self._search_one(queries[place : place + 1], k, barred, subset)
                    found.rows[place], found.scores[place] = one.rows[0], one.scores[0]
            else:
                rows, scores = self._scan(queries[places], k, Barred.of(excluded, places), subset)
                found.rows[places], found.scores[places] = rows, scores
        return found

    def ranks(
        self,
        queries: FloatArray,
        targets: Rows,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Rows:
        """See ``contract.Index``."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ranks = np.full(len(queries), MISS, dtype=np.int64)
        for subset, places in parts(len(queries), allowed):
            wanted, barred = targets[places], Barred.of(excluded, places)
            usable = barred.spares(wanted, subset)
            counted = self._rank(queries[places], wanted, barred, subset)
            ranks[places[usable]] = counted[usable]
        return ranks

    # ----------------------------------------------------------------------------------------------------- one query

    def _search_one(self, query: FloatArray, k: int, excluded: Rows, subset: Subset | None) -> Found:
        pool = self._pool(subset)
        if pool.vectors is not None and len(pool.vectors) <= self._small:
            found = self._heap(query, k, excluded, pool, len(pool.vectors))
            if found is not None:
                return found
        return self._scan(query, k, Barred(excluded, np.zeros(len(excluded), dtype=np.int64)), subset)

    def _heap(self, query: FloatArray, k: int, excluded: Rows, pool: _Pool, size: int) -> Found | None:
        """None where it cannot tell: equal scores, whose order FAISS leaves open, or fewer than k + 1 results."""
        at = self._faiss.swig_ptr
        selector = None
        if len(excluded):
            selector = self._faiss.IDSelectorBitmap(np.packbits(self._free(pool, excluded), bitorder="little"))
        rows, scores = np.empty(k + 1, dtype=np.int64), np.empty(k + 1, dtype=np.float32)
        self._faiss.knn_inner_product(
            at(query), pool.pointer, query.shape[1], 1, size, k + 1, at(scores), at(rows), selector
        )
        values = scores.tolist()
        if not all(map(gt, values, values[1:])):
            return None
        best = rows[:k] if pool.rows is None else pool.rows[rows[:k]]
        return Found(best[None], scores[None, :k])

    def _free(self, pool: _Pool, excluded: Rows) -> NDArray[np.bool_]:
        """(places of the pool,) false where the row is excluded."""
        if pool.rows is not None and len(self) > SMALL:
            free = np.ones(len(pool.rows), dtype=bool)
            free[places_of(pool.rows, excluded)[0]] = False
            return free
        free = np.ones(len(self), dtype=bool)
        free[excluded] = False
        return free if pool.rows is None else free[pool.rows]

    def _check_heap(self) -> bool:
        """Whether the heap's scores have the bits of ``score`` in this build of FAISS."""
        some = np.ascontiguousarray(self.vectors[:64])
        if not len(some):
            return False
        rows, scores = np.empty(len(some), dtype=np.int64), np.empty(len(some), dtype=np.float32)
        at = self._faiss.swig_ptr
        query = np.ascontiguousarray(some.mean(axis=0, keepdims=True))
        self._faiss.knn_inner_product(
            at(query), at(some), some.shape[1], 1, len(some), len(some), at(scores), at(rows), None
        )
        return bool((self.score(query, np.zeros_like(rows), rows) == scores).all())

    def _pool(self, subset: Subset | None) -> _Pool:
        """What a search among a subset reads; copies of small subsets are kept, and the least recent make room."""
        if subset is None:
            return self._all
        with self._lock:
            pool = self._kept.get(subset)
            if pool is not None:
                self._kept.move_to_end(subset)
                return pool
        if not 0 < len(subset.rows) <= SMALL:
            return _Pool(None, None, subset.rows)
        vectors = _aligned(self.vectors.take(subset.rows, axis=0))
        pool = _Pool(vectors, self._faiss.swig_ptr(vectors), subset.rows)
        with self._lock:
            self._kept[subset] = pool
            self._copied += vectors.nbytes
            while self._copied > COMPACT_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._copied -= 0 if dropped.vectors is None else dropped.vectors.nbytes
        return pool

    # ---------------------------------------------------------------------------------------------------------- scan

    def _scan(self, queries: FloatArray, k: int, barred: Barred, subset: Subset | None) -> Found:
        """The k best of each query."""
        best = Best(len(queries), k, self._margin)
        for rows, scores in self._blocks(queries, barred, subset):
            best.add(rows, scores)
        owners, rows = best.candidates()
        return ordered(len(queries), k, owners, rows, self.score(queries, owners, rows))

    def _rank(self, queries: FloatArray, targets: Rows, barred: Barred, subset: Subset | None) -> Rows:
        """(queries,) how many rows come before the target."""
        every = np.arange(len(queries))
        level = self.score(queries, every, targets)
        low, high = level - np.float32(self._margin), level + np.float32(self._margin)
        counts = np.zeros(len(queries), dtype=np.int64)
        for rows, scores in self._blocks(queries, barred, subset):
            above = scores > high
            counts += np.count_nonzero(above, axis=0)
            place, owner = pairs((scores >= low) ^ above)
            near = rows_at(rows, place)
            exact = self.score(queries, owner, near)
            before = (exact > level[owner]) | ((exact == level[owner]) & (near < targets[owner]))
            counts += np.bincount(owner[before], minlength=len(queries))
        return counts

    def _blocks(
        self, queries: FloatArray, barred: Barred, subset: Subset | None
    ) -> Iterator[tuple[int | Rows, FloatArray]]:
        """Scores (rows, queries) of successive blocks, −∞ where barred, with their first row or their rows.

        A block is overwritten by the next one.
        """
        pool = self._pool(subset)
        gathers = pool.vectors is None and pool.rows is not None
        if gathers and len(queries) == 1 and pool.rows is not None and len(pool.rows) > _DENSE * len(self):
            pool = self._all
        count = len(self) if pool.rows is None else len(pool.rows)
        barred = barred.among(pool.rows)
        step = max(1, SCORES // len(queries))
        for start in range(0, count, step):
            stop = min(start + step, count)
            scores = self._scratch("scores", SCORES)[: (stop - start) * len(queries)].reshape(-1, len(queries))
            compute = self._products if len(queries) == 1 else self._multiply
            compute(queries, pool, start, scores)
            if pool.rows is None and subset is not None:
                scores[~subset.mask[start:stop]] = -np.inf
            barred.bar(scores, start, stop)
            yield start if pool.rows is None else pool.rows[start:stop], scores

    def _multiply(self, queries: FloatArray, pool: _Pool, start: int, out: FloatArray) -> None:
        """Matrix products of several queries with the places of the pool from ``start``."""
        if pool.vectors is not None:
            self._product(pool.vectors[start : start + len(out)], queries.T, out)
            return
        assert pool.rows is not None
        memory = self._scratch("gathered", GATHERED * queries.shape[1]).reshape(GATHERED, -1)
        for done in range(0, len(out), GATHERED):
            rows = pool.rows[start + done : start + min(done + GATHERED, len(out))]
            gathered = memory[: len(rows)]
            np.take(self.vectors, rows, axis=0, out=gathered, mode="clip")
            self._product(gathered, queries.T, out[done : done + len(rows)])

    def _product(self, left: FloatArray, right: FloatArray, out: FloatArray) -> None:
        """A matrix product: numpy's is the fastest of one thread, torch's waits least for threads that are busy."""
        if self._workers is None:
            np.matmul(left, right, out=out)
            return
        import torch

        with torch.inference_mode():
            torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))

    def _products(self, query: FloatArray, pool: _Pool, start: int, out: FloatArray) -> None:
        """Inner products of one query with the places from ``start``, by all threads where there are many."""
        faiss, at, width = self._faiss, self._faiss.swig_ptr, query.shape[1]

        def compute(low: int, high: int) -> None:
            into, places = at(out[low:high]), slice(start + low, start + high)
            if pool.vectors is not None:
                faiss.fvec_inner_products_ny(into, at(query), at(pool.vectors[places]), width, high - low)
            elif pool.rows is not None:
                rows = at(pool.rows[places])
                faiss.fvec_inner_products_by_idx(into, at(query), self._all.pointer, rows, width, 1, high - low)

        if self._workers is None or len(out) < _PARALLEL:
            with self._alone():
                compute(0, len(out))
        else:
            edges = np.linspace(0, len(out), self._threads + 1).astype(int).tolist()
            list(self._workers.map(compute, edges[:-1], edges[1:]))

    def _scratch(self, name: str, size: int) -> FloatArray:
        """Memory of this thread, kept between searches: fresh pages would cost as much as filling them."""
        memory: FloatArray | None = getattr(self._local, name, None)
        if memory is None or len(memory) < size:
            memory = np.empty(size, dtype=np.float32)
            setattr(self._local, name, memory)
        return memory[:size]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let FAISS use this thread only: waking others for little work costs more than the work."""
        if self._workers is None:
            yield
            return
        usual = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(usual)

    def score(self, queries: FloatArray, owners: Rows, rows: Rows) -> FloatArray:
        """(pairs,) scores of (query, row) pairs, always summed in the same order."""
        owners, rows = np.ascontiguousarray(owners), np.ascontiguousarray(rows)
        scores = np.empty(len(rows), dtype=np.float32)
        at = self._faiss.swig_ptr
        if len(rows):
            with self._alone():
                self._faiss.pairwise_indexed_inner_product(
                    queries.shape[1], len(rows), at(queries), at(owners), self._all.pointer, at(rows), at(scores)
                )
        return scores


def open_index(vectors: Tensor, config: IndexConfig, sample: Callable[[], FloatArray]) -> Index:
    """The index for (items, width) unit vectors: on their device, and approximate where the configuration wants it.

    Args:
        sample: gives (queries, width) typical queries, to tune an approximate index with; called only for one.
    """
    if vectors.device.type != "cpu":
        from deeprec.trm.search.device import DeviceIndex

        return DeviceIndex(vectors)
    exact = ExactIndex(vectors.numpy())
    if not 0 < config.approximate_above < len(exact):
        return exact
    from deeprec.trm.search.approximate import ApproximateIndex

    return ApproximateIndex(exact, sample(), config.recall)


def margin(width: int) -> float:
    """More than two ways of summing the inner product of two float32 unit vectors can differ."""
    return 2 * width * 2.0**-24


def _aligned(vectors: FloatArray) -> FloatArray:
    """The same float32 matrix with rows in order and memory at a multiple of 64 bytes, which kernels read faster."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ctypes.data % 64 == 0:
        return vectors
    memory = np.empty(vectors.nbytes + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    aligned = memory[start : start + vectors.nbytes].view(np.float32).reshape(vectors.shape)
    aligned[:] = vectors
    return aligned
