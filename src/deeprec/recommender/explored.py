"""What becomes of one exploration for one request: items that may be answered, or the reason why there are none."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from deeprec.recommender.deadline import RequestClock
from deeprec.recommender.exploration import Exploration, Explorer, OnStep, Unavailable
from deeprec.recommender.outcome import Permitted, Recommended, problem, ranked
from deeprec.types import EndReason, Query
from deeprec.wire.reason import Reason, ReasonKind

logger = logging.getLogger(__name__)

_FAILED = Reason(kind=ReasonKind.POLICY_FAILED, sentence="the policy failed")


@dataclass(frozen=True, slots=True)
class Explored:
    """What became of an exploration: the answered items, or the reason why there are none."""

    items: tuple[Recommended, ...] = ()
    reason: Reason | None = None
    exploration: Exploration | None = None

    @property
    def turns(self) -> tuple[float, ...]:
        """Milliseconds of the policy's turns."""
        return () if self.exploration is None else self.exploration.milliseconds


NOTHING = Explored()
"""No exploration was asked for."""


async def explore_for(
    explorer: Explorer,
    user_id: str,
    query: Query,
    permitted: Permitted,
    clock: RequestClock,
    on_step: OnStep | None,
) -> Explored:
    """What became of the exploration. Whatever an explorer raises is a reason why there is no answer of it."""
    late = Reason(kind=ReasonKind.LATE, sentence=f"the policy did not finish within {clock.deadline_ms} ms")
    try:
        with clock.stage("policy"):
            async with asyncio.timeout(clock.left):
                exploration = await explorer.explore(user_id, query, clock.deadline, on_step)
    except TimeoutError:
        return Explored(reason=late)
    except Unavailable as error:
        return Explored(reason=error.reason if clock.left else late)
    except Exception:
        logger.exception("the policy failed")
        return Explored(reason=_FAILED)
    if exploration.trajectory.end is EndReason.DEADLINE:
        return Explored((), late, exploration)
    wrong = problem(exploration, permitted, explorer.answer_size)
    if wrong is not None:
        invalid = Reason(kind=ReasonKind.INVALID, sentence=f"the policy's answer is not valid ({wrong})")
        return Explored((), invalid, exploration)
    return Explored(ranked(exploration), None, exploration)
