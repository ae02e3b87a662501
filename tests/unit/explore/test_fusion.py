"""Lists merged by weighted reciprocal rank."""

from deeprec.explore.fusion import merge, merged_weights
from deeprec.types import RetrievedItem


def items(*ids):
    return tuple(RetrievedItem(item_id, 0.5) for item_id in ids)


def test_merge_weighs_the_broad_list_four_times():
    assert merge([items("a", "b", "c")]) == ["a", "b", "c"]
    # a: 4/5, b: 4/6 + 1/5, c: 4/7 + 1/6, d: 1/7
    assert merge([items("a", "b", "c"), items("b", "c", "d")]) == ["b", "a", "c", "d"]
    assert merge([]) == []


def test_weights_are_summed_in_order_of_first_appearance():
    weights = merged_weights([items("a", "b"), items("c", "a")])
    assert list(weights) == ["a", "b", "c"]
    assert list(weights.values()) == [4 / 5 + 1 / 6, 4 / 6, 1 / 5]
