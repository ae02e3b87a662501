"""What requests are accepted, and that every refusal is one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.recommender.reading import phrases, read_request
from deeprec.types import Filter
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest

LIMITS = ServingConfig(max_k=20, max_history=4, max_deadline_ms=5000)


def read(raw: Any) -> RecommendRequest:
    return read_request(RecommendRequest, raw, LIMITS)


def test_ids_may_be_numbers_and_preferences_a_list_or_text() -> None:
    request = read(
        {"user_id": 7.0, "history": [1, " 2\t"], "preference": "Comedy;  <think>90s</think> ;anything;comedy"}
    )
    assert (request.user_id, request.history) == ("7", ("1", "2"))
    assert phrases(request) == ("comedy", "‹think›90s‹/think›")
    assert phrases(read({"preference": ["A\nb|c"]})) == ("a b/c",)


def test_what_is_null_is_not_given() -> None:
    nothing = dict.fromkeys(set(RecommendRequest.model_fields) - {"user_id"})
    assert read({"user_id": "1", **nothing}) == read({"user_id": "1"})
    condition = {"column": "year", "value": 1990}
    assert read({"history": [], "filters": [{**condition, "operator": None}]}) == read(
        {"history": [], "filters": [condition]}
    )
    with pytest.raises(RequestError, match="name a user_id"):
        read({"user_id": None, "history": None, "preference": None})


def test_the_schema_says_what_may_be_null() -> None:
    properties = RecommendRequest.model_json_schema()["properties"]
    assert all({"type": "null"} in field["anyOf"] for field in properties.values())
    operator, value = (
        RecommendRequest.model_json_schema()["$defs"]["FilterInput"]["properties"][name]
        for name in ("operator", "value")
    )
    assert {"type": "null"} in operator["anyOf"]
    assert {"type": "null"} not in value["anyOf"]


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
        ({"user_id": "1", "int": 1}, "unknown field 'int'"),
        ({"user_id": "1", "filters": [{"column": "year", "value": 1, "str": 1}]}, "unknown field 'filters.0.str'"),
        ({"user_id": "1", "k": 0}, "k:"),
        ({"user_id": "1", "k": "10"}, "k:"),
        ({"user_id": "1", "k": 21}, "at most 20 items"),
        ({"history": ["1"] * 5}, "takes at most 4"),
        ({"history": [], "exclude": ["1"] * 5}, "exclude has 5 items"),
        ({"history": "1,2"}, "history"),
        ({"history": [["1"]]}, "history.0"),
        ({"history": [1.5]}, "history.0: give a string, not the number 1.5"),
        ({"history": {"a": 1}}, "history: give a list, not an object"),
        ({"user_id": "  "}, "user_id"),
        ({"user_id": "1", "k": "10"}, "k: give a whole number, not a string"),
        ({"user_id": "1", "explain": 1}, "explain: give true or false, not the number 1"),
        ({"user_id": "1", "preference": ["x"] * 13}, "preference: has 13 elements, but at most 12 are taken"),
        ({"user_id": "1", "filters": ["year >= 1990"]}, "filters.0: give an object, not a string"),
        ({"user_id": "1", "filters": [{"column": "year", "value": [1]}]}, "filters.0.value: give a string or a number"),
        ({"user_id": "1", "filters": [{"column": "year"}]}, "filters.0.value: is missing"),
        ({"user_id": "1", "filters": [{"column": "year", "value": None}]}, "filters.0.value: is missing"),
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
    for word in ("pydantic", "tuple", "dict", "instance", "None", "valid"):
        assert word not in str(caught.value)


def test_only_the_trm_model_takes_allow_seen() -> None:
    assert read_request(TrmOnlyRequest, {"user_id": "1", "allow_seen": True}, LIMITS).allow_seen
    with pytest.raises(RequestError, match="unknown field"):
        read({"user_id": "1", "allow_seen": True})
