"""Who may see what: the leave-one-out splits of a dataset (method, section 5).

Per user v1 … vN in time order, with p = ``policy_positions``: vN is the test target, v(N−1) the validation target, the
p items before it are the policy's targets, and the TRM trains on v1 … v(N−2−p) alone (a stand-alone one, which serves
no policy, on v1 … v(N−2)). An example's history is everything before its target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeprec.data.dataset import Dataset
from deeprec.errors import DataError
from deeprec.types import Example


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
    index = dataset.catalogue.index
    rows = [index[item] for items in trm_sequences(dataset).values() for item in items]
    return np.bincount(np.asarray(rows, dtype=np.int64), minlength=len(dataset.catalogue)).astype(np.int64)


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
