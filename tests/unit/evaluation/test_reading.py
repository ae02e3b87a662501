"""Trajectories prepared for a reader."""

from __future__ import annotations

from collections import Counter

import pytest

from deeprec.evaluation.reading import choose, outcome_of, read, read_call
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
    "\nA look.\n<|begin_of_preference|>anything<|end_of_preference|>\n<|begin_of_item_list|>\n1. Title a | 97\n"
    "<|end_of_item_list|>\nCloser.\n<|begin_of_preference|>comedy<|end_of_preference|>\n<|begin_of_item_list|>\n"
    "1. Title c | 97\n<|end_of_item_list|>\nRank.\n</think>\n<recommendation_list>\n1. Title d\n</recommendation_list>",
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
    assert [item.first for item in one.calls[1].items] == [1, 2]
    assert [call.thought for call in one.calls] == ["A look.", "Closer."]
    assert one.thought == "Rank."
    assert one.ending.endswith("<recommendation_list>\n1. Title d\n</recommendation_list>")
    assert [(part.name, part.value, part.weight) for part in one.rewards] == [
        ("listwise", 2.8, 1.0),
        ("pointwise", None, 0.5),
    ]
    assert one.reward == 2.8
    assert (one.found, one.answered, one.end, one.violations) == (2, 1, "answered", ())
    assert one.trm == ("Title a", "Title b", "Title d")
    assert [(line.title, line.call, line.rank, line.preference, line.trm_rank, line.target) for line in one.answer] == [
        ("Title d", 2, 2, "comedy", 3, True),
        ("Title a", 1, 1, "anything", 1, False),
        ("(a line that is no retrieved title)", None, None, "", None, False),
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
    chosen = choose(outcomes, [0.0] * 100, 8)
    assert Counter(outcomes[place] for place in chosen) == {"hit": 4, "invalid": 2, "miss": 2}
    assert chosen == sorted(set(chosen))


def test_a_tenth_has_the_highest_reward_and_a_tenth_the_lowest() -> None:
    rewards = [float(place % 50) for place in range(100)]
    chosen = choose(["miss"] * 100, rewards, 20)
    assert len(set(chosen)) == 20
    assert {49, 99} <= set(chosen)
    assert {0, 50} <= set(chosen)
    same = choose(["miss"] * 100, [1.0] * 100, 20)
    assert {0, 1, 2, 3} <= set(same)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["hit"] * 3, {"hit": 3}),
        (["invalid"] * 20, {"invalid": 9}),
        (["hit"] * 2 + ["miss"] * 40, {"hit": 2, "miss": 7}),
        (["hit"] * 40 + ["miss"], {"hit": 8, "miss": 1}),
        ([], {}),
    ],
)
def test_what_is_short_is_made_up_for(outcomes: list[str], expected: dict[str, int]) -> None:
    chosen = choose(outcomes, [0.0] * len(outcomes), 9)
    assert Counter(outcomes[place] for place in chosen) == expected
    assert len(set(chosen)) == len(chosen)


def test_all_are_chosen_where_there_are_no_more() -> None:
    assert choose(["hit", "miss", "invalid"] * 10, [1.0, 0.0, -1.0] * 10, 30) == list(range(30))


def test_a_call_read_alone_knows_what_came_before() -> None:
    found: dict[str, tuple[int, int]] = {}
    read_call(1, TRAJECTORY.calls[0], "One.", found, CATALOGUE)
    second = read_call(2, TRAJECTORY.calls[1], "Two.", found, CATALOGUE)
    assert [(item.item_id, item.new, item.first, item.target) for item in second.items] == [
        ("c", False, 1, False),
        ("d", True, 2, False),
    ]
    assert found == {"a": (1, 1), "b": (1, 2), "c": (1, 3), "d": (2, 2)}
