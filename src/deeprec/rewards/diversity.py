"""Diversity: the preferences of a rollout should differ in meaning (method, section 3).

A preference's embedding is the unit-length mean of its phrases' embeddings, as the TRM reads it; a broad call is the
word ``anything``. All phrases of a batch are embedded in one call, each once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deeprec.types import ANYTHING, Embedder, FloatArray, Trajectory


def diversity_values(trajectories: Sequence[Trajectory], embedder: Embedder) -> list[float]:
    """0 for n ≤ 1 calls, else 0.2 · (1 − mean cosine over all pairs of preferences)."""
    preferences = [[call.phrases or (ANYTHING,) for call in trajectory.calls] for trajectory in trajectories]
    several = [phrases for made in preferences if len(made) > 1 for phrases in made]
    if not several:
        return [0.0] * len(trajectories)
    texts = sorted({phrase for phrases in several for phrase in phrases})
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return [0.2 * (1 - mean_pairwise_cosine(_embed(made, vectors))) if len(made) > 1 else 0.0 for made in preferences]


def mean_pairwise_cosine(vectors: FloatArray) -> float:
    """Mean cosine over the pairs i < j of unit-length rows (n ≥ 2, width)."""
    count = len(vectors)
    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return float((similarity.sum() - np.trace(similarity)) / (count * (count - 1)))


def _embed(preferences: Sequence[tuple[str, ...]], vectors: dict[str, FloatArray]) -> FloatArray:
    means = np.stack([np.mean([vectors[phrase] for phrase in phrases], axis=0) for phrases in preferences])
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), dtype=np.float32)
