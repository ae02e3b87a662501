"""Choosing each stage's prompts by difficulty (method, section 4).

The start model is rolled out several times on a sample of the policy's examples. A prompt suits stage 1 when the
format holds in some of its rollouts but not in all; it suits stage 2 when some but not all answer the target or, with
``policy.select.stage2: found``, when at least half of those that call retrieve it. The stages' prompts are disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, StageConfig
from deeprec.data.dataset import read_dataset
from deeprec.errors import PolicyError
from deeprec.explore.rollouts import open_rollouts, rollouts_of
from deeprec.policy.rollouts import candidates
from deeprec.store import read_artifact, write_artifact
from deeprec.types import Example, Trajectory

KIND = "prompts"
MAX_PASSES = 4
"""A stage that would show its prompts more often than this is filled up with prompts that do not qualify."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How the start model fares on one example: shares of its rollouts.

    ``valid``: the format holds. ``answered``: the target is in the answer. ``found``: a call retrieved the target, of
    those rollouts that call at all: the others say nothing of what a list for this user holds.
    """

    example: Example
    valid: float
    answered: float
    found: float


def select_prompts(
    dataset: Path,
    rollouts: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    seed: int,
    out: Path,
    *,
    progress: Callable[[str], None] = print,
) -> dict[str, float]:
    """Write ``stage1.parquet`` and ``stage2.parquet`` (user_id, history_length, successes).

    Args:
        rollouts: of the start, for the candidates among the policy's examples; see ``rollouts.roll_policy_out``.

    Raises:
        ArtifactError: the rollouts cannot be read, or are of other examples.
        PolicyError: there is no example to choose from.
    """
    chosen_from = candidates(read_dataset(dataset), policy.select, seed)
    config = {name: part.model_dump(mode="json") for name, part in (("policy", policy), ("explore", explore))}
    with write_artifact(out, KIND, config=config, parents=[dataset, rollouts], seed=seed) as work:
        repeats = open_rollouts(rollouts, [dataset]).repeats
        measured = [
            _difficulty(example, own, explore, strict=rewards.strict_format)
            for example, own in rollouts_of(rollouts, repeats, chosen_from)
        ]
        first, second = split_stages(measured, policy.stage1, policy.stage2, policy.select.stage2)
        _write(work / "stage1.parquet", first, [one.valid for one in first])
        _write(work / "stage2.parquet", second, [one.answered for one in second])
    metrics = {
        "candidates": float(len(measured)),
        "valid_rate": float(np.mean([one.valid for one in measured])),
        "target_answered": float(np.mean([one.answered for one in measured])),
        "candidate_recall": float(np.mean([one.found for one in measured])),
        "stage1_qualified": float(sum(_mixed(one.valid) for one in measured)),
        "stage2_qualified": float(sum(_suits_second(one, policy.select.stage2) for one in measured)),
        "stage1_prompts": float(len(first)),
        "stage2_prompts": float(len(second)),
    }
    progress(
        f"of {len(measured)} examples {metrics['stage1_qualified']:.0f} qualify for stage 1 and "
        f"{metrics['stage2_qualified']:.0f} for stage 2; chosen: {len(first)} and {len(second)}"
    )
    return metrics


def read_prompts(prompts: Path, stage: str, examples: Sequence[Example]) -> list[Example]:
    """The examples of one stage, in the order they were chosen.

    Raises:
        PolicyError: a prompt is not among ``examples``.
    """
    import polars as pl

    read_artifact(prompts, KIND)
    known = {example.key: example for example in examples}
    chosen = []
    for user, length in pl.read_parquet(prompts / f"{stage}.parquet").select("user_id", "history_length").iter_rows():
        example = known.get(f"{user}@{length}")
        if example is None:
            raise PolicyError(
                f"the prompt of user {user!r} with {length} history items is not among the dataset's policy examples; "
                f"use the dataset and prompts of one run"
            )
        chosen.append(example)
    return chosen


def split_stages(
    measured: Sequence[Difficulty],
    stage1: StageConfig,
    stage2: StageConfig,
    suits: Literal["answered", "found"] = "answered",
) -> tuple[list[Difficulty], list[Difficulty]]:
    """Disjoint prompts for both stages: those that qualify first, then the nearest in difficulty where too few do.

    Each stage gets at most what it can show (steps × prompts per step) and, where both want more than there is, its
    proportional part; a stage of no steps gets none. Prompts that do not qualify come in only up to ``MAX_PASSES``
    passes over a stage's prompts.
    """
    wanted = [stage.steps * stage.prompts_per_step for stage in (stage1, stage2)]
    scale = min(1.0, len(measured) / max(sum(wanted), 1))
    limits = [max(1, math.floor(want * scale)) if want else 0 for want in wanted]
    floors = [
        min(limit, max(stage.prompts_per_step, math.ceil(want / MAX_PASSES)))
        for stage, want, limit in zip((stage1, stage2), wanted, limits, strict=True)
    ]
    by_difficulty = sorted(measured, key=lambda one: (abs(one.answered - 0.5), -one.found))
    for_second = sorted(measured if suits == "found" else by_difficulty, key=lambda one: not _suits_second(one, suits))
    for_first = sorted(measured, key=lambda one: (not _mixed(one.valid), abs(one.valid - 0.5), _mixed(one.answered)))
    taken: set[str] = set()
    second = _take(for_second, limits[1], taken, lambda one: _suits_second(one, suits))
    first = _take(for_first, limits[0], taken, lambda one: _mixed(one.valid))
    second += _take(for_second, floors[1] - len(second), taken, lambda one: True)
    first += _take(for_first, floors[0] - len(first), taken, lambda one: True)
    return first, second


def _take(
    ordered: Sequence[Difficulty], most: int, taken: set[str], suits: Callable[[Difficulty], bool]
) -> list[Difficulty]:
    chosen = [one for one in ordered if one.example.key not in taken and suits(one)][: max(most, 0)]
    taken.update(one.example.key for one in chosen)
    return chosen


def _suits_second(one: Difficulty, suits: Literal["answered", "found"]) -> bool:
    return one.found >= 0.5 if suits == "found" else _mixed(one.answered)


def _mixed(share: float) -> bool:
    return 0 < share < 1


def _difficulty(
    example: Example, trajectories: Sequence[Trajectory], explore: ExploreConfig, strict: bool
) -> Difficulty:
    from deeprec.rewards.format import format_violations

    target = example.target
    found = [any(item.item_id == target for call in t.calls for item in call.items) for t in trajectories if t.calls]
    return Difficulty(
        example,
        valid=float(np.mean([not format_violations(one, explore, strict=strict) for one in trajectories])),
        answered=float(np.mean([target in trajectory.answer for trajectory in trajectories])),
        found=float(np.mean(found)) if found else 0.0,
    )


def _write(path: Path, chosen: Sequence[Difficulty], successes: Sequence[float]) -> None:
    import polars as pl

    pl.DataFrame(
        {
            "user_id": [one.example.user_id for one in chosen],
            "history_length": [len(one.example.history) for one in chosen],
            "successes": list(successes),
        },
        schema={"user_id": pl.String, "history_length": pl.Int64, "successes": pl.Float64},
    ).write_parquet(path)
