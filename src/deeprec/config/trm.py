"""Sections of the preference-aware TRM."""

from __future__ import annotations

import math

from pydantic import Field

from deeprec.config.section import Positive, Section, Share


class TrmGate(Section):
    """Thresholds on the validation target."""

    min_ndcg_10: Share = 0.0
    """Least NDCG@10 without preference."""
    min_ratio_to_popularity: float = 1.0
    """Least ratio of NDCG@10 to popularity's."""


class IndexConfig(Section):
    """The search over the catalogue's item vectors."""

    approximate_above: int = Field(2_000_000, ge=0)
    """Catalogues with more items than this are searched approximately; 0 searches every catalogue exactly."""
    recall: Share = 0.95
    """Recall@20 against the exact search that the approximate one is tuned to, on a sample of queries."""


class TrmConfig(Section):
    """The preference-aware TRM."""

    width: Positive = 128
    """Embedding width d."""
    layers: Positive = 2
    """Transformer layers."""
    heads: Positive = 2
    """Attention heads."""
    max_length: Positive = 200
    """History items the encoder reads (the newest)."""
    dropout: Share = 0.3
    """Dropout of embeddings and residual branches; attention weights have none."""
    epochs: Positive = 20
    """Passes over the training sequences."""
    continue_from: str = ""
    """A bundle whose TRM's weights training begins with, new items as text alone: a bundle's directory, a run's, a
    shelf (its ``live``) or ``SHELF@VERSION``. A run names the version when it begins. Empty begins afresh."""
    continue_share: float = Field(0.25, gt=0, le=1)
    """Share of ``epochs`` that a training takes which continues from another, rounded up; a schedule of its own."""
    batch_size: Positive = 64
    """Sequences per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak of the one-cycle cosine schedule."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay."""
    temperature: float = Field(0.05, ge=0.0125)
    """Softmax temperature on cosine scores; below 0.0125 its exponentials could overflow."""
    skip_seen: bool = True
    """Leave what a user has had before out of the softmax, as it is left out of recommendations; off where users come
    back to the same items. A sampled softmax does not look."""
    preference_share: Share = 0.25
    """Share of training positions that are asked a second time, with a preference; all are asked without one."""
    preference_weight: float = Field(0.5, ge=0)
    """Weight of a question with a preference in the loss; one without weighs 1."""
    false_preference: Share = 0.35
    """Share of training preferences that are those of another target, so that the TRM does not trust them blindly."""
    phrase_drop: Share = 0.5
    """Chance that one of the target's phrases is left out of a training preference."""
    phrase_noise: Share = 0.1
    """Chance that a random phrase is added to a training preference."""
    history_drop: Share = 0.05
    """Share of training preferences that stand without the history (users without one)."""
    id_drop: Share = 0.05
    """Chance that a step leaves out an item's ID embedding, so that its text learns to stand for it (new items)."""
    new_item_score: float = Field(0.95, gt=0, le=1)
    """What the cosine of an item without interactions is multiplied with: its text alone tells less of it, and it is
    not to push aside what is known. Does not change training."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    average: float = Field(0.998, ge=0, lt=1)
    """Decay per step of the moving average of the weights, which is what is measured and kept; 0: the last weights."""
    sampled_above: Positive = 50_000
    """Catalogues with more items train with a sampled softmax, and keep text vectors as float16."""
    negatives: Positive = 8192
    """Items drawn per step for the sampled softmax, half by popularity^0.75, half evenly."""
    bf16: bool = True
    """bfloat16 autocast on machines that have it."""
    index: IndexConfig = IndexConfig()
    gate: TrmGate = TrmGate()

    @property
    def continued_epochs(self) -> int:
        """The epochs of a training that continues from another."""
        return math.ceil(self.continue_share * self.epochs)
