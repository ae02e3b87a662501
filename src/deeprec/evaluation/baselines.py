"""What the policy is measured against: popularity and the TRM alone, as answers of the policy's own length.

Answers never repeat what the user has had, as the policy's do not, and hold k items, so that every metric, MRR
included, is taken from lists of one length. The third baseline, the scripted explorer, is ``explore.scripted``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.types import Catalogue, Example, Query, RetrievedItem, Retriever

Answers = list[tuple[str, ...]]


def popularity_answers(counts: NDArray[np.int64], catalogue: Catalogue, examples: Sequence[Example], k: int) -> Answers:
    """The ``k`` most frequent items that each user has not had; ties in catalogue order.

    Args:
        counts: (items,) training interactions of each catalogue row.
        catalogue: the items, in the order of ``counts``.
        examples: one per user.
        k: answer length; shorter only where the catalogue runs out.
    """
    ranking = [catalogue.items[row].item_id for row in np.argsort(-counts, kind="stable")]
    answers = []
    for example in examples:
        seen = set(example.history)
        answer: list[str] = []
        for item_id in ranking:
            if len(answer) == k:
                break
            if item_id not in seen:
                answer.append(item_id)
        answers.append(tuple(answer))
    return answers


def trm_lists(
    retriever: Retriever, examples: Sequence[Example], k: int, batch_size: int = 512
) -> list[tuple[RetrievedItem, ...]]:
    """The TRM's best ``k`` over the full catalogue without a preference, history excluded, for each example."""
    lists: list[tuple[RetrievedItem, ...]] = []
    for start in range(0, len(examples), batch_size):
        queries = [Query(example.history) for example in examples[start : start + batch_size]]
        lists.extend(retriever.retrieve(queries, k))
    return lists


def trm_answers(retriever: Retriever, examples: Sequence[Example], k: int) -> Answers:
    """Item ids of ``trm_lists``."""
    return [tuple(item.item_id for item in items) for items in trm_lists(retriever, examples, k)]
