"""Recommendations on the wire: built, described and read by one set of models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deeprec.wire.reason import DESCRIPTIONS, Reason, ReasonKind
from deeprec.wire.recommendation import Milliseconds, Recommendation, RecommendedItem

ITEM = {"id": "7", "title": "Heat", "rank": 1, "score": 0.5, "turn": 0, "preference": None}
ANSWER: dict[str, Any] = {
    "items": [ITEM],
    "path": "trm",
    "reason": {"kind": "late", "sentence": "the policy did not finish within 5 ms"},
    "user_known": True,
    "bundle": "abc",
    "milliseconds": {"total": 2.5, "trm": 1.5, "turns": [0.5]},
}
GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "call-it.md"


def test_what_is_built_is_what_is_read() -> None:
    built = Recommendation(
        items=(RecommendedItem(**ITEM),),
        path="trm",
        reason=Reason(kind=ReasonKind.LATE, sentence="the policy did not finish within 5 ms"),
        user_known=True,
        bundle="abc",
        milliseconds=Milliseconds(total=2.5, trm=1.5, turns=(0.5,)),
    )

    assert built.raw == ANSWER
    assert Recommendation.model_validate(ANSWER) == built


def test_what_is_not_given_is_left_out() -> None:
    answer = Recommendation(items=(), path="policy", bundle="abc", milliseconds=Milliseconds(total=1.0))

    assert answer.raw == {"items": [], "path": "policy", "bundle": "abc", "milliseconds": {"total": 1.0}}
    assert (answer.reason, answer.calls, answer.trm) == (None, (), ())


def test_what_a_newer_server_adds_is_kept() -> None:
    newer = {**ANSWER, "reason": {"kind": "on_strike", "sentence": "the policy is on strike"}, "mood": {"good": True}}
    read = Recommendation.model_validate(newer)

    assert read.raw == newer
    assert read.reason is not None
    assert (read.reason.kind, str(read.reason)) == ("on_strike", "the policy is on strike")


@pytest.mark.parametrize(
    "change", [{"items": None}, {"path": "luck"}, {"milliseconds": {"total": -1}}, {"reason": "the policy was late"}]
)
def test_anything_else_is_no_recommendation(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recommendation.model_validate({**ANSWER, **change})


def test_every_kind_of_reason_is_described_here_and_in_the_guide() -> None:
    assert set(DESCRIPTIONS) == set(ReasonKind)
    table = GUIDE.read_text(encoding="utf-8").split("| kind of reason |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == {kind.value for kind in ReasonKind}
    assert Reason.model_json_schema()["properties"]["kind"]["enum"] == [kind.value for kind in ReasonKind]
