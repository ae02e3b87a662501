"""The recommender over fakes of its ports: which path answers, and what no answer may hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError, RequestError, TrmError
from deeprec.recommender.exploration import Exploration, OnStep, Step, Unavailable
from deeprec.recommender.observer import AnsweredRequest
from deeprec.recommender.phrases import PhraseEncoder
from deeprec.recommender.recommender import SHADOW, AsyncRecommender
from deeprec.types import (
    Call,
    Catalogue,
    EndReason,
    Filter,
    Item,
    Query,
    RetrievedItem,
    Trajectory,
)
from deeprec.wire.reason import Reason, ReasonKind
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest
from tests.cycles import collected

CATALOGUE = Catalogue(
    tuple(
        Item(
            f"i{row}",
            f"Title {row}",
            {"genres": "Comedy|Drama" if row % 2 else "Horror", "year": 1980 + row},
            ("comedy", "drama") if row % 2 else ("horror",),
        )
        for row in range(30)
    )
)
COUNTS = np.arange(30, 0, -1)
ANSWER_SIZE = 3


FOR_EVER = 3600.0
CALLS = (
    Call("anything", (), (RetrievedItem("i5", 0.9), RetrievedItem("i6", 0.8))),
    Call("comedy; 1980s", ("comedy", "1980s"), (RetrievedItem("i6", 0.7), RetrievedItem("i7", 0.6))),
)
TEXT = (
    "\nA look.\n<|begin_of_preference|>anything<|end_of_preference|>\n<|begin_of_item_list|>\n<|end_of_item_list|>\n"
    "Closer.\n<|begin_of_preference|>comedy; 1980s<|end_of_preference|>\n<|begin_of_item_list|>\n"
    "<|end_of_item_list|>\nRank.\n</think>\n"
)


@dataclass
class FakeRetriever:
    """Returns items from the end of the catalogue backwards, history excluded; remembers what it was asked."""

    asked: list[Query] = field(default_factory=list)
    careless: bool = False
    error: Exception | None = None
    seconds: float = 0.0

    busy_seconds, waiting = 0.0, 0

    async def retrieve(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        self.asked.append(query)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        if self.careless:
            return tuple(RetrievedItem(item_id, 0.5) for item_id in (*query.history, "i29", "i29", "nowhere", "i28"))
        barred = query.exclude | (frozenset() if query.allow_seen else frozenset(query.history))
        rows = [item.item_id for item in reversed(CATALOGUE.items) if item.item_id not in barred]
        return tuple(RetrievedItem(item_id, 0.9 - 0.01 * rank) for rank, item_id in enumerate(rows[:k]))

    def close(self) -> None:
        pass


@dataclass
class FakeExplorer:
    """Calls twice, answers ``answer``; may first wait, or fail."""

    answer: tuple[str | None, ...] = ("i5", "i6", "i7")
    end: EndReason = EndReason.ANSWERED
    violations: tuple[str, ...] = ()
    error: Exception | None = None
    seconds: float = 0.0
    answer_size: int = ANSWER_SIZE
    available: bool = True
    restarts: int = 0
    waiting: int = 0
    asked: list[Query] = field(default_factory=list)
    cancelled: int = 0

    async def loaded(self, timeout: float) -> None:
        pass

    async def explore(self, user_id: str, query: Query, deadline: float, on_step: OnStep | None = None) -> Exploration:
        self.asked.append(query)
        if on_step is not None:
            for turn, (call, thought) in enumerate(zip(CALLS, ("A look.", "Closer."), strict=True), 1):
                on_step(Step(turn))
                on_step(Step(turn, call, thought))
            on_step(Step(3))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        trajectory = Trajectory("u@1", user_id, (), (), (), (), TEXT, CALLS, self.answer, self.end)
        return Exploration(trajectory, self.violations, (1.0, 2.0, 3.0))

    def close(self) -> None:
        pass


class FakeHistories:
    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds = error, seconds

    def history(self, user_id: str) -> tuple[str, ...] | None:
        return self.histories([user_id])[0]

    def histories(self, user_ids: Any) -> list[tuple[str, ...] | None]:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        known: dict[str, tuple[str, ...]] = {"ann": ("i1", "i2", "gone"), "new": ()}
        return [known.get(user_id) for user_id in user_ids]


@pytest.fixture
def made() -> Iterator[Any]:
    recommenders: list[AsyncRecommender] = []

    def make(
        explorer: FakeExplorer | None = None, retriever: FakeRetriever | None = None, **other: Any
    ) -> AsyncRecommender:
        arguments = {"histories": FakeHistories(), "version": "v1", **other}
        recommenders.append(
            AsyncRecommender(CATALOGUE, COUNTS, retriever or FakeRetriever(), explorer=explorer, **arguments)
        )
        recommenders[-1].ready = True
        return recommenders[-1]

    yield make
    for recommender in recommenders:
        recommender.close()


def recommend(recommender: AsyncRecommender, on_step: Any = None, **request: Any) -> dict[str, Any]:
    checked = RecommendRequest.model_validate(request, context=recommender.serving)
    return asyncio.run(recommender.recommend(checked, on_step)).raw


def ids(response: dict[str, Any]) -> list[str]:
    return [item["id"] for item in response["items"]]


def test_the_policy_answers_with_turn_and_preference_of_each_item(made: Any) -> None:
    response = recommend(made(FakeExplorer()), user_id="ann", k=3)
    assert response["path"] == "policy"
    assert "reason" not in response
    assert response["user_known"] is True
    assert response["bundle"] == "v1"
    assert [
        (item["id"], item["rank"], item["turn"], item["preference"], item["score"]) for item in response["items"]
    ] == [
        ("i5", 1, 1, "anything", 0.9),
        ("i6", 2, 1, "anything", 0.8),
        ("i7", 3, 2, "comedy; 1980s", 0.6),
    ]
    assert response["items"][0]["title"] == "Title 5"
    assert response["milliseconds"]["turns"] == [1.0, 2.0, 3.0]


def test_smaller_k_cuts_the_answer_and_larger_k_is_padded_by_the_trm(made: Any) -> None:
    assert ids(recommend(made(FakeExplorer()), user_id="ann", k=2)) == ["i5", "i6"]
    longer = recommend(made(FakeExplorer()), user_id="ann", k=6)
    assert ids(longer) == ["i5", "i6", "i7", "i29", "i28", "i27"]
    assert [item["turn"] for item in longer["items"]] == [1, 1, 2, 0, 0, 0]


def test_the_trm_answers_when_the_policy_is_late(made: Any) -> None:
    explorer = FakeExplorer(seconds=FOR_EVER)
    response = recommend(made(explorer), user_id="ann", k=3, deadline_ms=100)
    assert response["path"] == "trm"
    assert response["reason"]["sentence"] == "the policy did not finish within 100 ms"
    assert ids(response) == ["i29", "i28", "i27"]
    assert explorer.cancelled == 1


def test_a_late_trm_does_not_hold_up_the_policy_and_popularity_takes_its_place(made: Any) -> None:
    asleep = FakeRetriever(seconds=FOR_EVER)
    response = recommend(made(FakeExplorer(), asleep), user_id="ann", k=3, deadline_ms=30_000)
    assert response["path"] == "policy"
    assert "trm" not in response["milliseconds"]
    longer = recommend(made(FakeExplorer(), asleep), user_id="ann", k=5, deadline_ms=100)
    assert (longer["path"], ids(longer)) == ("policy", ["i5", "i6", "i7", "i0", "i3"])
    alone = recommend(made(None, asleep), user_id="ann", k=2, deadline_ms=100)
    assert (alone["path"], ids(alone)) == ("popularity", ["i0", "i3"])
    assert alone["reason"]["kind"] == "trm_failed"
    assert alone["reason"]["sentence"] == "the TRM failed to answer within 100 ms"
    both = recommend(made(FakeExplorer(seconds=FOR_EVER), asleep), user_id="ann", k=2, deadline_ms=100)
    assert both["path"] == "popularity"
    assert both["reason"]["kind"] == "late"
    assert (
        both["reason"]["sentence"] == "the policy did not finish within 100 ms; the TRM failed to answer within 100 ms"
    )
    limits = ServingConfig(deadline_ms=100)
    trm = made(None, asleep, serving=limits)
    assert asyncio.run(trm.retrieve(TrmOnlyRequest(history=("i1",)))).path == "popularity"


def test_a_late_feature_store_takes_its_share_and_the_trm_answers_the_preference(made: Any) -> None:
    late = FakeHistories(seconds=2.0)
    recommender = made(FakeExplorer(), histories=late)
    response = recommend(recommender, user_id="ann", preference="comedy", deadline_ms=500, k=2)
    assert (response["path"], response["user_known"]) == ("trm", False)
    assert response["reason"]["kind"] == "store_failed"
    assert response["reason"]["sentence"].startswith("the feature store failed to answer within 100 ms")
    assert response["milliseconds"]["total"] < 450
    without = recommend(made(FakeExplorer(), histories=late), user_id="ann", deadline_ms=500, k=2)
    assert (without["path"], without["reason"]["kind"]) == ("popularity", "store_failed")
    whole = made(FakeExplorer(), histories=late, serving=ServingConfig(store_share=1.0))
    assert recommend(whole, user_id="ann", preference="comedy", deadline_ms=200)["reason"]["kind"] == "store_failed"


def test_where_store_and_trm_fail_the_reason_names_both(made: Any) -> None:
    gone = FakeHistories(FeatureError("gone"))
    for retriever in (FakeRetriever(seconds=FOR_EVER), FakeRetriever(error=TrmError("broken"))):
        answer = recommend(made(None, retriever, histories=gone), user_id="ann", preference="comedy", deadline_ms=200)
        assert answer["path"] == "popularity"
        assert answer["reason"]["kind"] == "store_failed"
        assert "the feature store failed" in answer["reason"]["sentence"]
        assert "the TRM failed" in answer["reason"]["sentence"]


def test_a_store_that_keeps_failing_is_not_waited_for_until_it_answers_again(made: Any) -> None:
    async def serve() -> None:
        store = FakeHistories(seconds=0.3)
        recommender = made(FakeExplorer(), histories=store)
        request = RecommendRequest(user_id="ann", preference=("comedy",), deadline_ms=500)
        reasons = [(await recommender.recommend(request)).reason for _ in range(6)]
        assert all(reason is not None and reason.kind is ReasonKind.STORE_FAILED for reason in reasons)
        assert recommender.store.breaker.open
        began = time.monotonic()
        answer = await recommender.recommend(request)
        assert answer.path == "trm"
        assert time.monotonic() - began < 0.09, "nobody waits for it"
        store.seconds = 0.0
        while recommender.store.breaker.open:
            await asyncio.sleep(0.1)
            await recommender.recommend(request)
        assert (await recommender.recommend(request)).user_known

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_filters_that_are_not_applied_in_time_let_nothing_through(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(catalogue: Catalogue, condition: Filter) -> Any:
        time.sleep(1.0)
        return np.zeros(len(catalogue), dtype=bool)

    monkeypatch.setattr("deeprec.recommender.fallback.filter_mask", slow)
    recommender = made(FakeExplorer())
    filtered = recommend(
        recommender, user_id="ann", filters=[{"column": "year", "operator": ">=", "value": 1990}], deadline_ms=200
    )
    assert (filtered["items"], filtered["path"]) == ([], "popularity")
    assert filtered["reason"]["kind"] == "filters_late"
    assert filtered["milliseconds"]["total"] < 900
    assert recommend(recommender, user_id="ann", deadline_ms=20_000)["path"] == "policy", "others are not held up"


@pytest.mark.parametrize(
    ("explorer", "kind", "reason"),
    [
        (FakeExplorer(error=RuntimeError("secret")), "policy_failed", "the policy failed"),
        (
            FakeExplorer(error=Unavailable(Reason(kind=ReasonKind.BUSY, sentence="the policy is busy"))),
            "busy",
            "the policy is busy",
        ),
        (FakeExplorer(violations=("answer_length",)), "invalid", "answer_length"),
        (FakeExplorer(end=EndReason.CALL_LIMIT), "invalid", "call_limit"),
        (FakeExplorer(end=EndReason.DEADLINE), "late", "did not finish"),
        (FakeExplorer(answer=("i5", "i5", "i6")), "invalid", "not 3 distinct items"),
        (FakeExplorer(answer=("i5", "i6")), "invalid", "not 3 distinct items"),
        (FakeExplorer(answer=("i5", "i6", None)), "invalid", "not retrieved"),
        (FakeExplorer(answer=("i5", "i6", "i9")), "invalid", "not retrieved"),
    ],
)
def test_the_trm_answers_when_the_policy_is_wrong(made: Any, explorer: FakeExplorer, kind: str, reason: str) -> None:
    response = recommend(made(explorer), user_id="ann", k=3)
    assert response["path"] == "trm"
    assert reason in response["reason"]["sentence"]
    assert response["reason"]["kind"] == kind
    assert "secret" not in response["reason"]["sentence"]
    assert ids(response) == ["i29", "i28", "i27"]
    assert all(item["turn"] == 0 for item in response["items"])


def test_a_policy_that_is_busy_leaves_no_cycle_for_the_collector(made: Any) -> None:
    """Hundreds a second are refused by a busy one, and a collection over them would keep everybody waiting."""

    class Busy(FakeExplorer):
        async def explore(self, *_: Any, **__: Any) -> Exploration:
            await asyncio.sleep(0)
            raise Unavailable(Reason(kind=ReasonKind.BUSY, sentence="the policy is busy"))

    recommender = made(Busy())
    request = RecommendRequest(user_id="ann", k=3)

    async def ask() -> None:
        await recommender.recommend(request)
        with collected() as left:
            for _ in range(5):
                assert (await recommender.recommend(request)).reason.kind is ReasonKind.BUSY
        assert "Unavailable" not in left

    asyncio.run(ask())


def test_a_policy_that_answers_what_the_user_has_had_is_refused(made: Any) -> None:
    response = recommend(made(FakeExplorer()), history=["i5"], k=3)
    assert response["path"] == "trm"
    assert "i5" not in ids(response)
    assert recommend(made(FakeExplorer()), user_id="ann", exclude=["i7"], k=3)["path"] == "trm"


def test_nothing_foreign_repeated_or_had_comes_from_a_careless_trm(made: Any) -> None:
    response = recommend(made(None, FakeRetriever(careless=True)), user_id="ann", k=5, exclude=["i28"])
    assert ids(response) == ["i29"]


def test_nothing_filtered_out_comes_from_a_careless_trm_or_policy(made: Any) -> None:
    filters = [{"column": "year", "operator": "<=", "value": 2008}]
    for explorer in (None, FakeExplorer()):
        response = recommend(made(explorer, FakeRetriever()), user_id="ann", k=4, filters=filters)
        assert "i29" not in ids(response)
        assert "i28" in ids(response)
    odd = [{"column": "genres", "operator": "=", "value": "Comedy"}]
    response = recommend(made(FakeExplorer()), user_id="ann", k=3, filters=odd)
    assert response["path"] == "trm", "i6 is no comedy"
    assert "filtered out" in response["reason"]["sentence"]
    assert ids(response) == ["i29", "i27"], "of the three that the TRM gave"


def test_without_a_policy_the_answer_says_why(made: Any) -> None:
    response = recommend(made(None, why_trm="the policy was below the TRM"), user_id="ann")
    assert (response["path"], response["reason"]["sentence"]) == ("trm", "the policy was below the TRM")
    assert response["reason"]["kind"] == "bundle"


def test_an_unknown_user_gets_popular_items_or_the_trm_with_a_preference(made: Any) -> None:
    explorer = FakeExplorer()
    response = recommend(made(explorer), user_id="nobody", k=3)
    assert (response["path"], response["user_known"]) == ("popularity", False)
    assert response["reason"] == {"kind": "unknown_user", "sentence": "the user is unknown"}
    assert ids(response) == ["i0", "i1", "i2"]
    wished = recommend(made(explorer), user_id="nobody", preference="Horror; 1980s", k=3)
    assert wished["path"] == "trm"
    assert wished["items"][0]["preference"] == "horror; 1980s"
    assert explorer.asked == []


def test_a_known_user_without_history_and_an_empty_history(made: Any) -> None:
    response = recommend(made(FakeExplorer()), user_id="new")
    assert (response["path"], response["user_known"]) == ("popularity", True)
    assert recommend(made(FakeExplorer()), history=[])["path"] == "popularity"


def test_popularity_obeys_filters_and_exclusions(made: Any) -> None:
    filters = [{"column": "genres", "value": "Comedy"}, {"column": "year", "operator": ">=", "value": 1990}]
    response = recommend(made(), history=[], k=3, filters=filters, exclude=["i13"])
    assert ids(response) == ["i11", "i15", "i17"]


def test_conditions_reach_the_trm_and_the_explorer(made: Any) -> None:
    retriever, explorer = FakeRetriever(), FakeExplorer()
    recommend(
        made(explorer, retriever),
        user_id="ann",
        preference=["Comedy"],
        exclude=["i20"],
        filters=[{"column": "year", "operator": "<=", "value": 1999}],
    )
    for query in (retriever.asked[0], explorer.asked[0]):
        assert query.history == ("i1", "i2")
        assert query.preference == ("comedy",)
        assert query.exclude == {"i1", "i2", "gone", "i20"}
        assert query.filters == (Filter("year", "<=", 1999),)
        assert not query.allow_seen


def test_explain_shows_the_calls_even_of_a_failed_exploration_and_the_trms_own_list(made: Any) -> None:
    for explorer in (FakeExplorer(), FakeExplorer(violations=("one",))):
        response = recommend(made(explorer), user_id="ann", k=2, explain=True)
        assert [(call["turn"], call["thought"], call["preference"]) for call in response["calls"]] == [
            (1, "A look.", "anything"),
            (2, "Closer.", "comedy; 1980s"),
        ]
        assert response["calls"][1]["items"] == [
            {"id": "i6", "title": "Title 6", "score": 0.7, "new": False},
            {"id": "i7", "title": "Title 7", "score": 0.6, "new": True},
        ]
        assert response["trm"] == [
            {"id": "i29", "title": "Title 29", "rank": 1, "score": 0.9},
            {"id": "i28", "title": "Title 28", "rank": 2, "score": 0.89},
        ]
    alone = recommend(made(None), user_id="ann", k=2, explain=True)
    assert (alone["calls"], [item["id"] for item in alone["trm"]]) == ([], ["i29", "i28"])
    assert recommend(made(None), history=[], explain=True)["trm"] == []
    assert not {"calls", "trm"} & recommend(made(FakeExplorer()), user_id="ann").keys()


def test_steps_come_in_order_however_late_the_trm_is(made: Any) -> None:
    for seconds in (0.0, 0.2):
        told: list[dict[str, Any]] = []
        recommend(made(FakeExplorer(seconds=0.5), FakeRetriever(seconds=seconds)), told.append, user_id="ann", k=2)
        assert [(step["event"], step.get("turn")) for step in told] == [
            ("trm", None),
            ("turn", 1),
            ("call", 1),
            ("turn", 2),
            ("call", 2),
            ("turn", 3),
        ]
        assert [item["id"] for item in told[0]["items"]] == ["i29", "i28"]
        assert told[4] == {
            "event": "call",
            "turn": 2,
            "thought": "Closer.",
            "preference": "comedy; 1980s",
            "items": [
                {"id": "i6", "title": "Title 6", "score": 0.7, "new": False},
                {"id": "i7", "title": "Title 7", "score": 0.6, "new": True},
            ],
        }


def test_observers_are_told_of_every_answer_and_cannot_break_one(made: Any) -> None:
    told: list[AnsweredRequest] = []

    def broken(served: AnsweredRequest) -> None:
        raise RuntimeError("observer")

    recommender = made(FakeExplorer(), observers=(broken, told.append))
    before = time.time()
    recommend(recommender, user_id="ann", k=4, deadline_ms=900)
    recommend(recommender, history=[], k=1)
    asyncio.run(recommender.retrieve(TrmOnlyRequest(history=("i29",), k=2)))
    recommender.explorer.violations = ("one",)
    recommend(recommender, user_id="ann", k=1)
    policy, popular, trm, invalid = told
    assert (policy.model, policy.user_id, policy.path, policy.reason) == ("deeprec", "ann", "policy", None)
    assert policy.items == ("i5", "i6", "i7", "i29")
    assert policy.trm_items == ("i29", "i28", "i27", "i26")
    assert policy.policy_items == ("i5", "i6", "i7")
    assert (policy.turns, policy.deadline_ms, policy.k, policy.version) == ((1.0, 2.0, 3.0), 900, 4, "v1")
    assert before <= policy.at <= time.time()
    assert 0 < policy.milliseconds < 60_000
    assert (popular.path, popular.user_id, popular.trm_items, popular.policy_items) == ("popularity", None, (), ())
    assert (trm.model, trm.path, trm.items, trm.trm_items) == ("deeprec-trm", "trm", ("i28", "i27"), ("i28", "i27"))
    assert (invalid.path, invalid.policy_items, invalid.turns) == ("trm", (), (1.0, 2.0, 3.0))
    assert not any(served.shadow for served in told)


def test_observers_are_not_told_of_what_comes_before_it_is_ready(made: Any) -> None:
    told: list[AnsweredRequest] = []
    recommender = made(FakeExplorer(), observers=(told.append,))
    recommender.ready = False
    recommend(recommender, user_id="ann")
    assert told == []


def test_in_shadow_mode_too_what_comes_before_it_is_ready_is_not_told(made: Any) -> None:
    told: list[AnsweredRequest] = []
    explorer = FakeExplorer(seconds=0.05)
    recommender = made(explorer, observers=(told.append,), serving=ServingConfig(shadow=True))

    async def warm_up() -> None:
        recommender.ready = False
        await recommender.recommend(RecommendRequest(user_id="ann", k=3))
        recommender.ready = True
        await recommender.recommend(RecommendRequest(user_id="ann", k=2))
        await recommender.settled()

    asyncio.run(asyncio.wait_for(warm_up(), 30))
    assert [served.k for served in told] == [2]
    assert (len(explorer.asked), explorer.cancelled) == (2, 1), "nobody waits for what warms it up"


@pytest.mark.parametrize(
    "explorer",
    [FakeExplorer(seconds=0.3), FakeExplorer(error=Unavailable(Reason(kind=ReasonKind.BUSY, sentence="busy")))],
)
def test_in_shadow_mode_the_trm_answers_and_the_policy_is_told_of_later(made: Any, explorer: FakeExplorer) -> None:
    told: list[AnsweredRequest] = []
    steps: list[dict[str, Any]] = []
    recommender = made(explorer, observers=(told.append,), serving=ServingConfig(shadow=True))

    async def answer() -> dict[str, Any]:
        response = await recommender.recommend(RecommendRequest(user_id="ann", k=3, explain=True), steps.append)
        assert told == []
        await recommender.settled()
        return response.raw

    response = asyncio.run(asyncio.wait_for(answer(), 30))
    assert (response["path"], response["reason"], ids(response)) == ("trm", SHADOW.model_dump(), ["i29", "i28", "i27"])
    assert response["calls"] == []
    assert [step["event"] for step in steps] == ["trm"]
    [served] = told
    assert (served.shadow, served.path) == (True, "trm")
    assert served.reason is not None
    assert str(served.reason) == ("busy" if explorer.error else SHADOW.sentence)
    assert served.items == served.trm_items == ("i29", "i28", "i27")
    assert served.policy_items == (() if explorer.error else ("i5", "i6", "i7"))
    assert served.milliseconds == pytest.approx(response["milliseconds"]["total"], abs=50)


def test_whatever_comes_after_the_deadline_is_late(made: Any) -> None:
    class Stalled(FakeExplorer):
        async def explore(self, *_: Any, **__: Any) -> Exploration:
            time.sleep(0.05)
            raise Unavailable(Reason(kind=ReasonKind.BUSY, sentence="the policy was busy until the deadline"))

    answer = recommend(made(Stalled()), history=["i1"], k=2, deadline_ms=20)
    assert answer["reason"]["sentence"].startswith("the policy did not finish within 20 ms")


def test_failures_below_fall_to_the_next_path(made: Any) -> None:
    for error in (RuntimeError("secret"), TrmError("secret")):
        broken = recommend(made(None, FakeRetriever(error=error)), user_id="ann", k=2)
        assert (broken["path"], broken["reason"]["sentence"], ids(broken)) == (
            "popularity",
            "the TRM failed",
            ["i0", "i3"],
        )
    without = recommend(made(FakeExplorer(), FakeRetriever(error=TrmError("secret"))), user_id="ann", k=2)
    assert (without["path"], ids(without)) == ("policy", ["i5", "i6"])
    for error in (FeatureError("secret"), RuntimeError("secret")):
        store = recommend(made(FakeExplorer(), histories=FakeHistories(error)), user_id="ann")
        assert (store["path"], store["user_known"]) == ("popularity", False)
        assert "feature store failed" in store["reason"]["sentence"]
        assert store["reason"]["kind"] == "store_failed"
    assert "no feature store" in recommend(made(FakeExplorer(), histories=None), user_id="ann")["reason"]["sentence"]


def test_a_caller_that_goes_takes_its_exploration_along(made: Any) -> None:
    explorer = FakeExplorer(seconds=FOR_EVER)

    async def leave() -> None:
        request = RecommendRequest(user_id="ann", deadline_ms=30_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made(explorer).recommend(request), 0.2)

    asyncio.run(leave())
    assert explorer.cancelled == 1


def test_the_trm_model_can_be_asked_for_seen_items(made: Any) -> None:
    recommender = made(FakeExplorer())
    for allow_seen, expected in ((False, ["i28", "i27"]), (True, ["i29", "i28"])):
        answer = asyncio.run(recommender.retrieve(TrmOnlyRequest(history=("i29",), k=2, allow_seen=allow_seen))).raw
        assert (answer["path"], ids(answer)) == ("trm", expected)


@pytest.mark.parametrize(("column", "value"), [("maker", "x"), ("year", "late")])
def test_filters_that_cannot_hold_are_refused(made: Any, column: str, value: str) -> None:
    with pytest.raises(RequestError, match="filters: "):
        recommend(made(), history=[], filters=[{"column": column, "operator": ">=", "value": value}])


def test_items_of_a_history_that_the_catalogue_does_not_have_are_ignored_and_named(made: Any) -> None:
    recommender = made(FakeExplorer())
    known = recommend(recommender, history=["i1"], k=2)
    mixed = recommend(recommender, history=["gone", "i1", "lost", "gone"], k=2)
    assert mixed["ignored"] == ["gone", "lost"]
    assert "ignored" not in known
    assert (ids(mixed), mixed["path"]) == (ids(known), "policy")
    unknown = recommend(recommender, history=["gone"], k=2)
    assert (unknown["path"], unknown["ignored"], unknown["reason"]["kind"]) == ("popularity", ["gone"], "no_history")
    assert unknown["reason"]["sentence"] == "the request's history holds no catalogue item"


def test_phrases_that_are_not_encoded_in_their_time_are_left_out_and_named(made: Any) -> None:
    class Never:
        available = True

        def knows(self, text: str) -> bool:
            return text == "known"

        def encode(self, text: str) -> Future[float]:
            return Future()

        async def loaded(self, timeout: float) -> None:
            pass

        def close(self) -> None:
            pass

    retriever, never = FakeRetriever(), Never()
    recommender = made(None, retriever, phrases=PhraseEncoder(never, never))
    answer = recommend(recommender, history=["i1"], preference=["known", "new"], k=2, deadline_ms=500)
    assert (answer["path"], answer["left_out"]) == ("trm", ["new"])
    assert retriever.asked[-1].preference == ("known",)
    assert "left_out" not in recommend(recommender, history=["i1"], preference=["known"], k=2)
