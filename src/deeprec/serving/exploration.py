"""The loop as the recommender sees it: one exploration of the catalogue for one request, within a deadline.

``Explorer`` is the port; ``RolloutExplorer`` runs the policy over the rollout engine. The request's own conditions
(preference, exclusions, filters) are added to every call of the TRM, so they hold for whatever the policy does, and
never enter the prompt. Times are ``time.monotonic`` seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from deeprec.config import ExploreConfig
from deeprec.types import Example, Policy, Query, Retriever, Trajectory

if TYPE_CHECKING:
    from deeprec.explore.protocol import TitleBook


@dataclass(frozen=True, slots=True)
class Exploration:
    """One finished exploration: what happened, which format rules it broke, how long each turn took.

    ``milliseconds`` has one entry per turn: the policy's writing and the retrieval it asked for, or the answer.
    """

    trajectory: Trajectory
    violations: tuple[str, ...] = ()
    milliseconds: tuple[float, ...] = ()


class Explorer(Protocol):
    """Port: runs the loop for one user; called from a worker thread."""

    @property
    def answer_size(self) -> int:
        """Items in a valid answer."""
        ...

    def explore(self, user_id: str, query: Query, deadline: float) -> Exploration:
        """Explore for ``query.history`` under the query's conditions, giving up at ``deadline``."""
        ...


class RolloutExplorer:
    """The policy, greedy, over ``explore.rollout``: the same code that trained and evaluated it."""

    def __init__(self, policy: Policy, retriever: Retriever, titles: TitleBook, config: ExploreConfig) -> None:
        self._policy = policy
        self._retriever = retriever
        self._titles = titles
        self._config = config

    @property
    def answer_size(self) -> int:
        """Items in a valid answer."""
        return self._config.answer_size

    def explore(self, user_id: str, query: Query, deadline: float) -> Exploration:
        """One greedy rollout for the query's history; see ``Explorer``."""
        from deeprec.explore.rollout import rollout
        from deeprec.rewards.format import format_violations

        marks: list[float] = []
        trajectory = rollout(
            self._policy,
            self._retriever,
            self._titles,
            [Example(user_id=user_id, history=query.history, target="")],
            self._config,
            temperature=0.0,
            seed=0,
            deadline=deadline,
            on_turn=lambda turn, waiting: marks.append(time.monotonic()),
            filters=query.filters,
            exclude=query.exclude,
            preference=query.preference,
        )[0]
        marks.append(time.monotonic())
        turns = tuple(round(1000 * (after - before), 2) for before, after in pairwise(marks))
        return Exploration(trajectory, format_violations(trajectory, self._config, strict=True), turns)
