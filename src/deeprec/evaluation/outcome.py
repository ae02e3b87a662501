"""What one recommender scored over all users, kept small so that its trajectories need not stay in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deeprec.evaluation.behaviour import Behaviour
from deeprec.metrics import metrics_from_ranks, target_ranks
from deeprec.types import Example, Trajectory


@dataclass(frozen=True)
class Outcome:
    """``ranks`` are (users,) 0-based ranks of the targets, a miss −1; ``figures`` what the policy adds to metrics."""

    ranks: NDArray[np.int64]
    figures: dict[str, float] = field(default_factory=dict)
    behaviour: Behaviour | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the ranks, then the figures."""
        return {**metrics_from_ranks(self.ranks), **self.figures}


def ranks_of(answers: Sequence[Sequence[str | None]], examples: Sequence[Example], k: int) -> NDArray[np.int64]:
    """(users,) ranks of the targets within the first ``k`` answered items."""
    return target_ranks([answer[:k] for answer in answers], [example.target for example in examples])


def valid_answers(
    trajectories: Sequence[Trajectory], violations: Sequence[Sequence[str]]
) -> list[tuple[str | None, ...]]:
    """Answers in order, empty (a miss) where a format rule is broken; never fewer than there are trajectories."""
    return [() if broken else trajectory.answer for trajectory, broken in zip(trajectories, violations, strict=True)]
