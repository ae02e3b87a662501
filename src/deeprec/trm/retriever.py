"""Exact retrieval with a trained TRM: the ``Retriever`` of the loop, of evaluation and of the servers.

Scores of retrieved items. Raw scores are cosines over the temperature. For display they become
``sigmoid(0.7 · (z − 2.5))``, where z counts standard deviations above the mean of the whole catalogue's raw scores for
the same history without preference; so scores of different calls for one history compare, an item 2.5 deviations above
the mean shows 0.5, and what a good preference brings up shows more than what it pushes down. Without any known history
the reference is that of the catalogue's own phrases. Without history and preference the order is popularity, and the
score ``log(1 + count) / log(1 + largest count)``.

Items of a history that the catalogue does not have are ignored. Encodings of histories and the adapted vectors of
phrases are kept, least recently used dropped first. Safe to call from several threads; runs without gradients, in
float32. Memory: ``CHUNK`` rows of catalogue scores at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import TrmError
from deeprec.metrics import MISS
from deeprec.trm.artifact import TrainedTrm, read_trm
from deeprec.trm.filters import filter_mask
from deeprec.types import Catalogue, Embedder, Filter, FloatArray, ItemVectors, Query, RetrievedItem

if TYPE_CHECKING:
    from torch import Tensor

Key = TypeVar("Key")
Value = TypeVar("Value")

CHUNK = 256
ENCODE_BATCH = 128
KEPT_HISTORIES = 20_000
KEPT_PHRASES = 50_000
KEPT_FILTERS = 256
_REFERENCE_PHRASES = 256
_CENTRE, _SLOPE = 2.5, 0.7


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A history's encoding (width,), and mean and deviation of the catalogue's raw scores for it alone."""

    vector: FloatArray
    mean: float
    deviation: float


class _Kept(Generic[Key, Value]):
    """A bounded mapping that drops the least recently used; safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)


class TrmRetriever:
    """A TRM with its catalogue and text encoder, ready to be queried."""

    def __init__(self, trained: TrainedTrm, catalogue: Catalogue, embedder: Embedder) -> None:
        """Prepare item vectors.

        Raises:
            TrmError: the catalogue's items or the text encoder are not those the TRM was trained with.
        """
        import torch

        vocabulary = trained.vocabulary
        _check_fit(vocabulary.item_ids, vocabulary.text_identity, catalogue, embedder)
        self._model, self._vocabulary = trained.model.eval(), vocabulary
        self._catalogue, self._embedder = catalogue, embedder
        self._device = trained.model.item_text.device
        self._temperature = trained.model.config.temperature
        self._histories: _Kept[bytes, _Encoded] = _Kept(KEPT_HISTORIES)
        self._phrases: _Kept[str, FloatArray] = _Kept(KEPT_PHRASES)
        self._filters: _Kept[Filter, NDArray[np.bool_]] = _Kept(KEPT_FILTERS)
        prime = getattr(embedder, "prime", None)
        if prime is not None:
            prime(vocabulary.phrases, vocabulary.phrase_text)
        with torch.inference_mode():
            self._table = self._model.item_table()
            self._items = torch.nn.functional.normalize(self._table, dim=-1)

    @classmethod
    def load(cls, path: Path, catalogue: Catalogue, embedder: Embedder) -> Self:
        """Read a TRM artifact.

        Raises:
            ArtifactError: no readable TRM at ``path``.
            TrmError: it was trained with another catalogue or text encoder.
        """
        return cls(read_trm(Path(path)), catalogue, embedder)

    @property
    def catalogue(self) -> Catalogue:
        """The items it retrieves from."""
        return self._catalogue

    @property
    def max_length(self) -> int:
        """How many of a history's newest items it reads."""
        return self._model.config.max_length

    @property
    def popularity(self) -> NDArray[np.int64]:
        """(items,) training interactions of each catalogue row."""
        return self._vocabulary.popularity

    # ------------------------------------------------------------------------------------------------------- vectors

    def item_vectors(self) -> ItemVectors:
        """Unit-length text and TRM vectors of the catalogue."""
        return ItemVectors(text=self._vocabulary.item_text, collaborative=self._items.cpu().numpy())

    def item_embedding_table(self) -> FloatArray:
        """(items, width) float32 item vectors before normalisation, to start other models' item embeddings from."""
        return np.array(self._table.cpu().numpy())

    def encode_histories(self, histories: Sequence[Sequence[str]]) -> FloatArray:
        """(histories, width) history encodings; a zero row where no item is known."""
        known = [self._rows(history) for history in histories]
        encoded = self._encode(known)
        empty = np.zeros(self._model.config.width, dtype=np.float32)
        return np.stack([empty if one is None else one.vector for one in encoded]) if known else empty[None][:0]

    # ----------------------------------------------------------------------------------------------------- retrieval

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        """The best ``k`` items for each query, best first; fewer only when exclusion and filters leave fewer.

        Raises:
            TrmError: ``k`` is below 1, or a filter cannot be applied.
        """
        import torch

        if k < 1:
            raise TrmError(f"k is {k}; ask for at least one item")
        found: list[tuple[RetrievedItem, ...]] = []
        for start in range(0, len(queries), CHUNK):
            part = queries[start : start + CHUNK]
            raw, references = self._score(part)
            best = torch.topk(torch.from_numpy(raw), min(k, raw.shape[1]), dim=1)
            for values, rows, reference in zip(best.values.numpy(), best.indices.numpy(), references, strict=True):
                usable = np.isfinite(values)
                shown = self._display(values[usable], rows[usable], reference)
                found.append(
                    tuple(
                        RetrievedItem(self._vocabulary.item_ids[row], float(score))
                        for row, score in zip(rows[usable], shown, strict=True)
                    )
                )
        return found

    def rank_targets(self, queries: Sequence[Query], targets: Sequence[str]) -> NDArray[np.int64]:
        """(queries,) 0-based rank of each target in the full ranking; ``MISS`` where it is unknown or excluded."""
        ranks = np.full(len(queries), MISS, dtype=np.int64)
        for start in range(0, len(queries), CHUNK):
            raw, _ = self._score(queries[start : start + CHUNK])
            for offset, scores in enumerate(raw):
                row = self._catalogue.index.get(targets[start + offset])
                if row is not None and np.isfinite(scores[row]):
                    above = int((scores > scores[row]).sum())
                    ranks[start + offset] = above + int((scores[:row] == scores[row]).sum())
        return ranks

    # ------------------------------------------------------------------------------------------------------- scoring

    def _score(self, queries: Sequence[Query]) -> tuple[FloatArray, list[tuple[float, float] | None]]:
        """(queries, items) raw scores, −inf where not allowed; and per query the reference (None: popularity)."""
        import torch

        encoded = self._encode([self._rows(query.history) for query in queries])
        preferences = self._encode_preferences([query.preference for query in queries])
        width = self._model.config.width
        sums = np.zeros((len(queries), width), dtype=np.float32)
        references: list[tuple[float, float] | None] = []
        for row, (history, preference) in enumerate(zip(encoded, preferences, strict=True)):
            if history is not None:
                sums[row] += history.vector
            if preference is not None:
                sums[row] += preference
            if history is not None:
                references.append((history.mean, history.deviation))
            else:
                references.append(None if preference is None else self._phrase_reference)
        with torch.inference_mode():
            raw = self._raw(torch.from_numpy(sums).to(self._device)).cpu().numpy()
        for row, query in enumerate(queries):
            if references[row] is None:
                raw[row] = self._popularity_order
            self._forbid(raw[row], query)
        return raw, references

    def _raw(self, sums: Tensor) -> Tensor:
        return self._model.user(sums) @ self._items.T / self._temperature

    def _forbid(self, scores: FloatArray, query: Query) -> None:
        index = self._catalogue.index
        barred = query.exclude if query.allow_seen else query.exclude | set(query.history)
        scores[[index[item] for item in barred if item in index]] = -np.inf
        for condition in query.filters:
            mask = self._filters.get(condition)
            if mask is None:
                mask = filter_mask(self._catalogue, condition)
                self._filters.put(condition, mask)
            scores[~mask] = -np.inf

    def _display(
        self, values: FloatArray, rows: NDArray[np.int64], reference: tuple[float, float] | None
    ) -> FloatArray:
        if reference is None:
            logs = np.log1p(self.popularity.astype(np.float32))
            return np.asarray(logs[rows] / max(float(logs.max()), 1.0), dtype=np.float32)
        mean, deviation = reference
        z = (values - mean) / deviation
        return np.asarray(1 / (1 + np.exp(_SLOPE * (_CENTRE - z))), dtype=np.float32)

    @cached_property
    def _popularity_order(self) -> FloatArray:
        """(items,) minus the rank by training count, ties in catalogue order."""
        order = np.argsort(-self.popularity, kind="stable")
        ranks = np.empty(len(order), dtype=np.float32)
        ranks[order] = -np.arange(len(order), dtype=np.float32)
        return ranks

    @cached_property
    def _phrase_reference(self) -> tuple[float, float]:
        """Mean over the catalogue's phrases (a spread of at most 256) of the raw scores' mean and deviation."""
        import torch

        phrases = self._vocabulary.phrases
        step = max(1, len(phrases) // _REFERENCE_PHRASES)
        vectors = self._adapt(phrases[::step][:_REFERENCE_PHRASES] or ("",))
        with torch.inference_mode():
            raw = self._raw(torch.from_numpy(vectors).to(self._device))
        return float(raw.mean()), max(float(raw.std(dim=1, correction=0).mean()), 1e-6)

    # ------------------------------------------------------------------------------------------------------ encoding

    def _rows(self, history: Sequence[str]) -> NDArray[np.int32]:
        """Rows of the newest known items that the TRM reads."""
        index = self._catalogue.index
        known = [index[item] for item in history if item in index]
        return np.array(known[-self.max_length :], dtype=np.int32)

    def _encode(self, histories: Sequence[NDArray[np.int32]]) -> list[_Encoded | None]:
        """Encodings, None for an empty history; each distinct one that is not kept is computed once."""
        keys = [rows.tobytes() for rows in histories]
        known = {key: self._histories.get(key) for key in set(keys) if key}
        missing = [rows for key, rows in dict(zip(keys, histories, strict=True)).items() if key and known[key] is None]
        missing.sort(key=len)
        for start in range(0, len(missing), ENCODE_BATCH):
            batch = missing[start : start + ENCODE_BATCH]
            for rows, encoded in zip(batch, self._encode_batch(batch), strict=True):
                known[rows.tobytes()] = encoded
                self._histories.put(rows.tobytes(), encoded)
        return [known[key] if key else None for key in keys]

    def _encode_batch(self, batch: Sequence[NDArray[np.int32]]) -> list[_Encoded]:
        import torch

        lengths = [len(rows) for rows in batch]
        padded = np.zeros((len(batch), max(lengths)), dtype=np.int64)
        for row, rows in enumerate(batch):
            padded[row, : len(rows)] = rows
        with torch.inference_mode():
            states = self._model.encode(torch.from_numpy(padded).to(self._device), self._table)
            last = states[torch.arange(len(batch)), torch.tensor(lengths) - 1]
            raw = self._raw(last)
            means, deviations = raw.mean(dim=1).tolist(), raw.std(dim=1, correction=0).tolist()
        vectors = last.cpu().numpy()
        return [
            _Encoded(np.array(vector), mean, max(deviation, 1e-6))
            for vector, mean, deviation in zip(vectors, means, deviations, strict=True)
        ]

    def _encode_preferences(self, preferences: Sequence[Sequence[str]]) -> list[FloatArray | None]:
        """Mean of the adapted phrases, None for no phrase. Case and outer white space do not count."""
        cleaned = [
            tuple(dict.fromkeys(text for phrase in phrases if (text := phrase.strip().lower())))
            for phrases in preferences
        ]
        distinct = list(dict.fromkeys(phrase for phrases in cleaned for phrase in phrases))
        vectors = dict(zip(distinct, self._adapt(distinct), strict=True))
        return [
            np.mean([vectors[phrase] for phrase in phrases], axis=0, dtype=np.float32) if phrases else None
            for phrases in cleaned
        ]

    def _adapt(self, phrases: Sequence[str]) -> FloatArray:
        """(phrases, width) adapted text vectors."""
        import torch

        found = {phrase: self._phrases.get(phrase) for phrase in phrases}
        missing = [phrase for phrase, vector in found.items() if vector is None]
        if missing:
            text = torch.from_numpy(self._embedder.embed(missing)).to(self._device)
            with torch.inference_mode():
                adapted = self._model.phrase_adaptor(text).cpu().numpy()
            for phrase, vector in zip(missing, adapted, strict=True):
                found[phrase] = vector
                self._phrases.put(phrase, vector)
        return np.array([found[phrase] for phrase in phrases], dtype=np.float32)


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
