"""Trajectories prepared for a reader."""

from __future__ import annotations

from collections import Counter

import pytest

from deeprec.evaluation.reading import choose, outcome_of, read
from deeprec.types import Call, Catalogue, EndReason, Example, Item, RetrievedItem, RewardPart, Trajectory

CATALOGUE = Catalogue(tuple(Item(name, f"Title {name}") for name in "abcdefgh"))


def _items(names: str) -> tuple[RetrievedItem, ...]:
    return tuple(RetrievedItem(name, 0.97 - 0.1 * place) for place, name in enumerate(names))


TRAJECTORY = Trajectory(
    "u@12",
    "u",
    (),
    (),
    (),
    (),
    "the text",
    (Call("anything", (), _items("abc")), Call("comedy", ("comedy",), _items("cd"))),
    ("d", "a", None),
    EndReason.ANSWERED,
    (RewardPart("listwise", 2.8, 1.0), RewardPart("pointwise", None, 0.5)),
)


def test_a_hit_is_resolved_to_titles_and_sources() -> None:
    example = Example("u", (*("gh" * 5), "e", "f"), "d")
    one = read(TRAJECTORY, example, (), ("a", "b", "d"), CATALOGUE)
    assert one.outcome == "hit"
    assert one.summary == "answered at 1; the TRM alone had it at 3"
    assert one.history == tuple(f"Title {name}" for name in [*("gh" * 4), "e", "f"])
    assert one.earlier == 2
    assert [(item.title, item.score, item.new, item.target) for item in one.calls[1].items] == [
        ("Title c", 97, False, False),
        ("Title d", 87, True, True),
    ]
    assert one.calls[1].new_items == 1
    assert one.rewards == (("listwise", "2.8 × 1"), ("pointwise", "not scored"))
    assert [(line.title, line.call, line.preference, line.trm_rank, line.target) for line in one.answer] == [
        ("Title d", 2, "comedy", 3, True),
        ("Title a", 1, "anything", 1, False),
        ("(a line that is no retrieved title)", None, "", None, False),
    ]


@pytest.mark.parametrize(
    ("target", "violations", "outcome", "summary"),
    [
        ("b", (), "miss", "retrieved by call 1 but not answered; not in TRM alone"),
        ("h", (), "miss", "never retrieved; not in TRM alone"),
        ("a", ("lines",), "invalid", "counted as a miss: lines; ended as answered"),
    ],
)
def test_misses_and_invalid_answers(target: str, violations: tuple[str, ...], outcome: str, summary: str) -> None:
    one = read(TRAJECTORY, Example("u", ("g",), target), violations, ("a",), CATALOGUE)
    assert (one.outcome, one.summary) == (outcome, summary)
    assert outcome_of(TRAJECTORY, Example("u", ("g",), target), violations) == outcome


def test_choosing_half_hits_a_quarter_invalid_and_the_rest_misses() -> None:
    outcomes = ["hit"] * 30 + ["miss"] * 50 + ["invalid"] * 20
    chosen = choose(outcomes, 12)
    assert Counter(outcomes[place] for place in chosen) == {"hit": 6, "invalid": 3, "miss": 3}
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["hit"] * 3, {"hit": 3}),
        (["invalid"] * 20, {"invalid": 12}),
        (["hit"] * 2 + ["miss"] * 40, {"hit": 2, "miss": 10}),
        (["hit"] * 40 + ["miss"], {"hit": 11, "miss": 1}),
        ([], {}),
    ],
)
def test_what_is_short_is_made_up_for(outcomes: list[str], expected: dict[str, int]) -> None:
    chosen = choose(outcomes, 12)
    assert Counter(outcomes[place] for place in chosen) == expected
    assert len(set(chosen)) == len(chosen)
