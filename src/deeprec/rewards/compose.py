"""The hierarchical reward of a stage: which parts are scored, and with which weight (method, section 3).

A part of weight 0 is not scored and does not appear, except the format, from which validity is read. An outcome part of
a rollout that breaks the format is unscored: its value is None, and it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from deeprec.config import ExploreConfig, RewardsConfig, StageRewards
from deeprec.rewards.diversity import diversity_values
from deeprec.rewards.format import format_value, format_violations
from deeprec.rewards.interaction import interaction_value
from deeprec.rewards.listwise import listwise_value
from deeprec.rewards.pointwise import pointwise_value
from deeprec.types import Catalogue, Embedder, ItemVectors, RewardPart, Trajectory

PARTS = ("format", "interaction", "diversity", "listwise", "pointwise")
"""Names of the parts, in the order they are scored and logged."""


class Scorer:
    """Scores whole batches for one stage; the embedder sees each batch once."""

    def __init__(
        self,
        stage_weights: StageRewards,
        rewards: RewardsConfig,
        explore: ExploreConfig,
        catalogue: Catalogue,
        embedder: Embedder,
        item_vectors: ItemVectors,
    ) -> None:
        self._weights = {name: float(getattr(stage_weights, name)) for name in PARTS}
        self._strict = rewards.strict_format
        self._explore = explore
        self._catalogue = catalogue
        self._embedder = embedder
        self._vectors = item_vectors

    def violations(self, trajectory: Trajectory) -> tuple[str, ...]:
        """Names of the format rules the rollout breaks, strict ones as configured."""
        return format_violations(trajectory, self._explore, strict=self._strict)

    def score(self, trajectories: Sequence[Trajectory], targets: Sequence[str]) -> list[tuple[RewardPart, ...]]:
        """The parts of every rollout, in the order given; ``targets`` holds the item id that came next for each."""
        broken = [self.violations(trajectory) for trajectory in trajectories]
        pairs = list(zip(trajectories, targets, strict=True))
        columns: dict[str, list[float | None]] = {"format": [format_value(violations) for violations in broken]}
        if self._weights["interaction"]:
            columns["interaction"] = [interaction_value(len(trajectory.calls)) for trajectory in trajectories]
        if self._weights["diversity"]:
            columns["diversity"] = list(diversity_values(trajectories, self._embedder))
        if self._weights["listwise"]:
            columns["listwise"] = [
                None if violations else listwise_value(trajectory.answer, target, self._explore.answer_size)
                for (trajectory, target), violations in zip(pairs, broken, strict=True)
            ]
        if self._weights["pointwise"]:
            columns["pointwise"] = [
                None if violations else pointwise_value(trajectory.answer, target, self._catalogue, self._vectors)
                for (trajectory, target), violations in zip(pairs, broken, strict=True)
            ]
        return [
            tuple(RewardPart(name, values[row], self._weights[name]) for name, values in columns.items())
            for row in range(len(trajectories))
        ]
