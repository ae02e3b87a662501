"""What was answered, for whoever watches: measures, the request log, the comparison of policy and TRM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deeprec.wire.reason import Reason


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One answer of the recommender (``deeprec``) or of the TRM alone (``deeprec-trm``).

    ``path`` is ``policy``, ``trm`` or ``popularity``, ``reason`` why it was not the policy. Item ids: ``items`` as
    answered, ``trm_items`` the TRM's own list where it was there in time, ``policy_items`` the policy's answer where
    it was valid and in time. ``milliseconds`` is the whole answer, ``turns`` the policy's turns; ``at`` is in seconds
    since 1970. ``shadow``: given in shadow mode, where the TRM answers and the policy runs beside. ``request_id`` is
    the name that the request came with or was given, the same for all of a body's; ``stages`` are the seconds of each
    stage that it had (``store``, ``encode``, ``trm``, ``policy``).
    """

    model: str
    user_id: str | None
    path: str
    reason: Reason | None
    items: tuple[str, ...]
    trm_items: tuple[str, ...]
    policy_items: tuple[str, ...]
    milliseconds: float
    turns: tuple[float, ...]
    deadline_ms: int
    k: int
    version: str
    at: float
    shadow: bool = False
    request_id: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


Observer = Callable[[AnsweredRequest], None]
"""Told of every answer, in the event loop; it has to be quick, and what it raises is logged."""
