"""Rollouts of one policy over many users: batch by batch, and as an artifact that whoever reads it need not make again.

An artifact of kind ``rollouts`` holds ``trajectories.parquet``, unscored, the rollouts of one example one after the
other, and ``rollouts.json``, the rest of ``Rollouts``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from deeprec.config import ExploreConfig
from deeprec.errors import ArtifactError
from deeprec.explore.protocol import TitleBook
from deeprec.explore.rollout import rollout
from deeprec.explore.trajectories import read_trajectories
from deeprec.store import read_artifact
from deeprec.types import Example, Policy, Retriever, Trajectory

KIND = "rollouts"
TRAJECTORIES = "trajectories.parquet"
DESCRIPTION = "rollouts.json"
PROGRESS_LINES = 8
"""Lines that tell how far many rollouts have come, at most some more."""

Progress = Callable[[str], None]


def roll_out(
    policy: Policy,
    retriever: Retriever,
    titles: TitleBook,
    examples: Sequence[Example],
    explore: ExploreConfig,
    *,
    repeats: int = 1,
    temperature: float = 0.0,
    seeds: Callable[[int], int] = lambda batch: 0,
    progress: Progress,
) -> Iterator[list[Trajectory]]:
    """Yield the examples' rollouts in order, a batch at a time, ``repeats`` of each example one after the other.

    Args:
        seeds: number of a batch → its seed.
        progress: gets a line after every few batches.
    """
    size = max(1, explore.batch_size // repeats)
    stride = max(1, len(examples) // (size * PROGRESS_LINES))
    done = 0
    for number in range(-(-len(examples) // size)):
        part = examples[number * size : (number + 1) * size]
        rows = [example for example in part for _ in range(repeats)]
        yield rollout(policy, retriever, titles, rows, explore, temperature=temperature, seed=seeds(number))
        done += len(part)
        if (number + 1) % stride == 0 or done == len(examples):
            progress(f"{done:,} of {len(examples):,} users")


@dataclass(frozen=True)
class Rollouts:
    """What an artifact's rollouts are.

    ``users`` names whom they are for; ``milliseconds`` are medians of single requests, with ``policy`` and ``trm``,
    where they were timed.
    """

    users: str
    repeats: int
    temperature: float
    milliseconds: dict[str, float]

    def to_json(self) -> str:
        """The content of ``rollouts.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"


def open_rollouts(path: Path, made_of: Iterable[Path]) -> Rollouts:
    """What the rollouts of an artifact are; it is verified, and was made of these artifacts.

    Raises:
        ArtifactError: there is none, a file differs from its hash, or they were made of others.
    """
    parents = set(read_artifact(path, KIND).parents.values())
    for other in made_of:
        if read_artifact(other, verify=False).digest not in parents:
            raise ArtifactError(f"the rollouts in {path} were not made with {other}; roll the policy out again")
    return Rollouts(**json.loads((path / DESCRIPTION).read_text(encoding="utf-8")))


def rollouts_of(path: Path, repeats: int, examples: Sequence[Example]) -> Iterator[tuple[Example, list[Trajectory]]]:
    """Each example with its rollouts, as they were made; one batch of the file is in memory at a time.

    Args:
        repeats: as ``open_rollouts`` says.

    Raises:
        ArtifactError: they cannot be read, or are of other examples.
    """
    kept = read_trajectories(path / TRAJECTORIES)
    for example in examples:
        own = list(islice(kept, repeats))
        if {one.example_key for one in own} != {example.key}:
            raise _other_examples(path)
        yield example, own
    if next(kept, None):
        raise _other_examples(path)


def _other_examples(path: Path) -> ArtifactError:
    return ArtifactError(f"the rollouts in {path} are of other users than those asked for; roll the policy out again")
