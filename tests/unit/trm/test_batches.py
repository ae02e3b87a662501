from __future__ import annotations

from itertools import pairwise

import numpy as np

from deeprec.config import TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.trm.batches import draw_batches, draw_preferences, draw_windows, phrase_table


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
    for batch in draw_batches(sequences, 4, generator):
        assert batch.real[:, 0].all()
        assert batch.real.any(axis=0).all()
        found += list(zip(batch.inputs[batch.real].tolist(), batch.targets[batch.real].tolist(), strict=True))
    assert sorted(found) == expected


def test_preferences_are_truthful_without_noise(world: Dataset) -> None:
    phrases = world.catalogue.phrases
    table = phrase_table(world.catalogue, phrases)
    targets = np.repeat(np.arange(len(world.catalogue)), 50)
    trm = TrmConfig(preference_share=0.5, phrase_drop=0.5, phrase_noise=0.0)
    drawn = draw_preferences(targets, table, len(phrases), trm, np.random.default_rng(2))
    told = (drawn >= 0).any(axis=1)
    assert 0.45 < told.mean() < 0.55
    for target, row in zip(targets[told], drawn[told], strict=True):
        assert {phrases[index] for index in row if index >= 0} <= set(world.catalogue.items[target].phrases)
    counts = (drawn[told] >= 0).sum(axis=1)
    assert set(counts) == {1, 2}


def test_noise_adds_at_most_one_phrase(world: Dataset) -> None:
    phrases = world.catalogue.phrases
    trm = TrmConfig(preference_share=1.0, phrase_drop=0.0, phrase_noise=1.0)
    table = phrase_table(world.catalogue, phrases)
    drawn = draw_preferences(np.arange(40), table, len(phrases), trm, np.random.default_rng(2))
    assert ((drawn >= 0).sum(axis=1) == 3).all()


def test_no_phrases_give_no_preferences() -> None:
    drawn = draw_preferences(np.arange(3), np.full((3, 1), -1), 0, TrmConfig(), np.random.default_rng(0))
    assert (drawn == -1).all()
