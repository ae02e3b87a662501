"""One policy measured on its own beside the TRM alone and popularity: the same users, histories and exclusions for all.

Nothing is published and no gate is judged; what a choice may depend on is the validation target, the default. The
pipeline's evaluation, which reads the test target once for every policy of a run, is ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deeprec.config import ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import popularity, test_examples, validation_examples
from deeprec.errors import ConfigError
from deeprec.evaluation.baselines import popularity_answers
from deeprec.evaluation.browser import trajectory_page
from deeprec.evaluation.charts import number
from deeprec.evaluation.outcome import Outcome, ranks_of
from deeprec.evaluation.reading import ReadTrajectory
from deeprec.evaluation.setting import measure, open_setting, rolled_out, scored, stories, violations_of
from deeprec.explore.loading import open_policy
from deeprec.explore.rollouts import Progress
from deeprec.types import JsonDict

Split = Literal["validation", "test"]
NAMES = {"popularity": "popularity", "trm": "TRM alone", "policy": "policy"}
FIGURES = ("ndcg@10", "recall@10", "mrr", "valid_rate", "mean_calls", "candidate_recall", "same_as_trm")


@dataclass(frozen=True)
class PolicyEvaluation:
    """Figures of ``popularity``, ``trm`` and ``policy`` on ``users`` users, and some of the policy's rollouts.

    ``ends`` are rollouts by end reason, ``violations`` by broken format rule, most frequent first.
    """

    split: Split
    users: int
    metrics: Mapping[str, Mapping[str, float]]
    ends: Mapping[str, int]
    violations: Mapping[str, int]
    trajectories: Sequence[ReadTrajectory]

    def to_json(self) -> JsonDict:
        """The figures as plain values, rollouts left out."""
        return {
            "split": self.split,
            "users": self.users,
            "metrics": {name: dict(values) for name, values in self.metrics.items()},
            "ends": dict(self.ends),
            "violations": dict(self.violations),
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and one row per recommender; a figure that does not apply is left blank."""
        rows = [
            (title, *(number(self.metrics[name][figure]) if figure in self.metrics[name] else "" for figure in FIGURES))
            for name, title in NAMES.items()
        ]
        return ("", *(figure.replace("_", " ") for figure in FIGURES)), rows

    def page(self, title: str) -> str:
        """The table and a browser of the rollouts, as HTML."""
        target = f"{self.split.capitalize()} target of {self.users:,} users"
        note = f"{target}, full ranking; answers are greedy, and an invalid one counts as a miss."
        return trajectory_page(title, [note], self.table(), self.trajectories, self.users)


def evaluate_policy(
    dataset: Path,
    trm: Path,
    policy: Path,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    seed: int,
    *,
    split: Split = "validation",
    users: int | None = None,
    read: int = 200,
    progress: Progress = print,
) -> PolicyEvaluation:
    """Roll the policy out greedily and measure it.

    Args:
        users: that many, drawn at random with ``seed``; None is all.
        read: rollouts to keep for a reader at most.

    Raises:
        ConfigError: there is no such split.
        ArtifactError, DataError, TrmError, PolicyError: a part cannot be read or does not belong to the others.
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"there is no split {split!r}; the splits are validation and test")
    data = read_dataset(dataset)
    examples = validation_examples(data) if split == "validation" else test_examples(data)
    if users is not None and users < len(examples):
        drawn = np.random.default_rng(seed).choice(len(examples), size=users, replace=False)
        examples = [examples[place] for place in sorted(drawn)]
    setting = open_setting(data, examples, trm, explore, rewards, text)
    k = explore.answer_size
    with closing(open_policy(policy, explore.engine)) as opened:
        made = scored(setting, rolled_out(setting, opened, lambda line: progress(f"policy: {line}")))
    broken = [violations_of(setting, trajectory) for trajectory in made]
    outcome = measure(setting, made, broken)
    popular = popularity_answers(popularity(data), data.catalogue, examples, k)
    baselines = {"popularity": popular, "trm": setting.trm_answers}
    found = {name: Outcome(ranks_of(answers, examples, k)) for name, answers in baselines.items()}
    counted = outcome.behaviour
    return PolicyEvaluation(
        split,
        len(examples),
        {name: one.metrics for name, one in {**found, "policy": outcome}.items()},
        counted.ends if counted else {},
        counted.violations if counted else {},
        stories(setting, made, broken, read),
    )
