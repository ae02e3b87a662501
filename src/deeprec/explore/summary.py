"""What a batch of rollouts looks like as a whole: the figures of a gate, a report and ``metrics.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deeprec.types import Call, Example, Trajectory


def summarise(
    trajectories: Sequence[Trajectory],
    examples: Sequence[Example],
    rewards_valid: Sequence[bool],
    trm_top: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Shares and means over rollouts, one per example and in its order; all 0.0 for no rollouts.

    Args:
        rewards_valid: whether each rollout keeps every format rule.
        trm_top: the TRM's own top k for each example; without it ``same_as_trm`` is left out.

    Returns:
        ``valid_rate``; ``mean_calls``; ``candidate_recall``, the share of examples whose target was among the items
        any call retrieved; ``tokens_per_user``, written by the policy; ``same_as_trm``, the share of answers equal to
        ``trm_top``, order included; ``top_preference_share``, the largest share of examples that were given one same
        preference (as a set of phrases) in a call after the first.
    """
    count = max(len(trajectories), 1)
    found = [_first_turn(trajectory, example) for trajectory, example in zip(trajectories, examples, strict=True)]
    summary = {
        "valid_rate": sum(rewards_valid) / count,
        "mean_calls": sum(len(trajectory.calls) for trajectory in trajectories) / count,
        "candidate_recall": sum(turn is not None for turn in found) / count,
        "tokens_per_user": sum(sum(trajectory.loss_mask) for trajectory in trajectories) / count,
        "top_preference_share": _top_preference_share(trajectories),
    }
    if trm_top is not None:
        same = [trajectory.answer == tuple(top) for trajectory, top in zip(trajectories, trm_top, strict=True)]
        summary["same_as_trm"] = sum(same) / count
    return summary


def recall_by_turn(trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[float]:
    """Entry t: the share of examples whose target was among the items of the first t + 1 calls."""
    turns = max((len(trajectory.calls) for trajectory in trajectories), default=0)
    found = [_first_turn(trajectory, example) for trajectory, example in zip(trajectories, examples, strict=True)]
    return [sum(turn is not None and turn <= last for turn in found) / len(found) for last in range(turns)]


def preference_key(call: Call) -> frozenset[str]:
    """What makes two calls ask for the same: their phrases, in any order."""
    return frozenset(call.phrases)


def _first_turn(trajectory: Trajectory, example: Example) -> int | None:
    for turn, call in enumerate(trajectory.calls):
        if any(item.item_id == example.target for item in call.items):
            return turn
    return None


def _top_preference_share(trajectories: Sequence[Trajectory]) -> float:
    counts = Counter(
        key for trajectory in trajectories for key in {preference_key(call) for call in trajectory.calls[1:]}
    )
    return max(counts.values()) / len(trajectories) if counts else 0.0
