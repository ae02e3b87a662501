"""Figures over a handful of hand-made rollouts."""

from __future__ import annotations

import pytest

from deeprec.explore.summary import recall_by_turn, summarise
from deeprec.types import Call, EndReason, Example, RetrievedItem, Trajectory


def trajectory(calls, answer, mask):
    made = tuple(
        Call("; ".join(phrases), tuple(phrases), tuple(RetrievedItem(item_id, 0.5) for item_id in found))
        for phrases, found in calls
    )
    return Trajectory("u@1", "u", (1,), mask, mask, (0.0,) * len(mask), "", made, answer, EndReason.ANSWERED)


ROLLOUTS = [
    trajectory([((), "ab"), (("x", "y"), "cd")], ("a", "b"), (1, 1, 0)),
    trajectory([((), "ab"), (("y", "x"), "ef"), (("x", "y"), "gh")], ("b", "a"), (1, 1, 1)),
    trajectory([(("z",), "ab")], ("a", None), (1, 0, 0)),
    trajectory([], (), (0, 0)),
]
EXAMPLES = [Example("u", ("h",), target) for target in ("a", "g", "q", "a")]


def test_summary():
    summary = summarise(
        ROLLOUTS, EXAMPLES, [True, True, False, False], [("a", "b"), ("b", "a", "c"), ("a", "b"), ("a", "b")]
    )
    assert summary == pytest.approx(
        {
            "valid_rate": 0.5,
            "mean_calls": 1.5,
            "candidate_recall": 0.5,
            "tokens_per_user": 1.5,
            "same_as_trm": 0.25,
            "top_preference_share": 0.5,
        }
    )
    assert "same_as_trm" not in summarise(ROLLOUTS, EXAMPLES, [True] * 4)


def test_recall_by_turn():
    assert recall_by_turn(ROLLOUTS, EXAMPLES) == [0.25, 0.25, 0.5]
    assert recall_by_turn(ROLLOUTS[3:], EXAMPLES[3:]) == []


def test_nothing_to_summarise():
    assert set(summarise([], [], [], []).values()) == {0.0}
