"""A figure of drift and what it comes to: ok, drifted or inconclusive, or that there is nothing to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from deeprec.evaluation.significance import Interval
from deeprec.types import JsonDict

State = Literal["ok", "drifted", "inconclusive", "not compared"]
Outcome = Literal["ok", "drifted", "inconclusive"]
EXIT = {"ok": 0, "drifted": 1, "inconclusive": 2}
"""What the command ends with."""


@dataclass(frozen=True, slots=True)
class Day:
    """The figure of one UTC day (``2026-11-30``), of so many users; None where too few were there."""

    day: str
    value: float | None
    users: int


@dataclass(frozen=True, slots=True)
class Bars:
    """What the figure compares: the share of each cell in training and now."""

    axis: str
    labels: tuple[str, ...]
    training: tuple[float, ...]
    now: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison. ``limit`` is the most that is no drift, or the least where ``at_least``.

    ``value`` and its interval are None where nothing could be measured; ``users`` is how many it was measured on;
    ``why`` the sentence for the state.
    """

    key: str
    name: str
    note: str
    limit: float
    state: State
    why: str
    at_least: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None
    users: int = 0
    days: tuple[Day, ...] = ()
    bars: Bars | None = None

    @property
    def rule(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.at_least else 'most'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Drift:
    """All figures of a bundle (``version``) over the days from ``since`` to ``until`` (ISO 8601), and the verdict."""

    version: str
    since: str
    until: str
    verdict: Outcome
    reason: str
    figures: tuple[Figure, ...]

    def to_json(self) -> JsonDict:
        """Plain values."""
        return asdict(self)


def judge(
    found: Interval | None, limit: float, users: int, min_users: int, *, at_least: bool = False
) -> tuple[State, str]:
    """The state of a figure and why: what decides is on which side of the limit its whole interval lies."""
    if users < min_users:
        return "inconclusive", f"{users:,} users, and fewer than {min_users:,} decide nothing"
    if found is None:
        return "inconclusive", "there is nothing to measure it against"
    beyond = found.high < limit if at_least else found.low > limit
    within = found.low >= limit if at_least else found.high <= limit
    span = f"the 95 % interval {found.low:.3f} to {found.high:.3f}"
    side = ("below" if at_least else "above") if beyond else "within" if within else "on both sides of"
    state: State = "drifted" if beyond else "ok" if within else "inconclusive"
    return state, f"{span} is {side} the limit of {limit:g}"


def whole(figures: Sequence[Figure]) -> tuple[Outcome, str]:
    """The verdict over all figures, and its reason in one line.

    One that has drifted decides; else one that decides nothing leaves the whole open. What cannot be compared counts
    for neither, but for an all of that nothing is known.
    """
    drifted = [figure for figure in figures if figure.state == "drifted"]
    open_ones = [figure for figure in figures if figure.state == "inconclusive"]
    compared = [figure for figure in figures if figure.state != "not compared"]
    if drifted:
        return "drifted", "; ".join(f"{one.name} {one.value:.3f}, limit {one.limit:g}" for one in drifted)
    if not compared:
        return "inconclusive", "nothing could be compared"
    if open_ones:
        well = f"{len(compared) - len(open_ones)} of {len(compared)} figures are within their limits"
        return "inconclusive", f"{well}; nothing can be said of {', '.join(one.name for one in open_ones)}"
    return "ok", f"all {len(compared)} figures that could be compared are within their limits"
