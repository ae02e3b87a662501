"""What the TRM reads in training: windows of sequences in batches of like length, and preferences for their targets.

All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprec.config import TrmConfig
from deeprec.types import Catalogue

Rows = NDArray[np.int64]
RECENT_SHARE = 0.5
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded windows: ``inputs`` and ``targets`` (batch, length) rows, ``real`` (batch, length) true where not padded.

    The target of a position is the next item of its window.
    """

    inputs: Rows
    targets: Rows
    real: NDArray[np.bool_]


def draw_windows(sequences: Sequence[Rows], length: int, generator: np.random.Generator) -> list[Rows]:
    """One window of at most ``length + 1`` items per sequence: its newest, or half of the time any other."""
    windows = []
    for rows in sequences:
        spare = len(rows) - (length + 1)
        if spare <= 0:
            windows.append(rows)
            continue
        start = spare if generator.random() < RECENT_SHARE else int(generator.integers(spare + 1))
        windows.append(rows[start : start + length + 1])
    return windows


def draw_batches(windows: Sequence[Rows], size: int, generator: np.random.Generator) -> Iterator[Batch]:
    """Every window once, in batches of similar length, batches in random order."""
    lengths = np.array([len(window) for window in windows])
    order = np.argsort(lengths * generator.uniform(1 - _JITTER, 1 + _JITTER, len(lengths)), kind="stable")
    starts = np.arange(0, len(order), size)
    for start in generator.permutation(starts):
        yield _pad([windows[row] for row in order[start : start + size]])


def _pad(windows: Sequence[Rows]) -> Batch:
    lengths = np.array([len(window) - 1 for window in windows])
    shape = (len(windows), int(lengths.max()))
    inputs, targets = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, window in enumerate(windows):
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
    return Batch(inputs, targets, np.arange(shape[1]) < lengths[:, None])


def phrase_table(catalogue: Catalogue, phrases: Sequence[str]) -> Rows:
    """(items, most phrases of an item) indices into ``phrases``, −1 for none."""
    index = {phrase: row for row, phrase in enumerate(phrases)}
    most = max((len(item.phrases) for item in catalogue.items), default=0)
    table = np.full((len(catalogue), max(most, 1)), -1, dtype=np.int64)
    for row, item in enumerate(catalogue.items):
        table[row, : len(item.phrases)] = [index[phrase] for phrase in item.phrases]
    return table


def draw_preferences(targets: Rows, table: Rows, phrases: int, trm: TrmConfig, generator: np.random.Generator) -> Rows:
    """Truthful preferences for a share of the targets.

    A preference is the target's phrases, each left out with ``phrase_drop`` (one always stays), and with
    ``phrase_noise`` one phrase drawn from all.

    Args:
        targets: (n,) catalogue rows.
        table: of ``phrase_table``.
        phrases: how many phrases there are.

    Returns:
        (n, most + 1) phrase indices, −1 for none; a row of −1 is no preference.
    """
    drawn = np.full((len(targets), table.shape[1] + 1), -1, dtype=np.int64)
    if phrases == 0:
        return drawn
    chosen = np.flatnonzero((generator.random(len(targets)) < trm.preference_share) & (table[targets, 0] >= 0))
    truth = table[targets[chosen]]
    order = np.where(truth >= 0, generator.random(truth.shape), np.inf)
    kept = generator.random(truth.shape) >= trm.phrase_drop
    kept[np.arange(len(chosen)), order.argmin(axis=1)] = True
    drawn[chosen, :-1] = np.where(kept, truth, -1)
    noisy = generator.random(len(chosen)) < trm.phrase_noise
    drawn[chosen, -1] = np.where(noisy, generator.integers(phrases, size=len(chosen)), -1)
    return drawn
