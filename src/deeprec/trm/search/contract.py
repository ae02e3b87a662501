"""What a search over item vectors is asked and what it answers, whichever index does it.

Rows are rows of the catalogue. A query is a unit-length vector with rows excluded and a subset allowed; item vectors
are of that length at most. Queries of one call are grouped by their subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec.types import FloatArray

Rows = NDArray[np.int64]

NO_ROWS: Rows = np.empty(0, dtype=np.int64)
QUERIES = 1024
"""Most queries searched together."""


class Found(NamedTuple):
    """Results of a search, best first: (queries, k) rows, −1 where there are fewer, and scores, −∞ there."""

    rows: Rows
    scores: FloatArray

    @classmethod
    def nothing(cls, queries: int, k: int) -> Found:
        """No result yet."""
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class Subset:
    """The items that a query's filters keep; ``mask`` is (items,). Queries that share the object are searched together.

    Indexes keep what they derive from a subset for as long as they can, so make one per combination of filters.
    """

    mask: NDArray[np.bool_]

    @cached_property
    def rows(self) -> Rows:
        """Rows kept, ascending."""
        return np.flatnonzero(self.mask)


class Index(Protocol):
    """What can be searched: exactly on a CPU or a GPU, or approximately."""

    def search(
        self,
        queries: FloatArray,
        k: int,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Found:
        """The k best rows for each of (queries, width), with the rows excluded and the subset allowed for each."""
        ...

    def ranks(
        self,
        queries: FloatArray,
        targets: Rows,
        excluded: Sequence[Rows] | None = None,
        allowed: Sequence[Subset | None] | None = None,
    ) -> Rows:
        """(queries,) 0-based rank of each target row among all that is allowed; ``MISS`` where it is not itself."""
        ...


class Part(NamedTuple):
    """Queries of one call that share a subset: their positions in the call."""

    subset: Subset | None
    places: Rows


def parts(count: int, allowed: Sequence[Subset | None] | None) -> list[Part]:
    """Group the queries of a call by their subset, at most ``QUERIES`` together."""
    if allowed is None:
        return [Part(None, np.arange(start, min(start + QUERIES, count))) for start in range(0, count, QUERIES)]
    groups: dict[int, tuple[Subset | None, list[int]]] = {}
    for place, subset in enumerate(allowed):
        groups.setdefault(id(subset), (subset, []))[1].append(place)
    return [
        Part(subset, np.array(places[start : start + QUERIES]))
        for subset, places in groups.values()
        for start in range(0, len(places), QUERIES)
    ]


@dataclass(frozen=True, slots=True)
class Barred:
    """Excluded (row, query) pairs of a part."""

    rows: Rows
    owners: Rows

    @classmethod
    def of(cls, excluded: Sequence[Rows] | None, places: Rows) -> Barred:
        if excluded is None:
            return cls(NO_ROWS, NO_ROWS)
        lists = [excluded[place] for place in places]
        return cls(np.concatenate(lists), np.repeat(np.arange(len(lists)), [len(one) for one in lists]))

    def distinct(self) -> Barred:
        """Each pair once."""
        if not len(self.rows):
            return self
        size = int(self.rows.max()) + 1
        keys = np.sort(self.owners * size + self.rows)
        keys = keys[np.append(True, keys[1:] != keys[:-1])]
        return Barred(keys % size, keys // size)

    def spares(self, targets: Rows, subset: Subset | None) -> NDArray[np.bool_]:
        """(queries,) whether each query's target can be ranked: in the subset, and not among its excluded rows."""
        found = np.ones(len(targets), dtype=bool) if subset is None else subset.mask[targets]
        found[self.owners[self.rows == targets[self.owners]]] = False
        return found

    def among(self, kept: Rows | None) -> Barred:
        """The same as places in ``kept`` (None: rows are places), in order of place."""
        if not len(self.rows):
            return self
        rows, owners = self.rows, self.owners
        if kept is not None:
            rows, found = places_of(kept, rows)
            owners = owners[found]
        order = np.argsort(rows)
        return Barred(rows[order], owners[order])

    def bar(self, scores: FloatArray, start: int, stop: int) -> None:
        """Set the scores (places from start to stop, queries) of excluded pairs to −∞."""
        if len(self.rows):
            low, high = np.searchsorted(self.rows, (start, stop))
            scores[self.rows[low:high] - start, self.owners[low:high]] = -np.inf


def places_of(kept: Rows, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Places in ascending ``kept`` of those of ``rows`` that it holds, and which they are."""
    places = np.searchsorted(kept, rows)
    found = places < len(kept)
    found[found] = kept[places[found]] == rows[found]
    return places[found], found
