"""Retrieval with a trained TRM: the ``Retriever`` of the loop, of evaluation and of the servers.

Scores of retrieved items. Raw scores are cosines over the temperature. For display they become
``sigmoid(0.7 · (z − 2.5))``, where z counts standard deviations above the mean of the whole catalogue's raw scores for
the same history without preference; so scores of different calls for one history compare, an item 2.5 deviations above
the mean shows 0.5, and what a good preference brings up shows more than what it pushes down. Without any known history
the reference is that of the catalogue's own phrases. Without history and preference the order is popularity, and the
score ``log(1 + count) / log(1 + largest count)``.

Items of a history that the catalogue does not have are ignored. Exclusion and filters are applied inside the search
(``trm.search``), which is exact up to ``trm.index.approximate_above`` items. Safe to call from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import TrmError
from deeprec.metrics import MISS
from deeprec.trm.artifact import TrainedTrm, read_text_config, read_trm
from deeprec.trm.encoding import Encoded, Encoder, clean
from deeprec.trm.filters import filter_mask
from deeprec.trm.kept import Kept
from deeprec.trm.search.contract import Index, Rows, Subset
from deeprec.trm.search.exact import open_index
from deeprec.trm.search.popularity import Popularity
from deeprec.types import Catalogue, Embedder, Filter, FloatArray, ItemVectors, Query, RetrievedItem

KEPT_ROWS, LONGEST_KEPT = 8192, 1000
KEPT_FILTERS = 256
SAMPLE = 256
"""Queries that an approximate index is tuned on."""
_FILTER_BYTES = 256 << 20
_CENTRE, _SLOPE = 2.5, 0.7

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Queries as the index sees them.

    ``users`` is (queries, width), ``references`` mean and deviation for display (None: popularity), ``barred`` the
    excluded rows of each, ``subsets`` what its filters keep.
    """

    users: FloatArray
    references: list[tuple[float, float] | None]
    barred: list[Rows]
    subsets: list[Subset | None]

    def some(self, places: Sequence[int]) -> tuple[FloatArray, list[Rows], list[Subset | None] | None]:
        """Users, excluded rows and subsets (None for no filter at all) of some of them."""
        subsets = [self.subsets[place] for place in places]
        unfiltered = all(subset is None for subset in subsets)
        return self.users[list(places)], [self.barred[place] for place in places], None if unfiltered else subsets


class TrmRetriever:
    """A TRM with its catalogue and text encoder, ready to be queried."""

    def __init__(self, trained: TrainedTrm, catalogue: Catalogue, embedder: Embedder) -> None:
        """Prepare item vectors and the index.

        Raises:
            TrmError: the catalogue's items or the text encoder are not those the TRM was trained with.
        """
        vocabulary = trained.vocabulary
        _check_fit(vocabulary.item_ids, vocabulary.text_identity, catalogue, embedder)
        self._vocabulary, self._catalogue = vocabulary, catalogue
        self._temperature = trained.model.config.temperature
        self._encoder = Encoder(trained, embedder)
        self._popularity = Popularity(vocabulary.popularity)
        self._known: Kept[tuple[str, ...], Rows] = Kept(KEPT_ROWS)
        kept = max(4, min(KEPT_FILTERS, _FILTER_BYTES // (9 * max(len(catalogue), 1))))
        self._subsets: Kept[tuple[Filter, ...], Subset] = Kept(kept)
        self.index: Index = open_index(self._encoder.vectors, trained.model.config.index, self._sample)
        logger.info("%s", self.index)

    @classmethod
    def load(cls, path: Path, catalogue: Catalogue | None = None, embedder: Embedder | None = None) -> Self:
        """Read a TRM artifact; without a catalogue or text encoder its own are used.

        Raises:
            ArtifactError: no readable TRM at ``path``.
            TrmError: it was trained with another catalogue or text encoder, or its encoder cannot be loaded.
        """
        from deeprec.trm.text import load_embedder

        trained = read_trm(Path(path))
        return cls(
            trained,
            trained.catalogue if catalogue is None else catalogue,
            load_embedder(read_text_config(Path(path))) if embedder is None else embedder,
        )

    @property
    def catalogue(self) -> Catalogue:
        """The items it retrieves from."""
        return self._catalogue

    @property
    def max_length(self) -> int:
        """How many of a history's newest items it reads."""
        return self._encoder.max_length

    @property
    def popularity(self) -> NDArray[np.int64]:
        """(items,) training interactions of each catalogue row."""
        return self._vocabulary.popularity

    # ------------------------------------------------------------------------------------------------------- vectors

    def item_vectors(self) -> ItemVectors:
        """Unit-length text and TRM vectors of the catalogue."""
        text = np.asarray(self._vocabulary.item_text, dtype=np.float32)
        vectors = self._encoder.vectors.cpu().numpy()
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return ItemVectors(text=text, collaborative=vectors / lengths)

    def item_embedding_table(self) -> FloatArray:
        """(items, width) float32 item vectors before normalisation, to start other models' item embeddings from."""
        table: FloatArray = (self._encoder.vectors * self._encoder.lengths).cpu().numpy()
        return table

    def encode_histories(self, histories: Sequence[Sequence[str]]) -> FloatArray:
        """(histories, width) history encodings; a zero row where no item is known."""
        encoded = self._encoder.encode([self._rows(tuple(history)) for history in histories])
        vectors = np.zeros((len(encoded), self._encoder.vectors.shape[1]), dtype=np.float32)
        for row, one in enumerate(encoded):
            if one is not None:
                vectors[row] = one.vector
        return vectors

    # ----------------------------------------------------------------------------------------------------- retrieval

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        """The best ``k`` items for each query, best first; fewer only when exclusion and filters leave fewer.

        Queries that ask for the same are searched once.

        Raises:
            TrmError: ``k`` is below 1, or a filter cannot be applied.
        """
        if k < 1:
            raise TrmError(f"k is {k}; ask for at least one item")
        keys = [
            (tuple(query.history), clean(query.preference), frozenset(query.exclude), query.filters, query.allow_seen)
            for query in queries
        ]
        distinct = dict(zip(keys, queries, strict=True))
        answers = dict(zip(distinct, self._retrieve(list(distinct.values()), k), strict=True))
        return [answers[key] for key in keys]

    def similar(self, item_ids: Sequence[str], k: int) -> list[tuple[RetrievedItem, ...]]:
        """The ``k`` items nearest to each, itself excluded, best first; the score is the cosine, 0 where it is below.

        Raises:
            TrmError: ``k`` is below 1, or an item is not in the catalogue.
        """
        if k < 1:
            raise TrmError(f"k is {k}; ask for at least one item")
        unknown = next((item_id for item_id in item_ids if item_id not in self._catalogue), None)
        if unknown is not None:
            raise TrmError(f"the catalogue has no item {unknown!r}; name an item by its id")
        rows = np.array([self._catalogue.index[item_id] for item_id in item_ids], dtype=np.int64)
        vectors = self._encoder.vectors[rows].cpu().numpy()
        found = self.index.search(vectors, min(k, len(self._catalogue)), list(rows[:, None]))
        return [
            self._items(best[best >= 0], np.clip(scores[best >= 0], 0, 1))
            for best, scores in zip(found.rows, found.scores, strict=True)
        ]

    def rank_targets(self, queries: Sequence[Query], targets: Sequence[str]) -> NDArray[np.int64]:
        """(queries,) 0-based rank of each target in the full ranking; ``MISS`` where it is unknown or excluded."""
        ranks = np.full(len(queries), MISS, dtype=np.int64)
        rows = np.array([self._catalogue.index.get(target, -1) for target in targets], dtype=np.int64)
        asked = self._ask(queries)
        personal = np.array([reference is not None for reference in asked.references], dtype=bool)
        for places, ranking in (
            (np.flatnonzero((rows >= 0) & personal), self.index.ranks),
            (np.flatnonzero((rows >= 0) & ~personal), self._popularity.ranks),
        ):
            if len(places):
                users, barred, subsets = asked.some(places.tolist())
                ranks[places] = ranking(users, rows[places], barred, subsets)
        return ranks

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        asked = self._ask(queries)
        personal = [place for place, reference in enumerate(asked.references) if reference is not None]
        users, barred, subsets = asked.some(personal)
        k = min(k, len(self._catalogue))
        found = self.index.search(users, k, barred, subsets) if personal else None
        answers: list[tuple[RetrievedItem, ...]] = [()] * len(queries)
        for number, place in enumerate(personal):
            assert found is not None
            rows = found.rows[number]
            good, reference = rows >= 0, asked.references[place]
            assert reference is not None
            answers[place] = self._items(rows[good], self._shown(found.scores[number][good], reference))
        for place, reference in enumerate(asked.references):
            if reference is None:
                rows = self._popularity.best(k, asked.barred[place], asked.subsets[place])
                answers[place] = self._items(rows, self._popularity.scores(rows))
        return answers

    def _items(self, rows: Rows, scores: FloatArray) -> tuple[RetrievedItem, ...]:
        ids = self._vocabulary.item_ids
        return tuple(map(RetrievedItem, [ids[row] for row in rows.tolist()], scores.tolist()))

    def _shown(self, scores: FloatArray, reference: tuple[float, float]) -> FloatArray:
        mean, deviation = reference
        z = (scores.astype(np.float64) / self._temperature - mean) / deviation
        return np.asarray(1 / (1 + np.exp(_SLOPE * (_CENTRE - z))), dtype=np.float32)

    # ------------------------------------------------------------------------------------------------------- queries

    def _ask(self, queries: Sequence[Query]) -> _Asked:
        """Encode the queries; each distinct history and preference once."""
        histories = [self._rows(tuple(query.history)) for query in queries]
        phrases = [clean(query.preference) for query in queries]
        encoded = self._encoder.encode(histories)
        places: dict[tuple[int, tuple[str, ...]], int] = {}
        distinct: list[Encoded | None] = []
        told: list[tuple[str, ...]] = []
        order = []
        for one, own in zip(encoded, phrases, strict=True):
            place = places.setdefault((id(one), own), len(places))
            order.append(place)
            if place == len(distinct):
                distinct.append(one)
                told.append(own)
        users = self._encoder.users(distinct, self._encoder.preferences(told))
        return _Asked(
            users=users[order],
            references=[self._reference(one, own) for one, own in zip(encoded, phrases, strict=True)],
            barred=[self._barred(query, rows) for query, rows in zip(queries, histories, strict=True)],
            subsets=[self._subset(query.filters) for query in queries],
        )

    def _reference(self, encoded: Encoded | None, phrases: tuple[str, ...]) -> tuple[float, float] | None:
        if encoded is not None:
            return encoded.reference
        return self._encoder.phrase_reference if phrases else None

    def _rows(self, history: tuple[str, ...]) -> Rows:
        """Rows of the items of a history that the catalogue has, oldest first."""
        rows = self._known.get(history)
        if rows is None:
            rows = self._find(history)
            if len(history) <= LONGEST_KEPT:
                self._known.put(history, rows)
        return rows

    def _find(self, item_ids: Sequence[str]) -> Rows:
        found = map(self._catalogue.index.get, item_ids)
        return np.array([row for row in found if row is not None], dtype=np.int64)

    def _barred(self, query: Query, history: Rows) -> Rows:
        excluded = self._find(tuple(query.exclude)) if query.exclude else None
        if query.allow_seen:
            return history[:0] if excluded is None else excluded
        return history if excluded is None else np.concatenate([history, excluded])

    def _subset(self, filters: tuple[Filter, ...]) -> Subset | None:
        if not filters:
            return None
        subset = self._subsets.get(filters)
        if subset is None:
            masks = [filter_mask(self._catalogue, condition) for condition in filters]
            subset = Subset(np.logical_and.reduce(masks))
            self._subsets.put(filters, subset)
        return subset

    def _sample(self) -> FloatArray:
        """User vectors of histories of one item, drawn by popularity, to measure an approximate index with."""
        weights = self.popularity + 1.0
        rows = np.random.default_rng(0).choice(len(weights), size=SAMPLE, p=weights / weights.sum())
        return self._encoder.users(self._encoder.encode(list(rows[:, None])), [None] * SAMPLE)


def _check_fit(item_ids: tuple[str, ...], identity: str, catalogue: Catalogue, embedder: Embedder) -> None:
    ours = tuple(item.item_id for item in catalogue.items)
    if ours != item_ids:
        differ = next((row for row, (a, b) in enumerate(zip(ours, item_ids, strict=False)) if a != b), None)
        where = (
            f"{len(ours)} items against {len(item_ids)}"
            if differ is None
            else f"row {differ} is {ours[differ]!r} against {item_ids[differ]!r}"
        )
        raise TrmError(
            f"the catalogue is not the one the TRM was trained with ({where}); use the dataset and TRM of one run"
        )
    if embedder.identity != identity:
        raise TrmError(
            f"the TRM was trained with the text encoder {identity}, but {embedder.identity} is configured; set the "
            f"text section to the former, or train the TRM again"
        )
