"""The recommender over fakes of its ports: which path answers, and what no answer may hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError, RequestError
from deeprec.serving.exploration import Exploration
from deeprec.serving.recommender import Recommender
from deeprec.serving.request import RecommendRequest, TrmOnlyRequest
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


@dataclass
class FakeRetriever:
    """Returns items from the end of the catalogue backwards, history excluded; remembers what it was asked."""

    asked: list[Query] = field(default_factory=list)
    careless: bool = False
    error: Exception | None = None

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        if self.error is not None:
            raise self.error
        self.asked.extend(queries)
        return [self._one(query, k) for query in queries]

    def _one(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        if self.careless:
            return tuple(RetrievedItem(item_id, 0.5) for item_id in (*query.history, "i29", "i29", "nowhere", "i28"))
        barred = query.exclude | (frozenset() if query.allow_seen else frozenset(query.history))
        rows = [item.item_id for item in reversed(CATALOGUE.items) if item.item_id not in barred]
        return tuple(RetrievedItem(item_id, 0.9 - 0.01 * rank) for rank, item_id in enumerate(rows[:k]))


@dataclass
class FakeExplorer:
    """Calls twice, answers ``answer``; may first wait, or fail."""

    answer: tuple[str | None, ...] = ("i5", "i6", "i7")
    end: EndReason = EndReason.ANSWERED
    violations: tuple[str, ...] = ()
    error: Exception | None = None
    wait: threading.Event | None = None
    answer_size: int = ANSWER_SIZE
    asked: list[Query] = field(default_factory=list)

    def explore(self, user_id: str, query: Query, deadline: float) -> Exploration:
        self.asked.append(query)
        if self.wait is not None:
            self.wait.wait(30)
        if self.error is not None:
            raise self.error
        calls = (
            Call("anything", (), (RetrievedItem("i5", 0.9), RetrievedItem("i6", 0.8))),
            Call("comedy; 1980s", ("comedy", "1980s"), (RetrievedItem("i6", 0.7), RetrievedItem("i7", 0.6))),
        )
        trajectory = Trajectory("u@1", user_id, (), (), (), (), "", calls, self.answer, self.end)
        return Exploration(trajectory, self.violations, (1.0, 2.0, 3.0))


class FakeHistories:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def history(self, user_id: str) -> tuple[str, ...] | None:
        if self.error is not None:
            raise self.error
        return {"ann": ("i1", "i2", "gone"), "new": ()}.get(user_id)


@pytest.fixture
def made() -> Iterator[Any]:
    recommenders: list[Recommender] = []

    def make(explorer: FakeExplorer | None = None, retriever: FakeRetriever | None = None, **other: Any) -> Recommender:
        arguments = {"histories": FakeHistories(), "version": "v1", **other}
        recommenders.append(
            Recommender(CATALOGUE, COUNTS, retriever or FakeRetriever(), explorer=explorer, **arguments)
        )
        return recommenders[-1]

    yield make
    for recommender in recommenders:
        recommender.close()


def recommend(recommender: Recommender, **request: Any) -> dict[str, Any]:
    checked = RecommendRequest.model_validate(request, context=recommender.serving)
    return asyncio.run(recommender.recommend(checked))


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
    release = threading.Event()
    recommender = made(FakeExplorer(wait=release))
    started = time.monotonic()
    try:
        response = recommend(recommender, user_id="ann", k=3, deadline_ms=100)
        assert time.monotonic() - started < 10
    finally:
        release.set()
    assert response["path"] == "trm"
    assert response["reason"] == "the policy did not finish within 100 ms"
    assert ids(response) == ["i29", "i28", "i27"]


def test_late_policies_do_not_hold_up_other_requests(made: Any) -> None:
    release = threading.Event()
    recommender = made(FakeExplorer(wait=release), serving=ServingConfig(workers=1))
    request = RecommendRequest(user_id="ann", deadline_ms=50)

    async def many() -> list[dict[str, Any]]:
        return await asyncio.wait_for(asyncio.gather(*(recommender.recommend(request) for _ in range(20))), 20)

    try:
        assert {response["path"] for response in asyncio.run(many())} == {"trm"}
    finally:
        release.set()


@pytest.mark.parametrize(
    ("explorer", "reason"),
    [
        (FakeExplorer(error=RuntimeError("secret")), "the policy failed"),
        (FakeExplorer(violations=("answer_length",)), "answer_length"),
        (FakeExplorer(end=EndReason.CALL_LIMIT), "call_limit"),
        (FakeExplorer(end=EndReason.DEADLINE), "did not finish"),
        (FakeExplorer(answer=("i5", "i5", "i6")), "not 3 distinct items"),
        (FakeExplorer(answer=("i5", "i6")), "not 3 distinct items"),
        (FakeExplorer(answer=("i5", "i6", None)), "not retrieved"),
        (FakeExplorer(answer=("i5", "i6", "i9")), "not retrieved"),
    ],
)
def test_the_trm_answers_when_the_policy_is_wrong(made: Any, explorer: FakeExplorer, reason: str) -> None:
    response = recommend(made(explorer), user_id="ann", k=3)
    assert response["path"] == "trm"
    assert reason in response["reason"]
    assert "secret" not in response["reason"]
    assert ids(response) == ["i29", "i28", "i27"]
    assert all(item["turn"] == 0 for item in response["items"])


def test_a_policy_that_answers_what_the_user_has_had_is_refused(made: Any) -> None:
    response = recommend(made(FakeExplorer()), history=["i5"], k=3)
    assert response["path"] == "trm"
    assert "i5" not in ids(response)
    assert recommend(made(FakeExplorer()), user_id="ann", exclude=["i7"], k=3)["path"] == "trm"


def test_nothing_foreign_repeated_or_had_comes_from_a_careless_trm(made: Any) -> None:
    response = recommend(made(None, FakeRetriever(careless=True)), user_id="ann", k=5, exclude=["i28"])
    assert ids(response) == ["i29"]


def test_without_a_policy_the_answer_says_why(made: Any) -> None:
    response = recommend(made(None, why_trm="the policy was below the TRM"), user_id="ann")
    assert (response["path"], response["reason"]) == ("trm", "the policy was below the TRM")


def test_an_unknown_user_gets_popular_items_or_the_trm_with_a_preference(made: Any) -> None:
    explorer = FakeExplorer()
    response = recommend(made(explorer), user_id="nobody", k=3)
    assert (response["path"], response["user_known"]) == ("popularity", False)
    assert response["reason"] == "the user is unknown"
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


def test_explain_lists_the_calls_even_of_a_failed_exploration(made: Any) -> None:
    for explorer in (FakeExplorer(), FakeExplorer(violations=("one",))):
        calls = recommend(made(explorer), user_id="ann", explain=True)["calls"]
        assert [(call["turn"], call["preference"]) for call in calls] == [(1, "anything"), (2, "comedy; 1980s")]
        assert calls[1]["items"][1] == {"id": "i7", "title": "Title 7", "score": 0.6}
    assert recommend(made(None), user_id="ann", explain=True)["calls"] == []


def test_failures_below_fall_to_the_next_path(made: Any) -> None:
    broken = recommend(made(FakeExplorer(), FakeRetriever(error=RuntimeError("secret"))), user_id="ann", k=2)
    assert (broken["path"], broken["reason"], ids(broken)) == ("popularity", "the TRM failed", ["i0", "i3"])
    store = recommend(made(FakeExplorer(), histories=FakeHistories(FeatureError("secret"))), user_id="ann")
    assert (store["path"], store["user_known"]) == ("popularity", False)
    assert "feature store failed" in store["reason"]
    assert "no feature store" in recommend(made(FakeExplorer(), histories=None), user_id="ann")["reason"]


def test_the_trm_model_can_be_asked_for_seen_items(made: Any) -> None:
    recommender = made(FakeExplorer())
    for allow_seen, expected in ((False, ["i28", "i27"]), (True, ["i29", "i28"])):
        answer = asyncio.run(recommender.retrieve(TrmOnlyRequest(history=("i29",), k=2, allow_seen=allow_seen)))
        assert (answer["path"], ids(answer)) == ("trm", expected)


@pytest.mark.parametrize(("column", "value"), [("maker", "x"), ("year", "late")])
def test_filters_that_cannot_hold_are_refused(made: Any, column: str, value: str) -> None:
    with pytest.raises(RequestError, match="filters: "):
        recommend(made(), history=[], filters=[{"column": column, "operator": ">=", "value": value}])
