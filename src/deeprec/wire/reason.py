"""Why an answer is not the policy's: a kind, for whoever counts, and a sentence, for whoever reads."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, WithJsonSchema


class ReasonKind(StrEnum):
    """What a reason is counted as; ``DESCRIPTIONS`` says each in words."""

    LATE = "late"
    BUSY = "busy"
    RESTARTING = "restarting"
    INVALID = "invalid"
    POLICY_FAILED = "policy_failed"
    SHADOW = "shadow"
    BUNDLE = "bundle"
    TRM_FAILED = "trm_failed"
    STORE_FAILED = "store_failed"
    UNKNOWN_USER = "unknown_user"
    NO_HISTORY = "no_history"
    FILTERS_LATE = "filters_late"


DESCRIPTIONS = {
    ReasonKind.LATE: "The policy did not finish within the deadline",
    ReasonKind.BUSY: "The policy had no place left",
    ReasonKind.RESTARTING: "The policy was being started",
    ReasonKind.INVALID: "The policy’s answer was not valid",
    ReasonKind.POLICY_FAILED: "The policy failed",
    ReasonKind.SHADOW: "Shadow mode: the policy runs beside",
    ReasonKind.BUNDLE: "The bundle serves the TRM alone",
    ReasonKind.TRM_FAILED: "The TRM failed",
    ReasonKind.STORE_FAILED: "The feature store failed",
    ReasonKind.UNKNOWN_USER: "The user is unknown",
    ReasonKind.NO_HISTORY: "There was no history to go by",
    ReasonKind.FILTERS_LATE: "The filters could not be applied within the deadline",
}

_KINDS = {"type": "string", "enum": [kind.value for kind in ReasonKind]}


class Reason(BaseModel):
    """Why it was not the policy that answered.

    Where both the policy and what answers in its place gave a reason, the kind is the policy's and the sentence has
    both. A kind that a newer server knows is kept as text.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: Annotated[ReasonKind | str, WithJsonSchema(_KINDS)]
    """One of a few words, for counting."""
    sentence: str
    """What happened, for whoever asked."""

    def __str__(self) -> str:
        return self.sentence
