"""What the recommender and the TRM answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deeprec.types import JsonDict
from deeprec.wire.reason import Reason

Path = Literal["policy", "trm", "popularity"]


class Answered(BaseModel):
    """Base: frozen; what a newer server adds is kept; docstrings under fields become descriptions."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @property
    def raw(self) -> JsonDict:
        """The JSON as it goes over the wire: what was not given is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class RecommendedItem(Answered):
    """One recommended item."""

    id: str
    title: str
    rank: int = Field(ge=1)
    score: float
    """The TRM's match score, or the share of popularity."""
    turn: int = Field(0, ge=0)
    """The policy's turn that found it, from 1; 0: not found by the policy."""
    preference: str | None = None
    """The preference that found it."""


class FoundItem(Answered):
    """One item that a call of the TRM brought back."""

    id: str
    title: str
    score: float
    new: bool = True
    """Whether no earlier call had found it."""


class TrmCall(Answered):
    """One call of the TRM by the policy: what it thought, what it asked for, what came back."""

    turn: int = Field(ge=1)
    thought: str = ""
    preference: str
    items: tuple[FoundItem, ...]


class TrmItem(Answered):
    """One item of the TRM's own list."""

    id: str
    title: str
    rank: int = Field(ge=1)
    score: float


class Milliseconds(Answered):
    """Where the server's time went."""

    total: float = Field(ge=0)
    trm: float | None = Field(None, ge=0)
    """Until the TRM's answer was there."""
    turns: tuple[float, ...] = ()
    """The policy's turns."""


class Recommendation(Answered):
    """Recommended items and how they came about; ``calls`` and ``trm`` where ``explain`` asked for them."""

    items: tuple[RecommendedItem, ...]
    path: Path
    """What answered."""
    reason: Reason | None = None
    """Why it was not the policy; absent when it was."""
    user_known: bool = False
    """Whether the feature store knows the user."""
    bundle: str
    """Version of the bundle that answered."""
    milliseconds: Milliseconds
    left_out: tuple[str, ...] = ()
    """Phrases of the preference that could not be encoded in their share of the time; absent when there are none."""
    ignored: tuple[str, ...] = ()
    """Items of the request's history that the catalogue does not have; absent when there are none."""
    calls: tuple[TrmCall, ...] = ()
    """The policy's calls of the TRM."""
    trm: tuple[TrmItem, ...] = ()
    """The TRM's own list."""
