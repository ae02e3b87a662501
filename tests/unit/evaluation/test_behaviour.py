"""Counts over trajectories, by hand."""

from __future__ import annotations

import pytest

from deeprec.evaluation.behaviour import behaviour
from deeprec.explore.protocol import split_phrases
from deeprec.types import Call, EndReason, Example, RetrievedItem, Trajectory


def _trajectory(user: str, calls: list[tuple[str, str]], end: EndReason = EndReason.ANSWERED) -> Trajectory:
    made = tuple(
        Call(preference, split_phrases(preference), tuple(RetrievedItem(item, 0.5) for item in items))
        for preference, items in calls
    )
    return Trajectory(f"{user}@1", user, (1,), (), (), (), "", made, (), end)


TRAJECTORIES = [
    _trajectory("u", [("anything", "abc"), ("comedy; 1990s", "cde")]),
    _trajectory("v", [("anything", "abc"), ("1990s;  Comedy", "xyz"), ("comedy", "def")]),
    _trajectory("w", [("anything", "abc")], EndReason.OUTSIDE_PROTOCOL),
    _trajectory("x", [], EndReason.EMPTY_PREFERENCE),
]
EXAMPLES = [Example("u", (), "b"), Example("v", (), "f"), Example("w", (), "q"), Example("x", (), "a")]


def test_counts() -> None:
    found = behaviour(TRAJECTORIES, EXAMPLES, [(), ("distinct",), ("answer", "calls"), ("answer",)])
    assert found.users == 4
    assert found.valid_rate == pytest.approx(0.25)
    assert found.calls == {0: 1, 1: 1, 2: 1, 3: 1}
    assert found.ends == {"answered": 2, "outside_protocol": 1, "empty_preference": 1}
    assert found.violations == {"answer": 2, "distinct": 1, "calls": 1}
    assert found.recall_by_turn == (0.25, 0.25, 0.5)
    assert found.preferences == (("1990s; comedy", 2), ("comedy", 1))
