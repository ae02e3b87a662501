"""Interactions that are sent to the servers, and what became of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from deeprec.wire.ids import Id

MAX_EVENTS = 500
"""Events in one body at most."""
_LATEST = 2**53


def _seconds(value: Any) -> Any:
    """Unix seconds of a time as ISO 8601 has it, UTC where it names no zone; whole floats as integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    try:
        if "-" not in value:
            raise ValueError
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("give Unix seconds, or ISO 8601 such as 2026-11-29T20:19:26Z") from None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


Timestamp = Annotated[
    int,
    Field(strict=True, ge=-_LATEST, le=_LATEST),
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": -_LATEST, "maximum": _LATEST},
                {"type": "string", "format": "date-time"},
            ]
        }
    ),
]


@dataclass(frozen=True, slots=True)
class Event:
    """An interaction. The same ``event_id`` is accepted once, however often it is sent.

    What is said of the fields is checked where one is read from JSON (``pydantic.TypeAdapter``), not where it is made.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    event_id: Id
    """The caller's own id of this event, for example a UUID."""
    user_id: Id
    """Who: known or new."""
    item_id: Id
    """What: an item of the catalogue."""
    timestamp: Timestamp | None = None
    """When: Unix seconds or ISO 8601, or a position where the dataset's timestamps are an order; now where it is left
    out."""
    rating: Annotated[float | None, Field(strict=True, allow_inf_nan=False)] = None
    """Kept for the next training."""
    event: Annotated[str | None, Field(min_length=1, max_length=100)] = None
    """What kind of interaction it was; kept for the next training."""


class RefusedEvent(BaseModel):
    """An event that was not accepted, and why."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    reason: str


class EventAnswer(BaseModel):
    """What became of one event; ``reason`` where it was refused."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    status: Literal["accepted", "duplicate", "refused"]
    reason: str | None = None


class Stored(BaseModel):
    """What became of a body's events; ``duplicates`` had been accepted before."""

    model_config = ConfigDict(frozen=True)

    accepted: int
    duplicates: int = 0
    refused: tuple[RefusedEvent, ...] = ()
