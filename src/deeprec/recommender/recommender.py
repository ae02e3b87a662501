"""The recommender without a server: history in, recommended items out, always within what the request asked for.

Contract: an answer holds only catalogue items, none twice, none that the user has had or asked to leave out. Three
paths answer, the first that can: the policy's exploration (valid and in time), the TRM alone, popularity (no history
and no preference, or no TRM in time). The deadline bounds the whole request: the TRM and the exploration are asked side
by side, and what is not there when it passes is answered without. No model runs in the event loop.

A preference in the request is added to every call of the TRM, in each path. When k is larger than the policy's answer,
the TRM's items follow it, with turn 0. In shadow mode the TRM answers at once, and the policy runs beside.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.config import ServingConfig
from deeprec.recommender.batching import AsyncRetriever
from deeprec.recommender.deadline import RequestClock
from deeprec.recommender.exploration import Explorer
from deeprec.recommender.explored import NOTHING, Explored, explore_for
from deeprec.recommender.fallback import Fallback
from deeprec.recommender.observer import AnsweredRequest, Observer
from deeprec.recommender.outcome import (
    Answer,
    Permitted,
    Steps,
    calls_on_wire,
    items_on_wire,
    list_on_wire,
)
from deeprec.recommender.phrases import PhraseEncoder
from deeprec.recommender.reading import phrases
from deeprec.recommender.users import Histories, User, Users
from deeprec.types import Catalogue, JsonDict, Query
from deeprec.wire.reason import Reason, ReasonKind
from deeprec.wire.recommendation import Milliseconds, Recommendation
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest, TrmRequest

logger = logging.getLogger(__name__)

SHADOW = Reason(
    kind=ReasonKind.SHADOW, sentence="the policy runs in the shadow of the TRM, and its answer is only logged"
)


class AsyncRecommender:
    """Answers requests from one bundle's models, in an event loop.

    Args:
        catalogue: the items that may be recommended.
        popularity: (items,) training counts, catalogue order.
        retriever: the TRM.
        explorer: the loop; None serves the TRM.
        why_trm: the sentence that says why, when there is no explorer.
        histories: the feature store; None: only histories in requests are known.
        serving: limits, the default deadline, and whether the policy runs in the shadow.
        version: the bundle's version, repeated in every answer.
        phrases: encodes free text; None leaves it to the TRM.
        observers: told of every answer, once ``ready``.

    Attributes:
        ready: set by whoever has warmed it up; what becomes of the policy afterwards does not change it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        popularity: NDArray[np.int64],
        retriever: AsyncRetriever,
        *,
        explorer: Explorer | None = None,
        why_trm: str = "this bundle serves the TRM alone",
        histories: Histories | None = None,
        serving: ServingConfig | None = None,
        version: str = "none",
        phrases: PhraseEncoder | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.catalogue = catalogue
        self.serving = serving or ServingConfig()
        self.version = version
        self.histories = histories
        self.explorer = explorer
        self.observers = tuple(observers)
        self.ready = False
        self.phrases = phrases
        self._why_trm = Reason(kind=ReasonKind.BUNDLE, sentence=why_trm)
        self._fallback = Fallback(catalogue, popularity, retriever)
        self._users = Users(catalogue, histories, self.serving.batch, self.serving.store_share)
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def busy_seconds(self) -> float:
        """For how long the TRM has been at the batch that it is at; 0 for none."""
        return self._fallback.busy_seconds

    @property
    def waiting(self) -> dict[str, int]:
        """What waits for each of the stages, for whoever watches them."""
        found = {"trm": self._fallback.waiting, "store": self._users.waiting}
        if self.phrases is not None:
            found["encode"] = self.phrases.waiting
        if self.explorer is not None:
            found["policy"] = self.explorer.waiting
        return found

    @property
    def restarts(self) -> dict[str, int]:
        """How often the processes beside this one were started again."""
        found = {} if self.explorer is None else {"policy": self.explorer.restarts}
        return found if self.phrases is None else found | {"text": self.phrases.encoder.restarts}

    @property
    def store(self) -> Users:
        """Who reads the feature store, for whoever watches it."""
        return self._users

    async def prepare_filters(self) -> None:
        """Read what filters read, so that no request waits for it."""
        await self._fallback.ready()

    async def settled(self) -> None:
        """Return when the observers have been told of every answer given in shadow mode.

        Each exploration ends at its request's deadline at the latest. To be called before ``close``, which ends them.
        """
        while self._shadows:
            await asyncio.wait(self._shadows)

    def close(self) -> None:
        """Let running work end and start none; returns at once."""
        self.ready = False
        if self.explorer is not None:
            self.explorer.close()
        self._fallback.close()
        self._users.close()
        if self.phrases is not None:
            self.phrases.close()

    async def retrieve(self, request: TrmOnlyRequest) -> Recommendation:
        """The TRM's answer, or popularity's for a request without history and preference.

        Raises:
            RequestError: a filter cannot be applied.
        """
        clock = RequestClock(self.serving.deadline_ms)
        try:
            user, query, permitted, without = await self._prepared(request, clock, request.allow_seen)
        except TimeoutError:
            return self._unfiltered("deeprec-trm", request, clock)
        asked = self._asked(query, permitted, request.k, user, clock, None)
        answer = await self._fallback.within(asked, permitted, request.k, clock, user.note)
        self._tell("deeprec-trm", request, clock, clock.passed, answer, answer, NOTHING)
        return self._response(answer, user, clock, **without)

    async def recommend(
        self, request: RecommendRequest, on_step: Callable[[JsonDict], None] | None = None
    ) -> Recommendation:
        """The best path's answer; see the module's contract.

        ``on_step`` is told in the event loop what happens on the way: ``{"event": "trm", "items": […]}``, then
        ``{"event": "turn", "turn": n}`` and ``{"event": "call", "turn": n, "thought": …, "preference": …, "items":
        […]}`` as often as they come.

        Raises:
            RequestError: a filter cannot be applied.
        """
        clock = RequestClock(request.deadline_ms or self.serving.deadline_ms)
        try:
            user, query, permitted, without = await self._prepared(request, clock)
        except TimeoutError:
            return self._unfiltered("deeprec", request, clock)
        steps = None if on_step is None else Steps(on_step, self.catalogue)
        asked = self._ask(query, permitted, request.k, user, clock, steps)
        exploring = self._begin(user, query, permitted, clock, steps)
        try:
            explored = NOTHING if exploring is None or self.serving.shadow else await exploring
            answer, floor = await self._choose(request, user, permitted, clock, asked, explored)
        except asyncio.CancelledError:
            if exploring is not None:
                exploring.cancel()
            raise
        finally:
            asked.cancel()
        if exploring is not None and self.serving.shadow:
            answer = replace(answer, reason=SHADOW) if answer.path == "trm" else answer
            self._tell_later(request, clock, answer, floor, exploring)
        else:
            self._tell("deeprec", request, clock, clock.passed, answer, floor, explored)
        if not request.explain:
            return self._response(answer, user, clock, **without)
        return self._response(
            answer,
            user,
            clock,
            **without,
            calls=calls_on_wire(answer.exploration, self.catalogue),
            trm=() if floor is None else list_on_wire(floor, self.catalogue),
        )

    # ----------------------------------------------------------------------------------------------------- the paths

    def _ask(
        self, query: Query, permitted: Permitted, k: int, user: User, clock: RequestClock, steps: Steps | None
    ) -> asyncio.Task[Answer]:
        """What answers without the policy, as it comes."""
        return asyncio.create_task(self._asked(query, permitted, k, user, clock, steps))

    async def _asked(
        self, query: Query, permitted: Permitted, k: int, user: User, clock: RequestClock, steps: Steps | None
    ) -> Answer:
        with clock.stage("trm"):
            answer = await self._fallback.answer(query, permitted, k, self._why_trm if user.history else user.note)
        if steps is not None:
            steps.trm(answer)
        return replace(answer, milliseconds={"trm": clock.passed})

    def _begin(
        self, user: User, query: Query, permitted: Permitted, clock: RequestClock, steps: Steps | None
    ) -> asyncio.Task[Explored] | None:
        """The exploration as it comes, at the deadline at the latest; None where there is none."""
        if self.explorer is None or not user.history:
            return None
        on_step = None if steps is None or self.serving.shadow else steps.policy
        return asyncio.create_task(explore_for(self.explorer, user.user_id, query, permitted, clock, on_step))

    async def _choose(
        self,
        request: RecommendRequest,
        user: User,
        permitted: Permitted,
        clock: RequestClock,
        asked: asyncio.Task[Answer],
        explored: Explored,
    ) -> tuple[Answer, Answer | None]:
        """The answer, and the one without the policy; None where the policy's does not need it and it is not there."""
        spared = bool(explored.items) and request.k <= len(explored.items) and not request.explain
        if spared and not asked.done():
            return self._policy_answer(request, permitted, explored, None), None
        floor = await self._fallback.in_time(asked, permitted, request.k, clock, user.note)
        if explored.items:
            return self._policy_answer(request, permitted, explored, floor), floor
        if explored.reason is None:
            return floor, floor
        reason = explored.reason
        if floor.path != "trm":
            reason = Reason(kind=reason.kind, sentence=f"{reason}; {floor.reason}")
        timings = {**floor.milliseconds, **_timed(explored)}
        return replace(floor, reason=reason, exploration=explored.exploration, milliseconds=timings), floor

    def _policy_answer(
        self, request: RecommendRequest, permitted: Permitted, explored: Explored, floor: Answer | None
    ) -> Answer:
        """The policy's items, followed by those of the floor."""
        rest, timings = ((), {}) if floor is None else (floor.items, floor.milliseconds)
        items = permitted.first((*explored.items, *rest), request.k)
        return Answer(items, "policy", None, explored.exploration, {**timings, **_timed(explored)})

    async def _prepared(
        self, request: TrmRequest, clock: RequestClock, allow_seen: bool = False
    ) -> tuple[User, Query, Permitted, dict[str, tuple[str, ...]]]:
        """Who asks, what is asked of the models, what may be answered, and what of the request plays no part in it: the
        phrases ``left_out`` and the items ``ignored``.

        The user is looked up, new phrases encoded and the filters applied side by side, each in its own share of the
        time.

        Raises:
            RequestError: a filter cannot be applied.
            TimeoutError: the filters are not applied by the deadline.
        """
        told = kept = phrases(request)
        mask = None
        if told or request.conditions:
            user, kept, mask = await asyncio.gather(
                self._users.find(request, clock),
                self._encoded(told, clock),
                self._fallback.mask(request.conditions, clock),
            )
        else:  # most requests: three tasks less
            user = await self._users.find(request, clock)
        query = Query(
            history=user.history,
            preference=kept,
            exclude=(frozenset() if allow_seen else user.had) | frozenset(request.exclude),
            filters=request.conditions,
            allow_seen=allow_seen,
        )
        left_out = tuple(phrase for phrase in told if phrase not in kept)
        permitted = Permitted(self.catalogue, query.exclude, mask)
        without = {"left_out": left_out, "ignored": user.ignored}
        return user, query, permitted, {name: found for name, found in without.items() if found}

    async def _encoded(self, told: tuple[str, ...], clock: RequestClock) -> tuple[str, ...]:
        """Those of a request's phrases that the TRM can be asked with now."""
        if not told or self.phrases is None:
            return told
        with clock.stage("encode"):
            return await self.phrases.encode(told, clock.client, clock.share(self.serving.text_share))

    def _unfiltered(self, model: str, request: TrmRequest, clock: RequestClock) -> Recommendation:
        """No item: it is not known which ones the filters would keep."""
        sentence = f"the filters could not be applied within {clock.deadline_ms} ms"
        answer = Answer((), "popularity", Reason(kind=ReasonKind.FILTERS_LATE, sentence=sentence))
        self._tell(model, request, clock, clock.passed, answer, answer, NOTHING)
        return self._response(answer, User(request.user_id or "unknown"), clock)

    # ---------------------------------------------------------------------------------------------------- the answer

    def _response(self, answer: Answer, user: User, clock: RequestClock, **explained: Any) -> Recommendation:
        """``explained``: what ``explain`` asks for besides. What is not given is left out on the wire."""
        if answer.path != "policy":
            explained["reason"] = answer.reason
        return Recommendation(
            items=items_on_wire(answer, self.catalogue),
            path=answer.path,
            user_known=user.known,
            bundle=self.version,
            milliseconds=Milliseconds(total=clock.passed, **answer.milliseconds),
            **explained,
        )

    def _tell_later(
        self,
        request: RecommendRequest,
        clock: RequestClock,
        answer: Answer,
        floor: Answer | None,
        exploring: asyncio.Task[Explored],
    ) -> None:
        """Tell the observers of an answer given in shadow mode when the policy has come to its end too.

        They are told why the policy has no answer, which whoever asked is not. Nobody waits for an exploration that
        was begun before the recommender is ready.
        """
        if not self.ready:
            exploring.cancel()
            return
        passed = clock.passed

        async def tell() -> None:
            explored = await exploring
            told = answer if explored.reason is None else replace(answer, reason=explored.reason)
            self._tell("deeprec", request, clock, passed, told, floor, explored, shadow=True)

        task = asyncio.create_task(tell())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def _tell(
        self,
        model: str,
        request: TrmRequest,
        clock: RequestClock,
        milliseconds: float,
        answer: Answer,
        floor: Answer | None,
        explored: Explored,
        *,
        shadow: bool = False,
    ) -> None:
        """Tell all observers; what one of them raises reaches neither the others nor whoever asked."""
        if not self.ready:
            return
        served = AnsweredRequest(
            model=model,
            user_id=request.user_id,
            path=answer.path,
            reason=answer.reason,
            items=answer.ids,
            trm_items=floor.ids if floor is not None and floor.path == "trm" else (),
            policy_items=tuple(item.item_id for item in explored.items),
            milliseconds=milliseconds,
            turns=explored.turns,
            deadline_ms=clock.deadline_ms,
            k=request.k,
            version=self.version,
            at=clock.at,
            shadow=shadow,
            request_id=clock.request_id,
            stages=dict(clock.stages),
        )
        for observer in self.observers:
            try:
                observer(served)
            except Exception:
                logger.exception("an observer of the answers failed")


def _timed(explored: Explored) -> JsonDict:
    return {} if explored.exploration is None else {"turns": list(explored.turns)}
