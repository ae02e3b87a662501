"""Exact top-k over blocks of scores: what is barred, what may be among the best, and the final order.

The k best are found by two levels. The k-th largest of the blocks' maxima bounds the k-th best score from below; only
scores that reach it, less ``margin``, are looked at again. The margin covers the rounding by which two ways of summing
an inner product can differ, so that candidates scored again in one fixed way give one result however they were found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeprec.trm.search.contract import NO_ROWS, Found, Rows
from deeprec.types import FloatArray

_BLOCK = 64
_DIRECT = 1 << 18
"""Up to so many scores, looking at each again is cheaper than finding out which blocks to look at."""
_PLACE_BITS = 21
_LEAST = -np.finfo(np.float32).max


class Best:
    """Collects, block by block, every (query, row) pair that may be among the query's k best."""

    def __init__(self, queries: int, k: int, margin: float) -> None:
        self._k, self._margin = k, np.float32(margin)
        self._least = np.full(queries, _LEAST, dtype=np.float32)
        self._maxima: list[FloatArray] = []
        self._added, self._next = 0, 1
        self._pairs: list[tuple[Rows, Rows, FloatArray]] = []

    def add(self, rows: int | Rows, scores: FloatArray) -> None:
        """Look at (rows, queries) scores; ``rows`` are their rows, or the first of consecutive ones, and ascend."""
        count, queries = scores.shape
        length = min(_BLOCK, max(1, count // (8 * self._k)))
        blocks = count // length
        blocks -= blocks % 2 == 0 and blocks > 1  # a stride that is a power of two would fall on few cache lines
        split = scores[: blocks * length].reshape(length, blocks, queries)
        maxima = split.max(axis=0)
        self._raise_least(maxima)
        done = 0
        if scores.size > _DIRECT:
            block, owners = pairs(maxima >= self._least)
            inside = split[:, block, owners]
            level, hit = pairs(inside >= self._least[owners])
            self._keep(rows, level * blocks + block[hit], owners[hit], inside[level, hit])
            done = blocks * length
        if done < count:
            place, owners = pairs(scores[done:] >= self._least)
            place += done
            self._keep(rows, place, owners, scores[place, owners])

    def candidates(self) -> tuple[Rows, Rows]:
        """Queries and rows of all pairs that can still be among the k best, those of a query in row order."""
        if len(self._pairs) < 2:
            return self._pairs[0][:2] if self._pairs else (NO_ROWS, NO_ROWS)
        owners, rows, scores = (np.concatenate(column) for column in zip(*self._pairs, strict=True))
        good = scores >= self._least[owners]
        return owners[good], rows[good]

    def _raise_least(self, maxima: FloatArray) -> None:
        """Update the bounds after 1, 2, 4, 8 … blocks of scores."""
        self._maxima.append(maxima)
        self._added += 1
        if self._added < self._next:
            return
        self._next *= 2
        merged = np.concatenate(self._maxima) if len(self._maxima) > 1 else maxima
        if len(merged) >= self._k:
            last = len(merged) - self._k
            best = np.partition(np.ascontiguousarray(merged.T), last, axis=1)[:, last:]
            self._least = np.maximum(best[:, 0] - self._margin, _LEAST)
            merged = best.T
        self._maxima = [merged]

    def _keep(self, rows: int | Rows, places: Rows, owners: Rows, scores: FloatArray) -> None:
        self._pairs.append((owners, rows_at(rows, places), scores))


def pairs(mask: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """``np.nonzero`` of a matrix, several times faster."""
    places = np.flatnonzero(mask)
    first = places // mask.shape[1]
    return first, places - first * mask.shape[1]


def rows_at(rows: int | Rows, places: Rows) -> Rows:
    return places + rows if isinstance(rows, int) else rows[places]


def ordered(queries: int, k: int, owners: Rows, rows: Rows, scores: FloatArray) -> Found:
    """The k best of each query among scored pairs, equal scores in row order.

    The pairs of a query must come in row order; those of different queries may alternate.
    """
    if queries <= 1 << 10 and len(rows) <= 1 << _PLACE_BITS:
        # One integer per pair, (query, score from high to low, place): sorting these is faster than any argsort.
        bits = (scores + np.float32(0)).view(np.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        keys = (((owners << 32) - bits) << _PLACE_BITS) + np.arange(len(rows))
        keys.sort()
        order = keys & ((1 << _PLACE_BITS) - 1)
    else:
        order = np.lexsort((-scores, owners))
    rows, scores = rows[order], scores[order]
    counts = np.bincount(owners, minlength=queries)
    columns = np.arange(k)
    places = (np.cumsum(counts) - counts)[:, None] + columns
    if counts.min() >= k:
        return Found(rows[places], scores[places])
    found, good = Found.nothing(queries, k), columns < counts[:, None]
    found.rows[good], found.scores[good] = rows[places[good]], scores[places[good]]
    return found
