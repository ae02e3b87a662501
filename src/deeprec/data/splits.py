"""Who may see what: the leave-one-out splits of a dataset (method, section 5).

Per user v1 … vN in time order, with p = ``policy_positions``: vN is the test target, v(N−1) the validation target, the
p items before it are the policy's targets, and the TRM trains on v1 … v(N−2−p) alone (a stand-alone one, which serves
no policy, on v1 … v(N−2); one that only serves, on all of them). An example's history is everything before its target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.data.dataset import Dataset
from deeprec.errors import DataError
from deeprec.types import Catalogue, Example


def trm_sequences(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """User id → the item ids the TRM may train on, oldest first; at least one per user.

    Raises:
        DataError: a user has too few interactions to split.
    """
    held_out = 2 + dataset.policy_positions
    _require_length(dataset)
    return {user: items[: len(items) - held_out] for user, items in dataset.sequences.items()}


def standalone_sequences(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """User id → everything before the validation item, oldest first: what a TRM that serves no policy trains on.

    Figures of such a TRM compare with those of papers; a policy must not learn from its lists, which know the policy's
    targets by heart.

    Raises:
        DataError: a user has too few interactions to split.
    """
    _require_length(dataset)
    return {user: items[:-2] for user, items in dataset.sequences.items()}


def everything_sequences(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """User id → every interaction, test item included, oldest first: what a TRM trains on that only serves.

    No target is left to measure it with: the figures of a TRM trained by the same recipe on ``standalone_sequences``
    say what to expect of it.

    Raises:
        DataError: a user has too few interactions to split, and was not in those figures.
    """
    _require_length(dataset)
    return dict(dataset.sequences)


def policy_examples(dataset: Dataset) -> list[Example]:
    """The policy's examples, p per user: users in dataset order, then oldest target first."""
    _require_length(dataset)
    return [
        _example(user, items, position)
        for user, items in dataset.sequences.items()
        for position in range(len(items) - 2 - dataset.policy_positions, len(items) - 2)
    ]


def validation_examples(dataset: Dataset) -> list[Example]:
    """One example per user in dataset order: the last item but one."""
    _require_length(dataset)
    return [_example(user, items, len(items) - 2) for user, items in dataset.sequences.items()]


def test_examples(dataset: Dataset) -> list[Example]:
    """One example per user in dataset order: the last item. Read once, in evaluation."""
    _require_length(dataset)
    return [_example(user, items, len(items) - 1) for user, items in dataset.sequences.items()]


test_examples.__test__ = False  # type: ignore[attr-defined]  # pytest collects imported functions of this name


def popularity(dataset: Dataset) -> NDArray[np.int64]:
    """(items,) how often each catalogue row occurs in the TRM's training sequences."""
    return interaction_counts(dataset.catalogue, trm_sequences(dataset))


def interaction_counts(catalogue: Catalogue, sequences: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """(items,) how often each catalogue row occurs in the sequences."""
    rows = [catalogue.index[item] for items in sequences.values() for item in items]
    return np.bincount(np.asarray(rows, dtype=np.int64), minlength=len(catalogue)).astype(np.int64)


def _example(user: str, items: tuple[str, ...], position: int) -> Example:
    return Example(user_id=user, history=items[:position], target=items[position])


def _require_length(dataset: Dataset) -> None:
    needed = dataset.policy_positions + 3
    for user, items in dataset.sequences.items():
        if len(items) < needed:
            raise DataError(
                f"user {user!r} has {len(items)} interactions, but policy_positions={dataset.policy_positions} needs "
                f"{needed}; import the data again with data.min_user_interactions={needed}"
            )
