"""What the servers answer, as frozen values.

Fields that a newer server adds are ignored here and kept in ``raw``; a field that is missing or of another type makes
the answer unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from deeprec.types import JsonDict

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One recommended item. ``rank`` is 1-based, ``score`` in [0, 1].

    ``turn`` is the policy's turn that found it, 0 where the policy did not; ``preference`` is what it was found with.
    """

    id: str
    title: str
    rank: int
    score: float
    turn: int = 0
    preference: str | None = None


@dataclass(frozen=True, slots=True)
class FoundItem:
    """One item that a call of the TRM brought back; ``new`` where no call before it had."""

    id: str
    title: str
    score: float
    new: bool = True


@dataclass(frozen=True, slots=True)
class TrmItem:
    """One item of the TRM's own list."""

    id: str
    title: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class TrmCall:
    """One call of the TRM by the policy: what it thought, what it asked for, what came back."""

    turn: int
    preference: str
    items: tuple[FoundItem, ...]
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Milliseconds:
    """Where the server's time went; ``turns`` are the policy's."""

    total: float
    trm: float | None = None
    turns: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Recommended items and how they came about.

    ``path`` is what answered; ``reason`` says why it was not the policy, and is None when it was. ``bundle`` is the
    version that answered. ``calls`` and ``trm`` (the TRM's own list) are there with ``explain``. ``raw`` is the answer
    as the server sent it.
    """

    items: tuple[RecommendedItem, ...]
    path: Literal["policy", "trm", "popularity"]
    bundle: str
    milliseconds: Milliseconds
    user_known: bool = False
    reason: str | None = None
    calls: tuple[TrmCall, ...] = ()
    trm: tuple[TrmItem, ...] = ()
    raw: JsonDict = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction, for ``send``. An ``event_id`` counts once, however often it is sent.

    ``timestamp`` is in the dataset's unit (Unix seconds, or a position), None is now; ``rating`` and ``event`` (what
    kind it was) are kept for the next training.
    """

    event_id: str
    user_id: str
    item_id: str
    timestamp: int | None = None
    rating: float | None = None
    event: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """An event that was not accepted, and why."""

    event_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of the events sent; ``duplicates`` had been accepted before."""

    accepted: int
    duplicates: int = 0
    refused: tuple[RefusedEvent, ...] = ()


_RECOMMENDATION, _STORED = TypeAdapter(Recommendation), TypeAdapter(Stored)


def read_recommendation(answer: JsonDict) -> Recommendation:
    """A recommendation from the server's decoded JSON.

    Raises:
        ValueError: it is something else; the message says what, in one line.
    """
    return _read(_RECOMMENDATION, {**answer, "raw": answer})


def read_stored(answer: JsonDict) -> Stored:
    """What became of events; see ``read_recommendation``."""
    return _read(_STORED, answer)


def _read(kind: TypeAdapter[Answer], answer: JsonDict) -> Answer:
    try:
        return kind.validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
