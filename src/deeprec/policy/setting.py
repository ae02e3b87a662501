"""What every task of the policy works in: a dataset, its titles, and a TRM that answers calls.

It rolls policies out on examples and scores what comes back; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from deeprec.config import ExploreConfig, RewardsConfig, StageRewards, TextConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.explore.protocol import TitleBook
from deeprec.types import Embedder, Example, Policy, Trajectory

if TYPE_CHECKING:
    from deeprec.rewards.compose import Scorer
    from deeprec.trm.retriever import TrmRetriever

Row = TypeVar("Row")
FORMAT_ONLY = StageRewards(format=1.0)
"""Weights that score validity alone."""


@dataclass(frozen=True)
class Setting:
    """A dataset with its titles, retriever and text encoder."""

    dataset: Dataset
    titles: TitleBook
    retriever: TrmRetriever
    embedder: Embedder

    @classmethod
    def open(cls, dataset: Path, trm: Path, text: TextConfig) -> Setting:
        """Read a dataset and the TRM trained on it.

        Raises:
            ArtifactError, DataError, TrmError: one of them cannot be read, or they do not fit together.
        """
        from deeprec.trm.retriever import TrmRetriever
        from deeprec.trm.text import load_embedder

        data = read_dataset(dataset)
        embedder = load_embedder(text)
        return cls(data, TitleBook(data.catalogue), TrmRetriever.load(trm, data.catalogue, embedder), embedder)

    def scorer(self, weights: StageRewards, rewards: RewardsConfig, explore: ExploreConfig) -> Scorer:
        """The scorer of one stage's weights."""
        from deeprec.rewards.compose import Scorer

        vectors = self.retriever.item_vectors()
        return Scorer(weights, rewards, explore, self.dataset.catalogue, self.embedder, vectors)

    def roll(
        self, policy: Policy, examples: Sequence[Example], explore: ExploreConfig, temperature: float, seed: int
    ) -> list[Trajectory]:
        """One unscored rollout per example, in order."""
        from deeprec.explore.rollout import rollout

        return rollout(policy, self.retriever, self.titles, examples, explore, temperature=temperature, seed=seed)


def score(scorer: Scorer, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[Trajectory]:
    """The trajectories with their reward parts."""
    parts = scorer.score(trajectories, [example.target for example in examples])
    return [replace(trajectory, rewards=tuple(own)) for trajectory, own in zip(trajectories, parts, strict=True)]


def is_valid(trajectory: Trajectory) -> bool:
    """Whether the format part was scored and every rule holds."""
    return any(part.name == "format" and part.value == 0 for part in trajectory.rewards)


def derived_seed(seed: int, *path: int) -> int:
    """A seed for one place of a run, far from those of others."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])


def sample(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most ``most`` of the rows, drawn without replacement, in random order."""
    order = np.random.default_rng(seed).permutation(len(rows))[:most]
    return [rows[index] for index in order]
