"""What the policy is measured against, as answers of the policy's own length: popularity, the TRM's lists, fusion.

Answers never repeat what the user has had, as the policy's do not, and hold k items, so that every metric, MRR
included, is taken from lists of one length. The scripted explorer, one more baseline, is ``explore.scripted``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.explore.fusion import merged_weights
from deeprec.types import Catalogue, Example, Opinion, Query, RetrievedItem, Retriever

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


def one_list(retriever: Retriever, examples: Sequence[Example], lengths: Sequence[int]) -> Answers:
    """For each example the TRM's own list, as long as ``lengths`` says: what several calls together could hold in one.

    Its first items are the TRM's answer; what the rest is worth shows in how often the target is among them.
    """
    longest = max(lengths, default=0)
    lists = trm_lists(retriever, examples, longest)
    return [tuple(item.item_id for item in items[:length]) for items, length in zip(lists, lengths, strict=True)]


def fusion_answers(
    retriever: Retriever, opinion: Opinion, examples: Sequence[Example], length: int, k: int, batch_size: int = 256
) -> Answers:
    """The TRM's first list in the order of TRM × policy: no call is chosen, and nothing is learnt by rewards.

    A product of two experts (Hinton, 2002): the logarithm of an item's reciprocal rank (``explore.fusion``) plus the
    policy's log-likelihood that the item is what comes next in the history.

    Args:
        opinion: of the policy, see ``explore.opinion``.
        length: items of the list, as many as one call returns.
        k: answer length.
    """
    answers: Answers = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        weights = [merged_weights([items]) for items in trm_lists(retriever, part, length)]
        for found, likely in zip(weights, opinion(part, [list(one) for one in weights]), strict=True):
            value = {item: math.log(found[item]) + own for item, own in zip(found, likely, strict=True)}
            answers.append(tuple(sorted(value, key=lambda item: -value[item])[:k]))
    return answers
