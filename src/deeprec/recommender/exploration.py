"""The loop as the recommender sees it: one exploration of the catalogue for one request, within a deadline.

``Explorer`` is the port; ``recommender.worker`` implements it with a process of its own. The request's conditions
(preference, exclusions, filters) are part of every call of the TRM, so they hold for whatever the policy does, and
never enter the prompt. Times are ``time.monotonic`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from deeprec.errors import DeepRecError
from deeprec.types import Call, Query, Trajectory
from deeprec.wire.reason import Reason


class Unavailable(DeepRecError):
    """The policy cannot be asked now; the message says why, in words that may be shown to whoever asked."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened in turn ``turn`` (from 1): it began, or (``call``) a call's list came back.

    ``thought`` is what the policy wrote before the call, ready to be shown.
    """

    turn: int
    call: Call | None = None
    thought: str = ""


OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Exploration:
    """One finished exploration: what happened, which format rules it broke, how long each turn took.

    ``milliseconds`` has one entry per turn: the policy's writing and the retrieval it asked for, or the answer.
    """

    trajectory: Trajectory
    violations: tuple[str, ...] = ()
    milliseconds: tuple[float, ...] = ()


class Explorer(Protocol):
    """Port: runs the loop for one user."""

    @property
    def answer_size(self) -> int:
        """Items in a valid answer."""
        ...

    @property
    def available(self) -> bool:
        """Whether it can be asked now."""
        ...

    @property
    def restarts(self) -> int:
        """How often what explores had to be started again."""
        ...

    @property
    def waiting(self) -> int:
        """Explorations waiting or running."""
        ...

    async def loaded(self, timeout: float) -> None:
        """Wait until it could be asked for the first time.

        Raises:
            Unavailable: it cannot be loaded, or was not within ``timeout`` seconds.
        """
        ...

    async def explore(self, user_id: str, query: Query, deadline: float, on_step: OnStep | None = None) -> Exploration:
        """Explore for ``query.history`` under the query's conditions.

        It gives up at about ``deadline``; the caller has to stop waiting by itself. ``on_step`` is called in the
        caller's event loop, in order, and not after the exploration is returned.

        Raises:
            Unavailable: the policy cannot be asked, or ended on the way.
        """
        ...

    def close(self) -> None:
        """End it, and what waits with Unavailable."""
        ...
