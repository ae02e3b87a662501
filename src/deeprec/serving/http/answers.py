"""What the recommender and the TRM answer, as the OpenAPI document describes it.

These types document and test; the answers themselves are plain JSON that ``serving.recommender`` writes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Base: answers hold these fields and no others; docstrings under fields become descriptions."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class AnsweredItem(Shape):
    """One recommended item."""

    id: str
    title: str
    rank: int = Field(ge=1)
    score: float
    """The TRM's match score, or the share of popularity."""
    turn: int = Field(ge=0)
    """The policy's turn that found it, from 1; 0: not found by the policy."""
    preference: str | None
    """The preference that found it."""


class FoundItem(Shape):
    """One item of a call's list."""

    id: str
    title: str
    score: float
    new: bool
    """Whether no earlier call had found it."""


class AnsweredCall(Shape):
    """One call of the TRM by the policy."""

    turn: int = Field(ge=1)
    thought: str
    preference: str
    items: list[FoundItem]


class RankedItem(Shape):
    """One item of the TRM's own list."""

    id: str
    title: str
    rank: int = Field(ge=1)
    score: float


class Milliseconds(Shape):
    """Where the time went."""

    total: float = Field(ge=0)
    trm: float | None = Field(None, ge=0)
    """Until the TRM's answer was there."""
    turns: list[float] | None = None
    """The policy's turns."""


class TrmAnswer(Shape):
    """An answer of ``deeprec-trm``."""

    items: list[AnsweredItem]
    path: Literal["policy", "trm", "popularity"]
    """What answered."""
    reason: str | None = None
    """Why it was not the policy; absent when it was."""
    user_known: bool
    """Whether the feature store knows the user."""
    bundle: str
    """Version of the bundle that answered."""
    milliseconds: Milliseconds


class Recommendation(TrmAnswer):
    """An answer of ``deeprec``; ``calls`` and ``trm`` where ``explain`` asked for them."""

    calls: list[AnsweredCall] | None = None
    trm: list[RankedItem] | None = None
    """The TRM's own list."""
