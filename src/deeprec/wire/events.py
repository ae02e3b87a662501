"""Interactions that are sent to the servers, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deeprec.wire.ids import Id

MAX_EVENTS = 500
"""Events in one body at most."""
_LATEST = 2**53


def _plain(text: str) -> str:
    if text != text.strip():
        raise ValueError("has white space around it, which no id of a dataset has; remove it")
    return text


PlainId = Annotated[Id, AfterValidator(_plain)]


@dataclass(frozen=True, slots=True)
class Event:
    """An interaction. The same ``event_id`` is accepted once, however often it is sent.

    What is said of the fields is checked where one is read from JSON (``pydantic.TypeAdapter``), not where it is made.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    event_id: PlainId
    """The caller's own id of this event, for example a UUID."""
    user_id: PlainId
    """Who: known or new."""
    item_id: PlainId
    """What: an item of the catalogue."""
    timestamp: Annotated[int | None, Field(strict=True, ge=-_LATEST, le=_LATEST)] = None
    """When, in the dataset's unit (Unix seconds, or a position); now where it is left out."""
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
