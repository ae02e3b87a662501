"""Trajectories kept in a Parquet file as a page to browse: the evaluation's, or those that prompts were chosen by.

The file is read twice, a batch in memory at a time: once to choose, once to resolve what was chosen.
"""

from __future__ import annotations

from pathlib import Path

from deeprec.config import ExploreConfig, RewardsConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import DataError
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.browser import trajectory_page
from deeprec.evaluation.reading import choose, outcome_of, read
from deeprec.explore.trajectories import read_trajectories
from deeprec.types import Example, Trajectory


def kept_page(
    file: Path, dataset: Path, trm: Path, explore: ExploreConfig, rewards: RewardsConfig, count: int, title: str
) -> tuple[str, int, int]:
    """The page as HTML, how many trajectories it holds (``count`` at most), and how many the file does.

    Raises:
        ArtifactError: the file does not hold trajectories, or the TRM or the dataset cannot be read.
        DataError: a trajectory is of no user of the dataset.
    """
    from deeprec.rewards.format import format_violations
    from deeprec.trm.retriever import TrmRetriever

    def broken(trajectory: Trajectory) -> tuple[str, ...]:
        return format_violations(trajectory, explore, strict=rewards.strict_format)

    data = read_dataset(dataset)
    outcomes, scores = [], []
    for trajectory in read_trajectories(file):
        outcomes.append(outcome_of(trajectory, _example(trajectory, data, file), broken(trajectory)))
        scores.append(trajectory.reward)
    places = set(choose(outcomes, scores, count))
    chosen = [one for place, one in enumerate(read_trajectories(file)) if place in places]
    examples = [_example(one, data, file) for one in chosen]
    own = trm_answers(TrmRetriever.load(trm, data.catalogue), examples, explore.answer_size)
    to_read = [
        read(one, example, broken(one), answer, data.catalogue)
        for one, example, answer in zip(chosen, examples, own, strict=True)
    ]
    return trajectory_page(title, [f"From {file}."], None, to_read, len(outcomes)), len(to_read), len(outcomes)


def _example(trajectory: Trajectory, data: Dataset, file: Path) -> Example:
    """What a trajectory was rolled out for: its key names the user and how much of the history was shown."""
    items = data.sequences.get(trajectory.user_id, ())
    length = trajectory.example_key.rpartition("@")[2]
    if not length.isdecimal() or int(length) >= len(items):
        raise DataError(
            f"{file} has a trajectory {trajectory.example_key!r} that is of no user of the dataset; name the dataset "
            f"that it was made with"
        )
    return Example(trajectory.user_id, items[: int(length)], items[int(length)])
