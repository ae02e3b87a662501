"""The recommender without a server: history in, recommended items out, always within what the request asked for.

Contract: an answer holds only catalogue items, none twice, none that the user has had or asked to leave out. Three
paths answer, the first that can: the policy's exploration (valid and in time), the TRM alone, popularity (no history
and no preference). The TRM's answer is computed before the exploration starts, so that it is ready when the deadline
passes; the deadline bounds the exploration, not the TRM. Models run in threads; the event loop never waits on one.

A preference in the request is added to every call of the TRM, in each path. When k is larger than the policy's answer,
the TRM's items follow it, with turn 0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError, RequestError, TrmError
from deeprec.serving.exploration import Exploration, Explorer
from deeprec.serving.request import RecommendRequest, TrmOnlyRequest, TrmRequest
from deeprec.trm.filters import filter_mask
from deeprec.types import Catalogue, EndReason, JsonDict, Query, Retriever

logger = logging.getLogger(__name__)

Path = Literal["policy", "trm", "popularity"]
Result = TypeVar("Result")


class Histories(Protocol):
    """Port: users' complete histories. Implemented by ``features.store.HistoryStore``."""

    def history(self, user_id: str) -> tuple[str, ...] | None:
        """Item ids, oldest first; None for a user never seen."""
        ...


@dataclass(frozen=True, slots=True)
class Recommended:
    """One recommended item, and the turn (1-based; 0: not found by the policy) and preference that found it."""

    item_id: str
    score: float
    turn: int = 0
    preference: str | None = None


@dataclass(frozen=True, slots=True)
class User:
    """Who asks: the history that models read (catalogue items only), everything had, and where it came from."""

    user_id: str
    history: tuple[str, ...] = ()
    had: frozenset[str] = frozenset()
    known: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one path answers; ``reason`` says why it was not the policy, and is None when it was."""

    items: tuple[Recommended, ...]
    path: Path
    reason: str | None
    exploration: Exploration | None = None
    milliseconds: JsonDict = field(default_factory=dict)


class Recommender:
    """Answers requests from one bundle's models.

    Args:
        catalogue: the items that may be recommended.
        popularity: (items,) training counts, catalogue order.
        retriever: the TRM.
        explorer: the loop; None serves the TRM.
        why_trm: the sentence that says why, when there is no explorer.
        histories: the feature store; None: only histories in requests are known.
        serving: limits, default deadline and threads.
        version: the bundle's version, repeated in every answer.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        popularity: NDArray[np.int64],
        retriever: Retriever,
        *,
        explorer: Explorer | None = None,
        why_trm: str = "this bundle serves the TRM alone",
        histories: Histories | None = None,
        serving: ServingConfig | None = None,
        version: str = "none",
    ) -> None:
        self.catalogue = catalogue
        self.serving = serving or ServingConfig()
        self.version = version
        self._counts = popularity
        self._by_popularity = np.argsort(-popularity, kind="stable")
        self._retriever = retriever
        self._explorer = explorer
        self._why_trm = why_trm
        self._histories = histories
        self._trm_threads = ThreadPoolExecutor(self.serving.workers, thread_name_prefix="trm")
        self._policy_threads = ThreadPoolExecutor(self.serving.workers, thread_name_prefix="policy")

    def close(self) -> None:
        """Let running work end and start none."""
        self._trm_threads.shutdown(wait=False, cancel_futures=True)
        self._policy_threads.shutdown(wait=False, cancel_futures=True)

    async def retrieve(self, request: TrmOnlyRequest) -> JsonDict:
        """The TRM's answer, or popularity's for a request without history and preference, as JSON."""
        started = time.monotonic()
        user = await self._in_trm_thread(partial(self._user, request))
        answer = await self._in_trm_thread(partial(self._without_policy, request, user, request.allow_seen))
        return self._response(answer, user, started)

    async def recommend(self, request: RecommendRequest) -> JsonDict:
        """The best path's answer as JSON; see the module's contract."""
        started = time.monotonic()
        deadline = started + (request.deadline_ms or self.serving.deadline_ms) / 1000
        user = await self._in_trm_thread(partial(self._user, request))
        floor = await self._in_trm_thread(partial(self._without_policy, request, user))
        floor = replace(floor, milliseconds={"trm": _milliseconds(started)})
        answer = floor
        if user.history and floor.path == "trm":
            answer = await self._with_policy(request, user, floor, started, deadline)
        response = self._response(answer, user, started)
        if request.explain:
            response["calls"] = self._calls(answer.exploration)
        return response

    async def _in_trm_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._trm_threads, work)

    def _user(self, request: TrmRequest) -> User:
        self._check_filters(request)
        name = request.user_id or "unknown"
        if request.history is not None:
            return User(name, request.history, frozenset(request.history), note="the request's history is empty")
        if request.user_id is None:
            return User(name, note="the request names no user and gives no history")
        if self._histories is None:
            return User(name, note="this server has no feature store, so users are unknown; give a history")
        try:
            history = self._histories.history(request.user_id)
        except FeatureError:
            logger.exception("the feature store failed")
            return User(name, note="the feature store failed, so the user's history is unknown")
        if history is None:
            return User(name, note="the user is unknown")
        usable = tuple(item_id for item_id in history if item_id in self.catalogue)
        return User(name, usable, frozenset(history), known=True, note="the user's history holds no catalogue item")

    def _check_filters(self, request: TrmRequest) -> None:
        for condition in request.conditions:
            try:
                filter_mask(self.catalogue, condition)
            except TrmError as error:
                raise RequestError(f"filters: {error}") from error

    def _query(self, request: TrmRequest, user: User, allow_seen: bool = False) -> Query:
        had = frozenset() if allow_seen else user.had
        return Query(
            history=user.history,
            preference=request.phrases,
            exclude=had | frozenset(request.exclude),
            filters=request.conditions,
            allow_seen=allow_seen,
        )

    def _without_policy(self, request: TrmRequest, user: User, allow_seen: bool = False) -> Answer:
        query = self._query(request, user, allow_seen)
        if not query.history and not query.preference:
            return self._popular(query, request.k, user.note)
        try:
            found = self._retriever.retrieve([query], request.k)[0]
        except Exception:
            logger.exception("the TRM failed")
            return self._popular(query, request.k, "the TRM failed")
        preference = "; ".join(query.preference) or None
        items = self._allowed(
            (Recommended(item.item_id, item.score, 0, preference) for item in found), query.exclude, request.k
        )
        return Answer(items, "trm", self._why_trm if user.history else user.note)

    def _popular(self, query: Query, k: int, reason: str | None) -> Answer:
        scores = np.log1p(self._counts) / np.log1p(max(int(self._counts.max(initial=0)), 1))
        allowed = np.ones(len(self.catalogue), dtype=bool)
        for condition in query.filters:
            allowed &= filter_mask(self.catalogue, condition)
        rows = (
            Recommended(self.catalogue.items[row].item_id, float(scores[row]))
            for row in self._by_popularity
            if allowed[row]
        )
        return Answer(self._allowed(rows, query.exclude, k), "popularity", reason)

    def _allowed(self, items: Iterable[Recommended], barred: AbstractSet[str], k: int) -> tuple[Recommended, ...]:
        kept: dict[str, Recommended] = {}
        for item in items:
            if len(kept) == k:
                break
            if item.item_id in self.catalogue and item.item_id not in barred:
                kept.setdefault(item.item_id, item)
        return tuple(kept.values())

    async def _with_policy(
        self, request: RecommendRequest, user: User, floor: Answer, started: float, deadline: float
    ) -> Answer:
        if self._explorer is None:
            return floor
        query = self._query(request, user)
        late = f"the policy did not finish within {round(1000 * (deadline - started))} ms"
        work = self._policy_threads.submit(self._explorer.explore, user.user_id, query, deadline)
        try:
            remaining = max(deadline - time.monotonic(), 0.0)
            exploration = await asyncio.wait_for(asyncio.wrap_future(work), remaining)
        except TimeoutError:
            return _because(floor, late)
        except Exception:
            logger.exception("the policy failed")
            return _because(floor, "the policy failed")
        if exploration.trajectory.end is EndReason.DEADLINE:
            return _because(floor, late, exploration)
        problem = self._problem(exploration, query)
        if problem is not None:
            return _because(floor, f"the policy's answer is not valid ({problem})", exploration)
        items = (*self._ranked(exploration), *floor.items)
        timings = {**floor.milliseconds, "turns": list(exploration.milliseconds)}
        return Answer(self._allowed(items, query.exclude, request.k), "policy", None, exploration, timings)

    def _problem(self, exploration: Exploration, query: Query) -> str | None:
        trajectory = exploration.trajectory
        if trajectory.end is not EndReason.ANSWERED:
            return f"it ended with {trajectory.end.value}"
        if exploration.violations:
            return ", ".join(exploration.violations)
        assert self._explorer is not None
        retrieved = {item.item_id for call in trajectory.calls for item in call.items}
        answered = trajectory.answer
        if len(answered) != self._explorer.answer_size or len(set(answered)) != len(answered):
            return f"not {self._explorer.answer_size} distinct items"
        if any(item is None or item not in retrieved or item not in self.catalogue for item in answered):
            return "an item that was not retrieved"
        if any(item in query.exclude for item in answered):
            return "an item that the user has had or that was excluded"
        return None

    def _ranked(self, exploration: Exploration) -> tuple[Recommended, ...]:
        found: dict[str, Recommended] = {}
        for turn, call in enumerate(exploration.trajectory.calls, start=1):
            for item in call.items:
                found.setdefault(item.item_id, Recommended(item.item_id, item.score, turn, call.preference.strip()))
        return tuple(found[item_id] for item_id in exploration.trajectory.answer if item_id is not None)

    def _response(self, answer: Answer, user: User, started: float) -> JsonDict:
        items = [
            {
                "id": item.item_id,
                "title": self.catalogue[item.item_id].title,
                "rank": rank,
                "score": round(item.score, 4),
                "turn": item.turn,
                "preference": item.preference,
            }
            for rank, item in enumerate(answer.items, start=1)
        ]
        response: JsonDict = {"items": items, "path": answer.path}
        if answer.path != "policy":
            response["reason"] = answer.reason
        response |= {"user_known": user.known, "bundle": self.version}
        response["milliseconds"] = {"total": _milliseconds(started), **answer.milliseconds}
        return response

    def _calls(self, exploration: Exploration | None) -> list[JsonDict]:
        calls = () if exploration is None else exploration.trajectory.calls
        return [
            {
                "turn": turn,
                "preference": call.preference.strip(),
                "items": [
                    {"id": item.item_id, "title": self.catalogue[item.item_id].title, "score": round(item.score, 4)}
                    for item in call.items
                    if item.item_id in self.catalogue
                ],
            }
            for turn, call in enumerate(calls, start=1)
        ]


def _because(floor: Answer, reason: str, exploration: Exploration | None = None) -> Answer:
    turns = {} if exploration is None else {"turns": list(exploration.milliseconds)}
    return replace(floor, reason=reason, exploration=exploration, milliseconds={**floor.milliseconds, **turns})


def _milliseconds(started: float) -> float:
    return round(1000 * (time.monotonic() - started), 2)
