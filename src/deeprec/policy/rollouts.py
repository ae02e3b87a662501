"""The rollout task: one policy over given users, kept for those who choose prompts by it or measure it.

What generates needs the policy's engine and its accelerator; what reads the rollouts needs neither, and when it fails,
nothing is rolled out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import numpy as np

from deeprec.config import ExploreConfig, SelectConfig, TextConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import ConfigError, PolicyError
from deeprec.explore.loading import open_policy
from deeprec.explore.rollouts import DESCRIPTION, KIND, TRAJECTORIES, Progress, Rollouts, roll_out
from deeprec.explore.trajectories import TrajectoryWriter
from deeprec.policy.setting import Setting, derived_seed, sample
from deeprec.store import write_artifact
from deeprec.types import Example, Policy, Query, Trajectory

Users = Literal["candidates", "validation", "test"]
"""Whom a policy is rolled out for: a sample of the policy's own examples, several times each with
``explore.temperature``, or every user before the item of a split, once and greedily."""

REQUESTS = 50
"""Single requests whose median time is taken."""


def candidates(dataset: Dataset, select: SelectConfig, seed: int) -> list[Example]:
    """The examples that prompts are chosen from.

    Raises:
        PolicyError: there are too few for two stages.
    """
    from deeprec.data.splits import policy_examples

    found = sample(policy_examples(dataset), select.candidates, derived_seed(seed, 10))
    if len(found) < 2:
        raise PolicyError(f"{len(found)} examples cannot be split between two stages; bring more users")
    return found


def roll_policy_out(
    users: Users,
    dataset: Path,
    trm: Path,
    policy: Path,
    select: SelectConfig,
    explore: ExploreConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    timed: bool = False,
    progress: Progress = print,
) -> dict[str, float]:
    """Write the rollouts of a policy's artifact to ``out``, an artifact of kind ``rollouts``.

    Args:
        timed: time single requests as well, of the policy and of the TRM, on this machine.

    Returns:
        ``rollouts``, ``mean_calls`` and ``answered``, the share that ended in an answer.

    Raises:
        ArtifactError, DataError, TrmError, PolicyError: a part cannot be read or does not belong to the others.
        ConfigError: there are no such users.
        StoreError: the rollouts cannot be written.
    """
    if users not in get_args(Users):
        raise ConfigError(f"there are no users {users!r} to roll out for; name one of {', '.join(get_args(Users))}")
    config = {"users": users, "select": select.model_dump(mode="json"), "explore": explore.model_dump(mode="json")}
    repeats, temperature = (select.rollouts, explore.temperature) if users == "candidates" else (1, 0.0)
    setting = Setting.open(dataset, trm, text)
    examples = _examples(users, setting.dataset, select, seed)
    with write_artifact(out, KIND, config=config, parents=[dataset, trm, policy], seed=seed) as work:
        with closing(open_policy(policy, explore.engine)) as actor:
            rolled = roll_out(
                actor, setting.retriever, setting.titles, examples, explore, repeats=repeats, temperature=temperature,
                seeds=lambda batch: derived_seed(seed, 11, batch), progress=lambda line: progress(f"rolled out {line}"),
            )  # fmt: skip
            figures = _keep(work, rolled)
            milliseconds = _milliseconds(setting, actor, examples, explore) if timed else {}
        kept = Rollouts(users, repeats, temperature, milliseconds)
        (work / DESCRIPTION).write_text(kept.to_json(), encoding="utf-8")
    return figures


def _examples(users: Users, dataset: Dataset, select: SelectConfig, seed: int) -> list[Example]:
    from deeprec.data.splits import test_examples, validation_examples

    if users == "candidates":
        return candidates(dataset, select, seed)
    return validation_examples(dataset) if users == "validation" else test_examples(dataset)


def _keep(work: Path, batches: Iterable[Sequence[Trajectory]]) -> dict[str, float]:
    """Write rollouts as they come; their number and means."""
    counts = np.zeros(3)
    with TrajectoryWriter(work / TRAJECTORIES) as writer:
        for trajectories in batches:
            writer.write(trajectories)
            counts += np.sum([(1, len(one.calls), bool(one.answer)) for one in trajectories], axis=0)
    rollouts, calls, answered = counts.tolist()
    return {"rollouts": rollouts, "mean_calls": calls / max(rollouts, 1), "answered": answered / max(rollouts, 1)}


def _milliseconds(
    setting: Setting, policy: Policy, examples: Sequence[Example], explore: ExploreConfig
) -> dict[str, float]:
    """Median milliseconds in which policy and TRM answer one user, without a deadline or a server around them."""
    step = max(1, len(examples) // REQUESTS)
    asked = examples[::step][:REQUESTS]

    def taken(answer: Callable[[Example], object]) -> float:
        found = []
        for example in asked:
            started = time.perf_counter()
            answer(example)
            found.append(1000 * (time.perf_counter() - started))
        return median(found)

    return {
        "policy": taken(lambda example: setting.roll(policy, [example], explore, 0.0, 0)),
        "trm": taken(lambda example: setting.retriever.retrieve([Query(example.history)], explore.answer_size)),
    }
