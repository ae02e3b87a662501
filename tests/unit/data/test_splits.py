from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.dataset import Dataset
from deeprec.data.splits import (
    everything_sequences,
    interaction_counts,
    policy_examples,
    popularity,
    standalone_sequences,
    test_examples,
    trm_sequences,
    validation_examples,
)
from deeprec.errors import DataError
from deeprec.types import Catalogue, Example, Item

ITEMS = [f"i{number}" for number in range(12)]


def make(histories: dict[str, list[str]], positions: int) -> Dataset:
    catalogue = Catalogue(tuple(Item(name, name.upper()) for name in ITEMS))
    return Dataset(
        catalogue,
        {user: tuple(items) for user, items in histories.items()},
        {user: tuple(range(len(items))) for user, items in histories.items()},
        {"policy_positions": positions},
    )


def test_by_hand() -> None:
    dataset = make({"u": ["i0", "i1", "i2", "i3", "i4", "i5"]}, 2)
    assert trm_sequences(dataset) == {"u": ("i0", "i1")}
    assert policy_examples(dataset) == [
        Example("u", ("i0", "i1"), "i2"),
        Example("u", ("i0", "i1", "i2"), "i3"),
    ]
    assert validation_examples(dataset) == [Example("u", ("i0", "i1", "i2", "i3"), "i4")]
    assert test_examples(dataset) == [Example("u", ("i0", "i1", "i2", "i3", "i4"), "i5")]
    assert popularity(dataset).tolist() == [1, 1, *[0] * 10]


def test_too_short_a_history_is_refused() -> None:
    with pytest.raises(DataError, match="needs 4"):
        trm_sequences(make({"u": ["i0", "i1", "i2"]}, 1))


histories = st.dictionaries(
    st.text("ab", min_size=1, max_size=3), st.lists(st.sampled_from(ITEMS), min_size=6, unique=True), max_size=4
)


@given(histories, st.integers(1, 3))
def test_nothing_leaks_and_order_is_kept(found: dict[str, list[str]], positions: int) -> None:
    dataset = make(found, positions)
    sequences = trm_sequences(dataset)
    policy, validation, test = policy_examples(dataset), validation_examples(dataset), test_examples(dataset)
    assert len(policy) == positions * len(found)
    for user, items in found.items():
        hidden = [example.target for example in [*policy, *validation, *test] if example.user_id == user]
        assert sequences[user]
        assert not set(hidden) & set(sequences[user])
        assert [*sequences[user], *hidden] == items
    for example in [*policy, *validation, *test]:
        items = found[example.user_id]
        assert list(example.history) == items[: items.index(example.target)]
    assert len({example.key for example in [*policy, *validation, *test]}) == (positions + 2) * len(found)
    assert popularity(dataset).sum() == sum(map(len, sequences.values()))


def test_a_stand_alone_trm_trains_on_everything_before_the_validation_item(dataset: Dataset) -> None:
    validation = {example.user_id: example.history for example in validation_examples(dataset)}
    assert standalone_sequences(dataset) == validation
    with pytest.raises(DataError, match="2 interactions"):
        standalone_sequences(Dataset(dataset.catalogue, {"u": dataset.sequences[next(iter(dataset.sequences))][:2]}))


def test_a_trm_that_only_serves_trains_on_the_last_items_too() -> None:
    dataset = make({"u": ["i0", "i1", "i2", "i3"], "v": ["i3", "i2", "i0", "i4"]}, 1)
    everything = everything_sequences(dataset)
    assert everything == {"u": ("i0", "i1", "i2", "i3"), "v": ("i3", "i2", "i0", "i4")}
    assert {user: items[-1] for user, items in everything.items()} == {
        example.user_id: example.target for example in test_examples(dataset)
    }
    assert interaction_counts(dataset.catalogue, everything).tolist() == [2, 1, 2, 2, 1, *[0] * 7]
    with pytest.raises(DataError, match="needs 4"):
        everything_sequences(make({"u": ["i0", "i1", "i2"]}, 1))
