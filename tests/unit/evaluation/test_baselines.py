"""Popularity and the TRM alone, as answers of k items the user has not had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deeprec.evaluation.baselines import popularity_answers, trm_answers, trm_lists
from deeprec.types import Catalogue, Example, Item, Query, RetrievedItem

CATALOGUE = Catalogue(tuple(Item(name, f"Title {name}") for name in "abcde"))


def test_popularity_skips_seen_items_and_breaks_ties_by_catalogue_order() -> None:
    counts = np.array([1, 5, 3, 5, 0])
    examples = [Example("u", (), "a"), Example("v", ("b", "a"), "c"), Example("w", tuple("abcd"), "e")]
    assert popularity_answers(counts, CATALOGUE, examples, 3) == [("b", "d", "c"), ("d", "c", "e"), ("e",)]


class RecordingRetriever:
    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.sizes: list[int] = []

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        self.queries.extend(queries)
        self.sizes.append(len(queries))
        return [
            tuple(RetrievedItem(item, 0.5) for item in "abcde" if item not in query.history)[:k] for query in queries
        ]


def test_the_trm_alone_is_asked_without_a_preference_over_everything() -> None:
    retriever = RecordingRetriever()
    examples = [Example("u", ("a",), "b"), Example("v", ("b", "c"), "a")]
    assert trm_answers(retriever, examples, 2) == [("b", "c"), ("a", "d")]
    assert retriever.queries == [Query(("a",)), Query(("b", "c"))]


def test_long_lists_of_users_are_asked_in_batches_and_stay_in_order() -> None:
    retriever = RecordingRetriever()
    examples = [Example(str(number), ("abcde"[number % 5],), "a") for number in range(5)]
    lists = trm_lists(retriever, examples, 1, batch_size=2)
    assert retriever.sizes == [2, 2, 1]
    assert [items[0].item_id for items in lists] == ["b", "a", "a", "a", "a"]
