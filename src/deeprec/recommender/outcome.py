"""What a path answers, whether a policy's exploration may be one, and how both look on the wire.

An answer of the policy is used when it is what the protocol asks for, as many distinct items as it should hold, and
each was retrieved and is permitted. ``Permitted`` holds for every path: neither a policy nor a TRM, be it another
server's, can show an item that the conditions of the request forbid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deeprec.explore.written import thought_of, written
from deeprec.recommender.exploration import Exploration, Step
from deeprec.types import Call, Catalogue, EndReason, JsonDict
from deeprec.wire.reason import Reason
from deeprec.wire.recommendation import FoundItem, Path, RecommendedItem, TrmCall, TrmItem


@dataclass(frozen=True, slots=True)
class Recommended:
    """One recommended item, and the turn (1-based; 0: not found by the policy) and preference that found it."""

    item_id: str
    score: float
    turn: int = 0
    preference: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one path answers; ``reason`` says why it was not the policy, and is None when it was."""

    items: tuple[Recommended, ...]
    path: Path
    reason: Reason | None
    exploration: Exploration | None = None
    milliseconds: JsonDict = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """The answered items."""
        return tuple(item.item_id for item in self.items)


@dataclass(frozen=True, slots=True)
class Permitted:
    """The items that an answer may hold: of the catalogue, not barred, and kept by the request's filters.

    ``mask`` is (items,) bool in catalogue order; None where nothing is filtered.
    """

    catalogue: Catalogue
    barred: AbstractSet[str]
    mask: NDArray[np.bool_] | None = None

    def __contains__(self, item_id: object) -> bool:
        row = self.catalogue.index.get(item_id) if isinstance(item_id, str) else None
        return row is not None and item_id not in self.barred and (self.mask is None or bool(self.mask[row]))

    def first(self, items: Iterable[Recommended], k: int) -> tuple[Recommended, ...]:
        """The first ``k`` of the items that are permitted, each once."""
        kept: dict[str, Recommended] = {}
        for item in items:
            if len(kept) == k:
                break
            if item.item_id in self:
                kept.setdefault(item.item_id, item)
        return tuple(kept.values())


def problem(exploration: Exploration, permitted: Permitted, answer_size: int) -> str | None:
    """Why the exploration's answer cannot be used; None when it can."""
    trajectory = exploration.trajectory
    if trajectory.end is not EndReason.ANSWERED:
        return f"it ended with {trajectory.end.value}"
    if exploration.violations:
        return ", ".join(exploration.violations)
    retrieved = {item.item_id for call in trajectory.calls for item in call.items}
    answered = trajectory.answer
    if len(answered) != answer_size or len(set(answered)) != len(answered):
        return f"not {answer_size} distinct items"
    if any(item is None or item not in retrieved for item in answered):
        return "an item that was not retrieved"
    if any(item not in permitted for item in answered):
        return "an item that the user has had, or that was excluded or filtered out"
    return None


def ranked(exploration: Exploration) -> tuple[Recommended, ...]:
    """The answered items in order, with the call that first found each."""
    found: dict[str, Recommended] = {}
    for turn, call in enumerate(exploration.trajectory.calls, start=1):
        for item in call.items:
            found.setdefault(item.item_id, Recommended(item.item_id, item.score, turn, call.preference.strip()))
    return tuple(found[item_id] for item_id in exploration.trajectory.answer if item_id is not None)


# ------------------------------------------------------------------------------------------------------ on the wire

_ITEM = set(RecommendedItem.model_fields)


def items_on_wire(answer: Answer, catalogue: Catalogue) -> tuple[RecommendedItem, ...]:
    """The answered items, made without checks, which took 4 % of an answer's time."""
    return tuple(
        RecommendedItem.model_construct(
            _ITEM,
            id=item.item_id,
            title=catalogue[item.item_id].title,
            rank=rank,
            score=round(item.score, 4),
            turn=item.turn,
            preference=item.preference,
        )
        for rank, item in enumerate(answer.items, start=1)
    )


def list_on_wire(answer: Answer, catalogue: Catalogue) -> tuple[TrmItem, ...]:
    """The TRM's own list; empty where popularity answered in its place."""
    if answer.path != "trm":
        return ()
    return tuple(
        TrmItem(id=item.item_id, title=catalogue[item.item_id].title, rank=rank, score=round(item.score, 4))
        for rank, item in enumerate(answer.items, start=1)
    )


def calls_on_wire(exploration: Exploration | None, catalogue: Catalogue) -> tuple[TrmCall, ...]:
    """The calls of an exploration, each with the thought before it and what it found."""
    if exploration is None:
        return ()
    trajectory = exploration.trajectory
    seen: set[str] = set()
    texts = zip(trajectory.calls, written(trajectory), strict=False)
    return tuple(
        _call(turn, thought_of(text), call, seen, catalogue) for turn, (call, text) in enumerate(texts, start=1)
    )


def _call(turn: int, thought: str, call: Call, seen: set[str], catalogue: Catalogue) -> TrmCall:
    """``seen``: what earlier calls have found; gets what this one has."""
    items = tuple(
        FoundItem(
            id=item.item_id,
            title=catalogue[item.item_id].title,
            score=round(item.score, 4),
            new=item.item_id not in seen,
        )
        for item in call.items
        if item.item_id in catalogue
    )
    seen.update(item.item_id for item in call.items)
    return TrmCall(turn=turn, thought=thought, preference=call.preference.strip(), items=items)


class Steps:
    """Tells one caller, in order: the TRM's list, then the policy's turns and calls; later ones wait for the list."""

    def __init__(self, on_step: Callable[[JsonDict], None], catalogue: Catalogue) -> None:
        self._on_step, self._catalogue = on_step, catalogue
        self._held: list[JsonDict] | None = []
        self._seen: set[str] = set()

    def trm(self, answer: Answer) -> None:
        """The TRM's list is there, or nothing more is to be expected of it."""
        held, self._held = self._held, None
        if held is not None:
            items = [item.raw for item in list_on_wire(answer, self._catalogue)]
            for step in ({"event": "trm", "items": items}, *held):
                self._on_step(step)

    def policy(self, step: Step) -> None:
        """Something has happened in a turn."""
        told: JsonDict = {"event": "turn", "turn": step.turn}
        if step.call is not None:
            call = _call(step.turn, step.thought, step.call, self._seen, self._catalogue)
            told = {"event": "call", **call.raw}
        if self._held is None:
            self._on_step(told)
        else:
            self._held.append(told)
