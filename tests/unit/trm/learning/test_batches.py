from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from deeprec.config import TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.trm.learning.batches import draw_batches, draw_preferences, draw_windows, phrase_table
from deeprec.types import Catalogue, Item


def test_windows_are_contiguous_and_reach_old_items() -> None:
    sequences = [np.arange(3), np.arange(30)]
    starts = set()
    generator = np.random.default_rng(0)
    for _ in range(200):
        short, long = draw_windows(sequences, 9, generator)
        assert short.tolist() == [0, 1, 2]
        assert len(long) == 10
        assert (np.diff(long) == 1).all()
        starts.add(int(long[0]))
    assert {0, 20} <= starts <= set(range(21))


def test_batches_hold_every_transition_once() -> None:
    generator = np.random.default_rng(1)
    sequences = [generator.integers(100, size=length) for length in generator.integers(2, 15, size=23)]
    expected = sorted((int(a), int(b)) for rows in sequences for a, b in pairwise(rows))
    found = []
    for batch in draw_batches(sequences, 4, 14, generator):
        assert batch.real[:, 0].all()
        assert [len(sequences[member]) - 1 for member in batch.members] == batch.real.sum(axis=1).tolist()
        assert batch.inputs.shape[1] in (8, 14)
        found += list(zip(batch.inputs[batch.real].tolist(), batch.targets[batch.real].tolist(), strict=True))
    assert sorted(found) == expected


@pytest.fixture
def phrases(world: Dataset) -> tuple[str, ...]:
    return world.catalogue.phrases


def test_phrase_table_holds_every_item_s_phrases_in_order(world: Dataset, phrases: tuple[str, ...]) -> None:
    odd = Catalogue((*world.catalogue.items[:2], Item("bare", "Bare"), Item("one", "One", phrases=("horror",))))
    table = phrase_table(odd, phrases)
    assert table.dtype == np.int32
    named = [tuple(phrases[place] for place in row if place >= 0) for row in table]
    assert named == [item.phrases for item in odd.items]
    assert phrase_table(Catalogue((Item("bare", "Bare"),)), ()).tolist() == [[-1]]


def test_preferences_are_truthful_without_noise(world: Dataset, phrases: tuple[str, ...]) -> None:
    table = phrase_table(world.catalogue, phrases)
    targets = np.repeat(np.arange(len(world.catalogue)), 50)
    trm = TrmConfig(preference_share=0.5, phrase_drop=0.5, phrase_noise=0.0, false_preference=0.0, history_drop=0.1)
    drawn = draw_preferences(targets, table, len(phrases), trm, np.random.default_rng(2))
    assert (np.diff(drawn.positions) > 0).all()
    assert 0.45 < len(drawn.positions) / len(targets) < 0.55
    assert 0.06 < drawn.blind.mean() < 0.14
    for target, row in zip(targets[drawn.positions], drawn.phrases, strict=True):
        assert {phrases[index] for index in row if index >= 0} <= set(world.catalogue.items[target].phrases)
    assert set((drawn.phrases >= 0).sum(axis=1)) == {1, 2}


def test_a_share_of_the_preferences_is_another_target_s(world: Dataset, phrases: tuple[str, ...]) -> None:
    table = phrase_table(world.catalogue, phrases)
    targets = np.repeat([0, 1], 2000)
    trm = TrmConfig(preference_share=1.0, phrase_drop=0.0, phrase_noise=0.0, false_preference=0.4, history_drop=0.5)
    drawn = draw_preferences(targets, table, len(phrases), trm, np.random.default_rng(3))
    own = (drawn.phrases[:, :-1] == table[targets]).all(axis=1)
    assert own[drawn.blind].all()
    assert 0.15 < 1 - own[~drawn.blind].mean() < 0.25


def test_noise_adds_at_most_one_phrase(world: Dataset, phrases: tuple[str, ...]) -> None:
    trm = TrmConfig(preference_share=1.0, phrase_drop=0.0, phrase_noise=1.0)
    table = phrase_table(world.catalogue, phrases)
    drawn = draw_preferences(np.arange(40), table, len(phrases), trm, np.random.default_rng(2))
    assert ((drawn.phrases >= 0).sum(axis=1) == 3).all()


def test_targets_without_phrases_are_not_asked_again() -> None:
    table = np.array([[-1], [0]], dtype=np.int32)
    trm = TrmConfig(preference_share=1.0)
    drawn = draw_preferences(np.array([0, 1, 0]), table, 1, trm, np.random.default_rng(0))
    assert drawn.positions.tolist() == [1]
    none = draw_preferences(
        np.zeros(3, dtype=np.int64), np.full((3, 1), -1, np.int32), 0, trm, np.random.default_rng(0)
    )
    assert len(none.positions) == 0
