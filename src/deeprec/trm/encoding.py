"""Histories and preferences to user vectors, with what scores are shown against.

Encodings of histories and adapted vectors of phrases are kept, least recently used dropped first, so a history that
comes again is not encoded again. Runs without gradients, in float32, on the model's device; what it returns is on the
host. Item vectors are held once, normalised, with their lengths: rows of the table a history is read from are made
when they are needed. Safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeprec.trm.kept import Kept
from deeprec.trm.search.contract import Rows
from deeprec.types import Embedder, FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from deeprec.trm.artifact import TrainedTrm

ENCODE_BATCH = 128
KEPT_HISTORIES = 20_000
KEPT_PHRASES = 50_000
_REFERENCE_PHRASES = 256
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Encoded:
    """A history's encoding (width,), and mean and deviation of the catalogue's raw scores for it alone."""

    vector: FloatArray
    reference: tuple[float, float]


class Encoder:
    """What turns the parts of a query into vectors.

    Attributes:
        vectors: (items, width) item vectors, on the model's device: of unit length, and of ``trm.new_item_score`` where
            an item has no interactions.
        lengths: (items, 1) what they were divided by.
    """

    def __init__(self, trained: TrainedTrm, embedder: Embedder) -> None:
        import torch

        self._model, self._phrases = trained.model.eval(), trained.vocabulary.phrases
        self._embedder = embedder
        self._device = trained.model.item_text.device
        self._temperature = trained.model.config.temperature
        self._histories: Kept[bytes, Encoded] = Kept(KEPT_HISTORIES)
        self._adapted: Kept[str, FloatArray] = Kept(KEPT_PHRASES)
        prime = getattr(embedder, "prime", None)
        if prime is not None:
            prime(trained.vocabulary.phrases, trained.vocabulary.phrase_text)
        with torch.inference_mode():
            self.vectors = self._model.item_table()
            self.lengths = self.vectors.norm(dim=1, keepdim=True).clamp_min_(1e-12)
            self.lengths[trained.vocabulary.popularity == 0] /= trained.model.config.new_item_score
            self.vectors /= self.lengths
            self._mean, self._spread = self._moments()

    @property
    def max_length(self) -> int:
        """How many of a history's newest items are read."""
        return self._model.config.max_length

    def encode(self, histories: Sequence[Rows]) -> list[Encoded | None]:
        """Encodings of histories as item rows, oldest first; None for an empty one.

        Each distinct one that is not kept is computed once.
        """
        newest = [rows[-self.max_length :] for rows in histories]
        keys = [rows.tobytes() for rows in newest]
        known = {key: self._histories.get(key) for key in set(keys) if key}
        missing = [rows for key, rows in dict(zip(keys, newest, strict=True)).items() if key and known[key] is None]
        missing.sort(key=len)
        for start in range(0, len(missing), ENCODE_BATCH):
            batch = missing[start : start + ENCODE_BATCH]
            for rows, encoded in zip(batch, self._encode_batch(batch), strict=True):
                known[rows.tobytes()] = encoded
                self._histories.put(rows.tobytes(), encoded)
        return [known[key] if key else None for key in keys]

    def preferences(self, preferences: Sequence[tuple[str, ...]]) -> list[FloatArray | None]:
        """Mean of the adapted phrases of each, None for no phrase; see ``clean``."""
        distinct = list(dict.fromkeys(phrase for phrases in preferences for phrase in phrases))
        vectors = dict(zip(distinct, self._adapt(distinct), strict=True))
        return [
            np.mean([vectors[phrase] for phrase in phrases], axis=0, dtype=np.float32) if phrases else None
            for phrases in preferences
        ]

    def users(self, histories: Sequence[Encoded | None], preferences: Sequence[FloatArray | None]) -> FloatArray:
        """(queries, width) unit-length user vectors."""
        import torch

        sums = np.zeros((len(histories), self._model.config.width), dtype=np.float32)
        for row, (history, preference) in enumerate(zip(histories, preferences, strict=True)):
            if history is not None:
                sums[row] += history.vector
            if preference is not None:
                sums[row] += preference
        with torch.inference_mode():
            users = self._model.user(torch.from_numpy(sums).to(self._device)).cpu().numpy()
        return np.ascontiguousarray(users)

    @cached_property
    def phrase_reference(self) -> tuple[float, float]:
        """Mean over the catalogue's phrases (a spread of at most 256) of the raw scores' mean and deviation."""
        step = max(1, len(self._phrases) // _REFERENCE_PHRASES)
        vectors = self._adapt(self._phrases[::step][:_REFERENCE_PHRASES] or ("",))
        means, deviations = self._references(self.users([None] * len(vectors), list(vectors)))
        return float(means.mean()), float(deviations.mean())

    def _references(self, users: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and deviations of all items' raw scores for (n, width) users: uᵀm / τ and √(uᵀCu) / τ.

        m and C are mean and covariance of the item vectors, τ the temperature; no item is scored.
        """
        wide = users.astype(np.float64)
        spread = np.sqrt(np.maximum(((wide @ self._spread) * wide).sum(axis=1), 0.0))
        return wide @ self._mean / self._temperature, np.maximum(spread / self._temperature, 1e-6)

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(width,) mean and (width, width) covariance of the item vectors."""
        import torch

        count, width = self.vectors.shape
        mean = torch.zeros(width, dtype=torch.float64, device=self._device)
        for start in range(0, count, _CHUNK):
            mean += self.vectors[start : start + _CHUNK].double().sum(dim=0) / count
        spread = torch.zeros(width, width, dtype=torch.float64, device=self._device)
        for start in range(0, count, _CHUNK):
            part = self.vectors[start : start + _CHUNK] - mean.float()
            spread += (part.T @ part).double() / count
        return mean.cpu().numpy(), spread.cpu().numpy()

    def _encode_batch(self, batch: Sequence[Rows]) -> list[Encoded]:
        import torch

        from deeprec.trm.newest import encode_newest

        distinct, places = np.unique(np.concatenate(batch), return_inverse=True)
        rows, lengths = torch.from_numpy(places), torch.tensor([len(rows) for rows in batch])
        with torch.inference_mode():
            table = self._table(torch.from_numpy(distinct).to(self._device))
            newest = encode_newest(self._model, rows.to(self._device), lengths.to(self._device), table).cpu().numpy()
        vectors = [np.array(vector) for vector in newest]
        alone: list[Encoded | None] = [Encoded(vector, (0.0, 1.0)) for vector in vectors]
        means, deviations = self._references(self.users(alone, [None] * len(batch)))
        references = zip(means.tolist(), deviations.tolist(), strict=True)
        return [Encoded(vector, reference) for vector, reference in zip(vectors, references, strict=True)]

    def _table(self, rows: Tensor) -> Tensor:
        """(n, width) item vectors of some rows as they were before normalisation."""
        table: Tensor = self.vectors[rows] * self.lengths[rows]
        return table

    def _adapt(self, phrases: Sequence[str]) -> FloatArray:
        """(phrases, width) adapted text vectors."""
        import torch

        found = {phrase: self._adapted.get(phrase) for phrase in phrases}
        missing = [phrase for phrase, vector in found.items() if vector is None]
        if missing:
            text = torch.from_numpy(self._embedder.embed(missing)).to(self._device)
            with torch.inference_mode():
                adapted = self._model.phrase_adaptor(text).cpu().numpy()
            for phrase, vector in zip(missing, adapted, strict=True):
                found[phrase] = vector
                self._adapted.put(phrase, vector)
        return np.array([found[phrase] for phrase in phrases], dtype=np.float32)


def clean(preference: Sequence[str]) -> tuple[str, ...]:
    """Distinct phrases in lower case without outer white space, in order; empty ones are left out."""
    return tuple(dict.fromkeys(text for phrase in preference if (text := phrase.strip().lower())))
