"""How a recommender explored, counted over its trajectories: calls, ends, broken rules, preferences, recall by turn.

These are the figures behind the report's plots; the numbers of ``metrics.json`` come from ``explore.summary``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deeprec.explore.summary import preference_key, recall_by_turn
from deeprec.types import ANYTHING, Example, Trajectory

TOP_PREFERENCES = 15


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Counts over one recommender's trajectories.

    ``calls`` maps a number of calls to rollouts; ``ends`` an end reason and ``violations`` a broken format rule to
    rollouts; ``preferences`` holds the most frequent preferences of calls after the first with their users;
    ``recall_by_turn`` is the share of users whose target had been retrieved after 1, 2, … calls.
    """

    users: int
    valid_rate: float
    calls: dict[int, int]
    ends: dict[str, int]
    violations: dict[str, int]
    preferences: tuple[tuple[str, int], ...]
    recall_by_turn: tuple[float, ...]


def behaviour(
    trajectories: Sequence[Trajectory], examples: Sequence[Example], violations: Sequence[Sequence[str]]
) -> Behaviour:
    """Count over trajectories, one per example and in the same order; ``violations`` are each one's broken rules."""
    preferences: Counter[str] = Counter()
    for trajectory in trajectories:
        preferences.update({_written(preference_key(call)) for call in trajectory.calls[1:]})
    users = len(trajectories)
    return Behaviour(
        users=users,
        valid_rate=sum(not broken for broken in violations) / users if users else 0.0,
        calls=dict(sorted(Counter(len(trajectory.calls) for trajectory in trajectories).items())),
        ends=dict(Counter(str(trajectory.end) for trajectory in trajectories).most_common()),
        violations=dict(Counter(name for broken in violations for name in set(broken)).most_common()),
        preferences=tuple(sorted(preferences.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_PREFERENCES]),
        recall_by_turn=tuple(recall_by_turn(trajectories, examples)),
    )


def _written(key: frozenset[str]) -> str:
    return "; ".join(sorted(key)) or ANYTHING
