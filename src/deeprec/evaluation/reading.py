"""Trajectories prepared for a reader: titles in place of ids, where each answered item came from, what was hit.

Plain values for the template; nothing is escaped here, the template escapes everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deeprec.types import Catalogue, Example, Trajectory

HISTORY_SHOWN = 10


@dataclass(frozen=True, slots=True)
class ReadItem:
    """One line of a list: ``new`` when no earlier call of the rollout returned it."""

    title: str
    score: int
    new: bool
    target: bool


@dataclass(frozen=True, slots=True)
class ReadCall:
    """One call and its list."""

    number: int
    preference: str
    items: tuple[ReadItem, ...]

    @property
    def new_items(self) -> int:
        return sum(item.new for item in self.items)


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """One answered line: the first call that returned the item, and its rank in the TRM's own answer (1-based)."""

    title: str
    call: int | None
    preference: str
    trm_rank: int | None
    target: bool


@dataclass(frozen=True, slots=True)
class ReadTrajectory:
    """One rollout to read. ``outcome`` is ``hit``, ``miss`` or ``invalid``; ``rewards`` are (part, value × weight)."""

    user_id: str
    history: tuple[str, ...]
    earlier: int
    calls: tuple[ReadCall, ...]
    answer: tuple[ReadAnswer, ...]
    target: str
    outcome: str
    summary: str
    rewards: tuple[tuple[str, str], ...]
    text: str


def read(
    trajectory: Trajectory,
    example: Example,
    violations: Sequence[str],
    trm_answer: Sequence[str],
    catalogue: Catalogue,
) -> ReadTrajectory:
    """Resolve one trajectory against the catalogue."""
    source: dict[str, tuple[int, str]] = {}
    calls = []
    for number, call in enumerate(trajectory.calls, 1):
        items = tuple(
            ReadItem(
                _title(catalogue, item.item_id),
                round(100 * item.score),
                item.item_id not in source,
                item.item_id == example.target,
            )
            for item in call.items
        )
        for item in call.items:
            source.setdefault(item.item_id, (number, call.preference))
        calls.append(ReadCall(number, call.preference, items))
    rank = {item_id: place for place, item_id in enumerate(trm_answer, 1)}
    answer = tuple(
        ReadAnswer(
            _title(catalogue, item_id),
            source.get(item_id or "", (None, ""))[0],
            source.get(item_id or "", (None, ""))[1],
            rank.get(item_id or ""),
            item_id == example.target,
        )
        for item_id in trajectory.answer
    )
    outcome, summary = _outcome(trajectory, example, violations, rank, source)
    return ReadTrajectory(
        user_id=example.user_id,
        history=tuple(_title(catalogue, item_id) for item_id in example.history[-HISTORY_SHOWN:]),
        earlier=max(0, len(example.history) - HISTORY_SHOWN),
        calls=tuple(calls),
        answer=answer,
        target=_title(catalogue, example.target),
        outcome=outcome,
        summary=summary,
        rewards=tuple(
            (part.name, "not scored" if part.value is None else f"{part.value:.3g} × {part.weight:g}")
            for part in trajectory.rewards
        ),
        text=trajectory.text,
    )


def choose(outcomes: Sequence[str], count: int) -> list[int]:
    """Which rollouts to print: as far as there are, half hits, a quarter invalid, the rest misses, evenly spaced.

    Returns:
        Indices into ``outcomes`` (``hit``, ``miss``, ``invalid``), ascending.
    """
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
    return sorted(
        places[name][(2 * number + 1) * len(places[name]) // (2 * wanted)]
        for name, wanted in quota.items()
        for number in range(wanted)
    )


def outcome_of(trajectory: Trajectory, example: Example, violations: Sequence[str]) -> str:
    """``invalid`` when a format rule is broken, else ``hit`` or ``miss``."""
    if violations:
        return "invalid"
    return "hit" if example.target in trajectory.answer else "miss"


def _outcome(
    trajectory: Trajectory,
    example: Example,
    violations: Sequence[str],
    trm_rank: dict[str, int],
    source: dict[str, tuple[int, str]],
) -> tuple[str, str]:
    outcome = outcome_of(trajectory, example, violations)
    where = f"the TRM alone had it at {trm_rank[example.target]}" if example.target in trm_rank else "not in TRM alone"
    if outcome == "invalid":
        return outcome, f"counted as a miss: {', '.join(violations)}; ended as {trajectory.end}"
    if outcome == "hit":
        return outcome, f"answered at {trajectory.answer.index(example.target) + 1}; {where}"
    if example.target in source:
        return outcome, f"retrieved by call {source[example.target][0]} but not answered; {where}"
    return outcome, f"never retrieved; {where}"


def _title(catalogue: Catalogue, item_id: str | None) -> str:
    if item_id is None:
        return "(a line that is no retrieved title)"
    return catalogue[item_id].title if item_id in catalogue else f"(unknown item {item_id})"
