"""What every recommender is evaluated in: the users, what they choose from, the TRM's own answers; and how a policy is.

A policy answers greedily, once per user; a rollout whose answer breaks a format rule counts as a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import DataError
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.behaviour import behaviour
from deeprec.evaluation.outcome import Outcome, ranks_of, valid_answers
from deeprec.evaluation.reading import ReadTrajectory, choose, outcome_of, read
from deeprec.explore.protocol import TitleBook
from deeprec.explore.rollouts import Progress, roll_out
from deeprec.explore.summary import summarise
from deeprec.types import Catalogue, Embedder, Example, Policy, Trajectory

if TYPE_CHECKING:
    from deeprec.trm.retriever import TrmRetriever


@dataclass(frozen=True)
class Setting:
    """What all recommenders share: the users, what they choose from, and the TRM's own answers."""

    catalogue: Catalogue
    examples: Sequence[Example]
    retriever: TrmRetriever
    embedder: Embedder
    titles: TitleBook
    explore: ExploreConfig
    rewards: RewardsConfig
    trm_answers: Sequence[tuple[str, ...]]


def open_setting(
    data: Dataset,
    examples: Sequence[Example],
    trm: Path,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
) -> Setting:
    """The setting of some of a dataset's examples, with the TRM trained on it.

    Raises:
        DataError: there is no example.
        ArtifactError, TrmError: the TRM cannot be read, or does not belong to the dataset.
    """
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.text import load_embedder

    if not examples:
        raise DataError("the dataset has no users to evaluate; import data with at least one")
    embedder = load_embedder(text)
    retriever = TrmRetriever.load(trm, data.catalogue, embedder)
    return Setting(
        catalogue=data.catalogue,
        examples=examples,
        retriever=retriever,
        embedder=embedder,
        titles=TitleBook(data.catalogue),
        explore=explore,
        rewards=rewards,
        trm_answers=trm_answers(retriever, examples, explore.answer_size),
    )


def rolled_out(setting: Setting, policy: Policy, progress: Progress) -> list[Trajectory]:
    """A policy's greedy rollouts for every user, in order, with a line after every few batches."""
    batches = roll_out(policy, setting.retriever, setting.titles, setting.examples, setting.explore, progress=progress)
    return [trajectory for batch in batches for trajectory in batch]


def violations_of(setting: Setting, trajectory: Trajectory) -> tuple[str, ...]:
    """The format rules that a rollout breaks."""
    from deeprec.rewards.format import format_violations

    return format_violations(trajectory, setting.explore, strict=setting.rewards.strict_format)


def scored(setting: Setting, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories with the reward parts of stage 2, for a reader; no metric depends on them."""
    from deeprec.rewards.compose import Scorer

    vectors = setting.retriever.item_vectors()
    scorer = Scorer(
        setting.rewards.stage2, setting.rewards, setting.explore, setting.catalogue, setting.embedder, vectors
    )
    parts = scorer.score(trajectories, [example.target for example in setting.examples])
    return [replace(one, rewards=tuple(own)) for one, own in zip(trajectories, parts, strict=True)]


def measure(
    setting: Setting, trajectories: Sequence[Trajectory], violations: Sequence[Sequence[str]], *, figures: bool = True
) -> Outcome:
    """Score trajectories, one per example in order; broken rules make an answer a miss.

    ``figures`` adds what is reported of a policy besides its metrics.
    """
    ranks = ranks_of(valid_answers(trajectories, violations), setting.examples, setting.explore.answer_size)
    valid = [not broken for broken in violations]
    added = summarise(trajectories, setting.examples, valid, setting.trm_answers) if figures else {}
    return Outcome(ranks, added, behaviour(trajectories, setting.examples, violations))


def stories(
    setting: Setting, trajectories: Sequence[Trajectory], violations: Sequence[Sequence[str]], count: int
) -> list[ReadTrajectory]:
    """At most ``count`` of the trajectories (one per example, in order), resolved for a reader; see ``choose``."""
    triples = list(zip(trajectories, setting.examples, violations, strict=True))
    chosen = choose([outcome_of(*triple) for triple in triples], [one.reward for one in trajectories], count)
    return [read(*triples[place], setting.trm_answers[place], setting.catalogue) for place in chosen]
