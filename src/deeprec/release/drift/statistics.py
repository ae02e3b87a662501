"""The numbers of drift: two divergences of shares, and how sure a figure is.

Users are what is resampled, as everywhere (``evaluation.significance``): a figure is a function of columns' means over
users. What training saw is a sample too, and is drawn anew with each resample, as many independent draws as it is worth
(``Snapshot``'s ``effective``), so that a small training sample is no drift.

A divergence is never below zero, so that chance alone makes it larger, and drawing a sample again as much once more.
What the resamples add on average is therefore taken off the observed value, and the interval is the basic one, the
resamples' quantiles mirrored at it (Davison and Hinkley, 1997, section 5.2), which ends at the observed value at the
earliest: near zero the mirror image can lie below it. Shares have the percentile interval.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deeprec.bundle.snapshot import Distribution
from deeprec.evaluation.significance import CONFIDENCE, Interval, bootstrap_means, interval

RESAMPLES = 1000
MOST_BLOCKS = 2000
"""Of more users, so many groups of them are resampled, which says the same in less time."""
_HALF = 0.5

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Divergence = Callable[[Floats, Floats], Floats]


def psi(expected: Floats, found: Floats) -> Floats:
    """The population stability index of shares (…, cells), all above zero.

    Σ (found − expected) ln(found / expected), over the cells.
    """
    index: Floats = ((found - expected) * np.log(found / expected)).sum(axis=-1)
    return index


def jensen_shannon(first: Floats, second: Floats) -> Floats:
    """The Jensen–Shannon divergence of shares (…, cells) in bits: 0 for equal ones, 1 for those that share no cell.

    Lin, 1991: half the Kullback–Leibler divergences of both from their mean.
    """
    middle = (first + second) / 2
    found: Floats = (_relative_entropy(first, middle) + _relative_entropy(second, middle)) / 2
    return found


def smoothed(counts: Floats) -> Floats:
    """Shares of counts (…, cells), half a count added to each cell, so that none is zero."""
    raised = counts + _HALF
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def shift(trained: Distribution, table: Integers, divergence: Divergence, seed: int = 0) -> Interval:
    """How far what users do is from what training saw, with what chance adds taken off.

    Args:
        table: (users, cells) counts; at least one.
        divergence: of training's counts and these users', (…, cells) each.
    """
    shares = trained.shares
    worth = max(round(trained.effective), 1)
    observed = float(divergence(shares * worth, table.sum(axis=0).astype(np.float64)))
    drawn = np.random.default_rng(seed + 1).multinomial(worth, shares, size=RESAMPLES).astype(np.float64)
    again = divergence(drawn, _resampled(table, seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(again, [tail, 1 - tail])
    mean, least = (max(2 * observed - float(end), 0.0) for end in (again.mean(), high))
    return Interval(mean, least, max(2 * observed - float(low), observed))


def psi_of_counts(expected: Floats, found: Floats) -> Floats:
    """``psi`` of smoothed counts."""
    return psi(smoothed(expected), smoothed(found))


def jensen_shannon_of_counts(first: Floats, second: Floats) -> Floats:
    """``jensen_shannon`` of counts; neither may be empty."""
    return jensen_shannon(_shares(first), _shares(second))


def share(table: Integers, seed: int = 0) -> Interval:
    """A share over all users' cases.

    Args:
        table: (users, 2) each user's hits and cases; at least one case.
    """
    hits, cases = table.sum(axis=0)
    return interval(_ratio(_resampled(table, seed)), hits / cases)


def loss(before: Integers, after: Integers, seed: int = 0) -> Interval | None:
    """The part of a share that was lost from ``before`` to ``after``, (users, 2) as for ``share``; None where it was 0.

    The two are drawn apart from one another, as if no user were in both: users who are in both make the interval a
    little wider than it had to be.
    """
    was, now = (float(hits / cases) for hits, cases in (before.sum(axis=0), after.sum(axis=0)))
    earlier, later = _ratio(_resampled(before, seed)), _ratio(_resampled(after, seed + 1))
    if not was or not earlier.all():
        return None
    return interval(1 - later / earlier, 1 - now / was)


def _relative_entropy(shares: Floats, of: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        bits: Floats = np.where(shares > 0, shares * np.log2(shares / of), 0.0).sum(axis=-1)
    return bits


def _resampled(table: Integers, seed: int) -> Floats:
    """(resamples, columns) sums over users drawn with replacement."""
    blocks = table
    if len(table) > MOST_BLOCKS:
        block = np.random.default_rng(seed).permutation(len(table)) % MOST_BLOCKS
        blocks = np.zeros((MOST_BLOCKS, table.shape[1]), dtype=np.int64)
        np.add.at(blocks, block, table)
    sums: Floats = bootstrap_means(blocks.astype(np.float64), RESAMPLES, seed) * len(blocks)
    return sums


def _ratio(sums: Floats) -> Floats:
    """Hits by cases; a resample without a case is one without a hit."""
    found: Floats = sums[:, 0] / np.maximum(sums[:, 1], 1e-9)
    return found


def _shares(counts: Floats) -> Floats:
    shares: Floats = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-9)
    return shares
