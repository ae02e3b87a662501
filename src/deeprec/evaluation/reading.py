"""Trajectories prepared for a reader: titles in place of ids, where each answered item came from, what was hit.

Plain values for a page or a terminal. Titles and what a policy wrote are untrusted: ``plain`` takes out what could move
a cursor or change the direction of a line. Markup is left in; the page sets text, never HTML, and the terminal escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deeprec.explore.written import plain, thought_of, written
from deeprec.types import Call, Catalogue, Example, Trajectory

HISTORY_SHOWN = 10
EXTREME_SHARE = 10
"""One in so many of the rollouts to read is among the highest rewards, and as many among the lowest."""

Found = dict[str, tuple[int, int]]
"""Item id → the call that first returned it and its rank there, both 1-based."""


@dataclass(frozen=True, slots=True)
class ReadItem:
    """One line of a list. ``score`` is 0–100; ``first`` the call that returned it first, 1-based."""

    item_id: str
    title: str
    score: int
    first: int
    new: bool
    target: bool


@dataclass(frozen=True, slots=True)
class ReadCall:
    """One call: the thought before it, the preference as written, and its list."""

    number: int
    thought: str
    preference: str
    items: tuple[ReadItem, ...]

    @property
    def new_items(self) -> int:
        return sum(item.new for item in self.items)


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """One answered line, and the first call that returned the item with its preference and the item's rank there.

    ``trm_rank`` is the item's rank in the TRM's own answer. Ranks are 1-based; None where there is none.
    """

    item_id: str | None
    title: str
    call: int | None
    rank: int | None
    preference: str
    trm_rank: int | None
    target: bool


@dataclass(frozen=True, slots=True)
class ReadReward:
    """One reward part; ``value`` is None where it was not scored."""

    name: str
    value: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class ReadTrajectory:
    """One rollout to read.

    ``outcome`` is ``hit``, ``miss`` or ``invalid``, ``summary`` says it in words; ``end`` why it ended and
    ``violations`` the format rules it breaks; ``thought`` what was written after the last list but for the answer,
    ``ending`` all that was; ``trm`` the titles of the TRM's own answer; ``found`` the call that first returned the
    target and ``answered`` the target's rank in the answer (0: none).
    """

    user_id: str
    history: tuple[str, ...]
    earlier: int
    calls: tuple[ReadCall, ...]
    thought: str
    ending: str
    answer: tuple[ReadAnswer, ...]
    trm: tuple[str, ...]
    target: str
    found: int
    answered: int
    outcome: str
    summary: str
    end: str
    violations: tuple[str, ...]
    rewards: tuple[ReadReward, ...]

    @property
    def reward(self) -> float | None:
        """Weighted sum of the scored parts; None when no part was scored."""
        scored = [part.value * part.weight for part in self.rewards if part.value is not None]
        return sum(scored) if scored else None


def read(
    trajectory: Trajectory,
    example: Example,
    violations: Sequence[str],
    trm_answer: Sequence[str],
    catalogue: Catalogue,
) -> ReadTrajectory:
    """Resolve one trajectory against the catalogue."""
    found: Found = {}
    *before, ending = written(trajectory)
    calls = [
        read_call(number, call, text, found, catalogue, example.target)
        for number, (call, text) in enumerate(zip(trajectory.calls, before, strict=True), 1)
    ]
    outcome = outcome_of(trajectory, example, violations)
    answered = 1 + trajectory.answer.index(example.target) if example.target in trajectory.answer else 0
    return ReadTrajectory(
        user_id=plain(example.user_id),
        history=tuple(title_of(catalogue, item_id) for item_id in example.history[-HISTORY_SHOWN:]),
        earlier=max(0, len(example.history) - HISTORY_SHOWN),
        calls=tuple(calls),
        thought=thought_of(ending),
        ending=plain(ending, lines=True),
        answer=read_answer(trajectory, found, trm_answer, catalogue, example.target),
        trm=tuple(title_of(catalogue, item_id) for item_id in trm_answer),
        target=title_of(catalogue, example.target),
        found=found.get(example.target, (0, 0))[0],
        answered=answered,
        outcome=outcome,
        summary=_summary(outcome, trajectory, example.target, violations, trm_answer, found),
        end=str(trajectory.end),
        violations=tuple(violations),
        rewards=tuple(
            ReadReward(part.name, None if part.value is None or math.isnan(part.value) else part.value, part.weight)
            for part in trajectory.rewards
        ),
    )


def read_call(
    number: int, call: Call, text: str, found: Found, catalogue: Catalogue, target: str | None = None
) -> ReadCall:
    """Resolve the rollout's call ``number`` (1-based), made by writing ``text``; ``found`` gets what it found first."""
    for rank, item in enumerate(call.items, 1):
        found.setdefault(item.item_id, (number, rank))
    items = tuple(
        ReadItem(
            item.item_id,
            title_of(catalogue, item.item_id),
            round(100 * item.score),
            found[item.item_id][0],
            found[item.item_id] == (number, rank),
            item.item_id == target,
        )
        for rank, item in enumerate(call.items, 1)
    )
    return ReadCall(number, thought_of(text), plain(call.preference), items)


def read_answer(
    trajectory: Trajectory,
    found: Mapping[str, tuple[int, int]],
    trm_answer: Sequence[str],
    catalogue: Catalogue,
    target: str | None = None,
) -> tuple[ReadAnswer, ...]:
    """Resolve the answer of a rollout whose calls ``found`` knows."""
    lines = []
    for item_id in trajectory.answer:
        call, rank = found.get(item_id or "", (None, None))
        lines.append(
            ReadAnswer(
                item_id,
                title_of(catalogue, item_id),
                call,
                rank,
                plain(trajectory.calls[call - 1].preference) if call else "",
                1 + trm_answer.index(item_id) if item_id in trm_answer else None,
                item_id is not None and item_id == target,
            )
        )
    return tuple(lines)


def title_of(catalogue: Catalogue, item_id: str | None) -> str:
    """An item's title, ready to be shown."""
    if item_id is None:
        return "(a line that is no retrieved title)"
    return plain(catalogue[item_id].title if item_id in catalogue else f"(unknown item {item_id})")


def choose(outcomes: Sequence[str], rewards: Sequence[float], count: int) -> list[int]:
    """Which rollouts to read: a tenth of the highest reward, a tenth of the lowest, and a spread over the others.

    The spread holds, as far as there are, half hits, a quarter invalid and the rest misses, evenly spaced. A tenth is
    rounded down: fewer than ten rollouts are all of the spread.

    Args:
        outcomes: ``hit``, ``miss`` or ``invalid`` for each rollout.
        rewards: the reward of each; ties go to the rollout that comes first.
        count: rollouts at most.

    Returns:
        Indices, ascending.
    """
    extremes = min(count, len(outcomes)) // EXTREME_SHARE
    order = sorted(range(len(outcomes)), key=lambda place: -rewards[place])
    high, rest = order[:extremes], order[extremes:]
    low = sorted(rest, key=lambda place: (rewards[place], place))[:extremes]
    others = sorted(set(rest) - set(low))
    spread = _spread([outcomes[place] for place in others], count - 2 * extremes)
    return sorted([*high, *low, *(others[place] for place in spread)])


def _spread(outcomes: Sequence[str], count: int) -> list[int]:
    places = {
        name: [place for place, outcome in enumerate(outcomes) if outcome == name]
        for name in ("hit", "invalid", "miss")
    }
    quota = {
        "hit": min(len(places["hit"]), (count + 1) // 2),
        "invalid": min(len(places["invalid"]), count // 4),
        "miss": 0,
    }
    for name in ("miss", "hit", "invalid"):
        quota[name] += min(len(places[name]) - quota[name], count - sum(quota.values()))
    return [
        places[name][(2 * number + 1) * len(places[name]) // (2 * wanted)]
        for name, wanted in quota.items()
        for number in range(wanted)
    ]


def outcome_of(trajectory: Trajectory, example: Example, violations: Sequence[str]) -> str:
    """``invalid`` when a format rule is broken, else ``hit`` or ``miss``."""
    if violations:
        return "invalid"
    return "hit" if example.target in trajectory.answer else "miss"


def _summary(
    outcome: str,
    trajectory: Trajectory,
    target: str,
    violations: Sequence[str],
    trm_answer: Sequence[str],
    found: Found,
) -> str:
    where = f"the TRM alone had it at {1 + trm_answer.index(target)}" if target in trm_answer else "not in TRM alone"
    if outcome == "invalid":
        return f"counted as a miss: {', '.join(violations)}; ended as {trajectory.end}"
    if outcome == "hit":
        return f"answered at {trajectory.answer.index(target) + 1}; {where}"
    if target in found:
        return f"retrieved by call {found[target][0]} but not answered; {where}"
    return f"never retrieved; {where}"
