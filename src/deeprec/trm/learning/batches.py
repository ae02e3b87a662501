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
GRAIN = 8
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded windows: ``inputs`` and ``targets`` (batch, length) rows, ``real`` (batch, length) true where not padded.

    The target of a position is the next item of its window. ``members`` (batch,) are the places of the sequences.
    """

    inputs: Rows
    targets: Rows
    real: NDArray[np.bool_]
    members: Rows


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


def draw_batches(windows: Sequence[Rows], size: int, longest: int, generator: np.random.Generator) -> Iterator[Batch]:
    """Every window once, in batches of similar length, batches in random order.

    Lengths are padded to a multiple of ``GRAIN``, at most ``longest``, so that few shapes occur: a matrix product of a
    shape not seen before is costly to prepare, and kept in memory.
    """
    lengths = np.array([len(window) for window in windows])
    order = np.argsort(lengths * generator.uniform(1 - _JITTER, 1 + _JITTER, len(lengths)), kind="stable")
    starts = np.arange(0, len(order), size)
    for start in generator.permutation(starts):
        yield _pad(windows, order[start : start + size], longest)


def _pad(windows: Sequence[Rows], members: Rows, longest: int) -> Batch:
    chosen = [windows[member] for member in members]
    lengths = np.array([len(window) - 1 for window in chosen])
    shape = (len(chosen), max(min(-(-int(lengths.max()) // GRAIN) * GRAIN, longest), int(lengths.max())))
    inputs, targets = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, window in enumerate(chosen):
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
    return Batch(inputs, targets, np.arange(shape[1]) < lengths[:, None], members)


def phrase_table(catalogue: Catalogue, phrases: Sequence[str]) -> NDArray[np.int32]:
    """(items, most phrases of an item) indices into ``phrases``, −1 for none."""
    index = {phrase: row for row, phrase in enumerate(phrases)}
    counts = np.fromiter((len(item.phrases) for item in catalogue.items), dtype=np.int32, count=len(catalogue))
    table = np.full((len(catalogue), max(int(counts.max(initial=0)), 1)), -1, dtype=np.int32)
    flat = (index[phrase] for item in catalogue.items for phrase in item.phrases)
    table[np.arange(table.shape[1]) < counts[:, None]] = np.fromiter(flat, dtype=np.int32, count=int(counts.sum()))
    return table


@dataclass(frozen=True, slots=True)
class Preferences:
    """Positions that are asked once more, with a preference.

    ``positions`` (m,) of the batch's real positions, ascending; ``phrases`` (m, most + 1) indices, −1 for none, at
    least one a row; ``blind`` (m,) true where the history is not shown.
    """

    positions: Rows
    phrases: NDArray[np.int32]
    blind: NDArray[np.bool_]


def draw_preferences(
    targets: Rows, table: NDArray[np.int32], phrases: int, trm: TrmConfig, generator: np.random.Generator
) -> Preferences:
    """Preferences for ``preference_share`` of the targets, of those that have phrases.

    A preference is the target's phrases, each left out with ``phrase_drop`` (one always stays), and with
    ``phrase_noise`` one phrase drawn from all. ``history_drop`` of them stand without the history; of the others,
    ``false_preference`` are made from the target of another position instead.

    Args:
        targets: (n,) catalogue rows.
        table: of ``phrase_table``.
        phrases: how many phrases there are.
    """
    able = np.flatnonzero(table[targets, 0] >= 0)
    chosen = able[generator.random(len(able)) < trm.preference_share]
    blind = generator.random(len(chosen)) < trm.history_drop
    misled = (generator.random(len(chosen)) < trm.false_preference) & ~blind
    about = chosen.copy()
    about[misled] = able[generator.integers(max(len(able), 1), size=int(misled.sum()))]
    drawn = np.full((len(chosen), table.shape[1] + 1), -1, dtype=np.int32)
    truth = table[targets[about]]
    order = np.where(truth >= 0, generator.random(truth.shape), np.inf)
    kept = generator.random(truth.shape) >= trm.phrase_drop
    kept[np.arange(len(chosen)), order.argmin(axis=1)] = True
    drawn[:, :-1] = np.where(kept, truth, -1)
    noisy = generator.random(len(chosen)) < trm.phrase_noise
    drawn[:, -1] = np.where(noisy, generator.integers(max(phrases, 1), size=len(chosen)), -1)
    return Preferences(chosen, drawn, blind)
