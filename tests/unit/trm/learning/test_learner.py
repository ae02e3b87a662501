"""One step of training: what learns from what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deeprec.config import TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.trm.artifact import build_vocabulary
from deeprec.trm.learning import loss
from deeprec.trm.learning.batches import phrase_table
from deeprec.trm.learning.learner import Learner
from deeprec.trm.model import Trm
from deeprec.trm.text import HashingEmbedder


def make_learner(world: Dataset, trm: TrmConfig, embedder: HashingEmbedder, untouched: int | None = None) -> Learner:
    index = world.catalogue.index
    rows = [np.array([index[item] for item in items if index[item] != untouched]) for items in world.sequences.values()]
    counts = np.bincount(np.concatenate(rows), minlength=len(index))
    vocabulary = build_vocabulary(world.catalogue, embedder, counts)
    torch.manual_seed(0)
    model = Trm(trm, torch.from_numpy(vocabulary.item_text))
    phrases = phrase_table(world.catalogue, vocabulary.phrases)
    return Learner(model, vocabulary, phrases, list(world.sequences), rows, 0, False)


def test_the_encoder_does_not_learn_from_questions_with_a_preference(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_told(users: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return (users[len(users) // 2 :] ** 3).sum()

    learner = make_learner(world, trm_config, embedder)
    monkeypatch.setattr(loss, "catalogue_loss", of_the_told)
    monkeypatch.setattr(learner.optimiser, "step", lambda *arguments: None)
    learner.epoch(1)
    moved = {name for name, value in learner.model.named_parameters() if value.grad is not None and value.grad.any()}
    assert any(name.startswith("phrase_adaptor") for name in moved)
    assert not any(name.startswith(("layers", "positions", "norm_history", "item")) for name in moved)


def test_an_item_that_nobody_touched_keeps_an_id_embedding_of_zero(
    world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder
) -> None:
    learner = make_learner(world, trm_config, embedder, untouched=7)
    learner.epoch(1)
    rows = learner.model.item_ids.weight.detach().abs().sum(1)
    assert rows[7] == 0
    assert (rows > 0).sum() == len(rows) - 1
