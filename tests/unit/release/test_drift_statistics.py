"""Divergences and intervals of drift: counted by hand, quiet where nothing moved, and loud where much did."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeprec.bundle.snapshot import Distribution, by_user, distribution
from deeprec.config import DriftConfig
from deeprec.evaluation.significance import Interval
from deeprec.release.drift.figure import Figure, judge, whole
from deeprec.release.drift.statistics import (
    MOST_BLOCKS,
    jensen_shannon,
    jensen_shannon_of_counts,
    loss,
    psi,
    psi_of_counts,
    share,
    shift,
    smoothed,
)

SEEDS = 200
LIMITS = DriftConfig()


def test_psi_by_hand() -> None:
    """(0.25 - 0.5) ln 0.5 + (0.75 - 0.5) ln 1.5 = 0.25 ln 3."""
    found = psi(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    assert found == pytest.approx(0.25 * math.log(3))
    assert psi(np.array([0.25, 0.75]), np.array([0.5, 0.5])) == pytest.approx(found)
    assert psi(np.array([0.5, 0.5]), np.array([[0.5, 0.5], [0.25, 0.75]])).tolist() == pytest.approx([0, found])


def test_jensen_shannon_by_hand() -> None:
    """Of (1, 0) and (1/2, 1/2) the mean is (3/4, 1/4): half of log2(4/3), and half of (log2(2/3) + log2 2) / 2."""
    whole_, half = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + 1) / 2) / 2
    assert jensen_shannon(whole_, half) == pytest.approx(by_hand)
    assert jensen_shannon(half, whole_) == pytest.approx(by_hand)
    assert jensen_shannon(half, half) == 0
    assert jensen_shannon(whole_, np.array([0.0, 1.0])) == pytest.approx(1)
    assert jensen_shannon_of_counts(np.array([7.0, 0.0]), np.array([4.0, 4.0])) == pytest.approx(by_hand)


def test_no_smoothed_share_is_zero() -> None:
    assert smoothed(np.array([0.0, 3.0])).tolist() == [0.125, 0.875]
    assert psi_of_counts(np.array([0.0, 3.0]), np.array([3.0, 0.0])) == pytest.approx(1.5 * math.log(7))


def test_a_share_and_a_loss_by_hand() -> None:
    table = np.array([[1, 2], [0, 2]])
    found = share(table)
    assert found.mean == 0.25
    assert (found.low, found.high) == (0.0, 0.5), "of two users, a resample has one of them twice or both"
    assert share(np.tile(table, (200, 1))).low > 0.2
    gone = loss(np.tile([[2, 4]], (50, 1)), np.tile([[1, 4]], (50, 1)))
    assert gone == Interval(0.5, 0.5, 0.5)
    assert loss(np.array([[0, 4]]), np.array([[1, 4]])) is None


def test_blocks_of_users_say_what_users_say() -> None:
    generator = np.random.default_rng(0)
    cases = 1 + generator.poisson(3, size=5 * MOST_BLOCKS)
    table = np.stack([generator.binomial(cases, 0.3), cases], axis=1)
    found = share(table)
    spread = math.sqrt(0.3 * 0.7 / cases.sum())
    assert found.mean == table[:, 0].sum() / cases.sum()
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def draws(generator: np.random.Generator, users: int, shares: list[float]) -> tuple[Distribution, np.ndarray]:
    """(users, cells) counts of users who stick to a cell, four draws each, and the same as training's distribution."""
    favourite = generator.choice(len(shares), p=shares, size=(users, 1))
    other = generator.choice(len(shares), p=shares, size=(users, 4))
    cells = np.where(generator.random((users, 4)) < 0.5, favourite, other)
    table = by_user(np.repeat(np.arange(users), 4), cells.reshape(-1), len(shares))
    return distribution(table), table


EVEN = [0.1] * 10
TILTED = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02]


@pytest.mark.parametrize(
    ("divergence", "limit"),
    [(psi_of_counts, LIMITS.max_psi), (jensen_shannon_of_counts, LIMITS.max_popularity_shift)],
)
def test_two_samples_of_one_distribution_are_no_drift(divergence: object, limit: float) -> None:
    """Nor at a limit of zero, where the interval alone decides: 2.5 % may be above it."""
    drifted = above_zero = 0
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        trained, _ = draws(generator, 300, TILTED)
        _, now = draws(generator, LIMITS.min_users, TILTED)
        found = shift(trained, now, divergence, seed)  # type: ignore[arg-type]
        drifted += judge(found, limit, len(now), LIMITS.min_users)[0] == "drifted"
        above_zero += found.low > 0
    assert drifted == 0
    assert above_zero <= 0.05 * SEEDS


def answered(generator: np.random.Generator, users: int, part: float) -> np.ndarray:
    """(users, 2) hits and cases of users who differ in how often they are hits: on average that part of them."""
    cases = 1 + generator.poisson(3, size=users)
    return np.stack([generator.binomial(cases, generator.beta(10 * part, 10 * (1 - part), size=users)), cases], axis=1)


def test_shares_of_one_distribution_are_no_drift() -> None:
    """Even of a share that is at its limit, which chance puts above it half of the time; of a loss, all but never."""
    limit, high, lost = LIMITS.max_popularity_answers, 0, 0
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        now, before = answered(generator, LIMITS.min_users, limit), answered(generator, LIMITS.min_users, limit)
        high += judge(share(now, seed), limit, len(now), LIMITS.min_users)[0] == "drifted"
        lost += judge(loss(before, now, seed), LIMITS.max_hit_loss, len(now), LIMITS.min_users)[0] == "drifted"
    assert high <= 0.05 * SEEDS
    assert lost <= 0.01 * SEEDS


def test_a_share_and_a_loss_that_are_clear_are_found() -> None:
    generator = np.random.default_rng(0)
    before, now = answered(generator, 1000, 0.6), answered(generator, 1000, 0.3)
    assert judge(share(now), LIMITS.max_popularity_answers, 1000, LIMITS.min_users)[0] == "drifted"
    assert judge(share(now), LIMITS.min_policy_answers, 1000, LIMITS.min_users, at_least=True)[0] == "drifted"
    found = loss(before, now)
    assert found is not None
    assert found.mean == pytest.approx(0.5, abs=0.05)
    assert judge(found, LIMITS.max_hit_loss, 1000, LIMITS.min_users)[0] == "drifted"


@pytest.mark.parametrize(
    ("divergence", "limit"),
    [(psi_of_counts, LIMITS.max_psi), (jensen_shannon_of_counts, 0.05)],
)
def test_a_clear_shift_is_found_and_its_size_is_right(divergence: object, limit: float) -> None:
    shares = np.array([EVEN, TILTED])
    true = psi(*shares) if divergence is psi_of_counts else jensen_shannon(*shares)
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        trained, _ = draws(generator, 2000, EVEN)
        _, now = draws(generator, 800, TILTED)
        found.append(shift(trained, now, divergence, seed))  # type: ignore[arg-type]
    states = [judge(one, limit, 800, LIMITS.min_users)[0] for one in found]
    assert states.count("drifted") >= 38
    assert np.mean([one.mean for one in found]) == pytest.approx(float(true), rel=0.08)
    assert sum(one.low <= true <= one.high for one in found) >= 34


def test_a_small_training_sample_is_no_drift() -> None:
    """The same shares of the users seen now: worth ten draws, training could as well have seen these."""
    _, now = draws(np.random.default_rng(0), 2000, EVEN)
    few, many = (
        Distribution((2, 1, 0, 1, 1, 1, 1, 1, 1, 1), 10.0),
        Distribution((2, 1, 0, 1, 1, 1, 1, 1, 1, 1), 10_000.0),
    )
    assert shift(few, now, psi_of_counts).low == 0
    assert shift(many, now, psi_of_counts).low > LIMITS.max_psi


@pytest.mark.parametrize(
    ("low", "high", "users", "at_least", "state"),
    [
        (0.1, 0.2, 200, False, "ok"),
        (0.1, 0.3, 200, False, "inconclusive"),
        (0.21, 0.3, 200, False, "drifted"),
        (0.21, 0.3, 199, False, "inconclusive"),
        (0.2, 0.3, 200, True, "ok"),
        (0.1, 0.3, 200, True, "inconclusive"),
        (0.1, 0.19, 200, True, "drifted"),
        (0.1, 0.19, 199, True, "inconclusive"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, users: int, at_least: bool, state: str) -> None:
    assert judge(Interval(0.2, low, high), 0.2, users, 200, at_least=at_least)[0] == state


def figure(state: str) -> Figure:
    return Figure(state, f"the {state} one", "", 0.1, state, "", value=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "verdict", "reason"),
    [
        (["ok", "not compared"], "ok", "all 1 figures that could be compared are within their limits"),
        (["ok", "inconclusive", "drifted"], "drifted", "the drifted one 0.500, limit 0.1"),
        (
            ["ok", "inconclusive", "not compared"],
            "inconclusive",
            "1 of 2 figures are within their limits; nothing can be said of the inconclusive one",
        ),
        (["not compared"], "inconclusive", "nothing could be compared"),
    ],
)
def test_the_verdict_over_all(states: list[str], verdict: str, reason: str) -> None:
    assert whole([figure(state) for state in states]) == (verdict, reason)
