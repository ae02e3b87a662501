"""What a recommender costs: minutes of making it, as its artifacts' manifests say, and milliseconds a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from deeprec.evaluation.setting import Setting
from deeprec.store import read_artifact
from deeprec.types import Example, Policy, Query

REQUESTS = 50
"""Single requests whose median time is taken."""


def minutes(artifacts: Sequence[Path]) -> float:
    """Minutes that the processes took which wrote these artifacts, their starts included."""
    return sum(read_artifact(path, verify=False).seconds for path in artifacts) / 60


def trm_milliseconds(setting: Setting) -> float:
    """Median milliseconds in which the TRM answers one user, without a server around it."""
    k = setting.explore.answer_size
    return _median(setting, lambda example: setting.retriever.retrieve([Query(example.history)], k))


def policy_milliseconds(setting: Setting, policy: Policy) -> float:
    """Median milliseconds in which the policy explores for and answers one user, with no deadline and no server."""
    from deeprec.explore.rollout import rollout

    return _median(
        setting,
        lambda example: rollout(
            policy, setting.retriever, setting.titles, [example], setting.explore, temperature=0.0, seed=setting.seed
        ),
    )


def _median(setting: Setting, answer: Callable[[Example], object]) -> float:
    step = max(1, len(setting.examples) // REQUESTS)
    taken = []
    for example in setting.examples[::step][:REQUESTS]:
        started = time.perf_counter()
        answer(example)
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken)
