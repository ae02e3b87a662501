"""Check answers: what a bundle answered to a few dozen histories when it was published, so that a server can be held
to it before anybody is answered by it.

``answers.json`` in the index is a list of histories (item ids, oldest first; no user is named) with the TRM's list for
each, ids and scores, and the evaluated policy's answer where it gave a valid one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError
from deeprec.types import Example, Trajectory

FILE = "answers.json"
COUNT = 32
"""Histories that are kept, fewer where the dataset has fewer users."""


@dataclass(frozen=True)
class CheckAnswer:
    """A history, what the TRM lists for it ((item id, score), best first), and the policy's items, None without any."""

    history: tuple[str, ...]
    trm: tuple[tuple[str, float], ...]
    policy: tuple[str, ...] | None = None


def make_answers(data: Dataset, trm: Path, trajectories: Path, k: int) -> list[CheckAnswer]:
    """Check answers of a TRM's artifact and of the policy whose trajectories an evaluation has kept, if it did.

    Args:
        trajectories: the evaluation's ``trajectories.parquet``; without it no answer of a policy is kept.
        k: length of the lists.

    Raises:
        ArtifactError, TrmError: the TRM cannot be loaded.
    """
    from deeprec.evaluation.baselines import trm_lists
    from deeprec.trm.retriever import TrmRetriever

    users = _evenly(sorted(user for user, items in data.sequences.items() if len(items) > 1))
    examples = [Example(user, data.sequences[user][:-1], data.sequences[user][-1]) for user in users]
    answered = {f"{one.user_id}@{len(one.history)}": one for one in examples}
    policy: dict[str, tuple[str, ...]] = {}
    for one in _kept(trajectories):
        named = tuple(item for item in one.answer if item is not None)
        if one.example_key in answered and named and len(named) == len(one.answer):
            policy[one.example_key] = named
    lists = trm_lists(TrmRetriever.load(trm, data.catalogue), examples, k)
    return [
        CheckAnswer(tuple(example.history), tuple((item.item_id, float(item.score)) for item in items), policy.get(key))
        for (key, example), items in zip(answered.items(), lists, strict=True)
    ]


def write_answers(index: Path, answers: Sequence[CheckAnswer]) -> None:
    """Write them into an index."""
    (index / FILE).write_text(json.dumps([asdict(one) for one in answers], ensure_ascii=False) + "\n", encoding="utf-8")


def read_answers(index: Path) -> list[CheckAnswer]:
    """An index's check answers; none where the bundle was made without.

    Raises:
        ArtifactError: they cannot be read.
    """
    place = index / FILE
    if not place.is_file():
        return []
    try:
        raw = json.loads(place.read_text(encoding="utf-8"))
        return [
            CheckAnswer(
                tuple(one["history"]),
                tuple((str(item), float(score)) for item, score in one["trm"]),
                None if one["policy"] is None else tuple(one["policy"]),
            )
            for one in raw
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"cannot read {place}: {error}; publish the bundle again") from error


def _evenly(users: Sequence[str]) -> list[str]:
    count = min(COUNT, len(users))
    return [users[place * len(users) // count] for place in range(count)]


def _kept(file: Path) -> Iterator[Trajectory]:
    from deeprec.explore.trajectories import read_trajectories

    return read_trajectories(file) if file.is_file() else iter(())
