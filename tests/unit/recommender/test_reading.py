"""What requests are accepted, and that every refusal is one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.recommender.reading import phrases, read_request
from deeprec.types import Catalogue, Filter, Item
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest

CATALOGUE = Catalogue(tuple(Item(str(row), f"Title {row}", {"year": 1990 + row}) for row in range(5)))
LIMITS = ServingConfig(max_k=20, max_history=4, max_deadline_ms=5000)


def read(raw: Any) -> RecommendRequest:
    return read_request(RecommendRequest, raw, LIMITS, CATALOGUE)


def test_ids_may_be_numbers_and_preferences_a_list_or_text() -> None:
    request = read({"user_id": 7, "history": [1, "2"], "preference": "Comedy;  <think>90s</think> ;anything;comedy"})
    assert (request.user_id, request.history) == ("7", ("1", "2"))
    assert phrases(request) == ("comedy", "‹think›90s‹/think›")
    assert phrases(read({"preference": ["A\nb|c"]})) == ("a b/c",)


def test_filters_become_conditions() -> None:
    request = read({"history": [], "filters": [{"column": "year", "operator": ">=", "value": 1992}]})
    assert request.conditions == (Filter("year", ">=", 1992),)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ([], "must be a JSON object"),
        (None, "not null"),
        ({}, "name a user_id"),
        ({"preference": "anything"}, "name a user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": "x" * 201}, "user_id"),
        ({"user_id": "1", "usr": 1}, "unknown field 'usr'"),
        ({"user_id": "1", "k": 0}, "k:"),
        ({"user_id": "1", "k": "10"}, "k:"),
        ({"user_id": "1", "k": 21}, "at most 20 items"),
        ({"history": ["1"] * 5}, "takes at most 4"),
        ({"history": [], "exclude": ["1"] * 5}, "exclude has 5 items"),
        ({"history": "1,2"}, "history"),
        ({"history": [["1"]]}, "history.0"),
        ({"history": ["a", "b", "c", "d"]}, "'a', 'b', 'c' and 1 more"),
        ({"user_id": "1", "preference": {"a": 1}}, "preference"),
        ({"user_id": "1", "preference": ["x"] * 13}, "preference"),
        ({"user_id": "1", "preference": "x" * 201}, "preference"),
        ({"user_id": "1", "deadline_ms": 5001}, "at most 5000"),
        ({"user_id": "1", "deadline_ms": 0}, "deadline_ms"),
        ({"user_id": "1", "filters": [{"column": "year", "operator": "~", "value": 1}]}, "operator"),
        ({"user_id": "1", "filters": [{"column": "year", "value": float("nan")}]}, "finite"),
        ({"user_id": "1", "filters": [{"column": "year", "value": [1]}]}, "value"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(raw: Any, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(raw)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_only_the_trm_model_takes_allow_seen() -> None:
    assert read_request(TrmOnlyRequest, {"user_id": "1", "allow_seen": True}, LIMITS, CATALOGUE).allow_seen
    with pytest.raises(RequestError, match="unknown field"):
        read({"user_id": "1", "allow_seen": True})
