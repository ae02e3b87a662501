"""Every format rule, broken one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deeprec.rewards.format import RULES, STRICT_RULES, format_value, format_violations, scripts
from deeprec.types import EndReason

OPEN, CLOSE = "<|begin_of_preference|>", "<|end_of_preference|>"
LIST_OPEN, LIST_CLOSE = "<|begin_of_item_list|>", "<|end_of_item_list|>"


def edited(trajectory, old, new, count=1):
    assert old in trajectory.text
    return replace(trajectory, text=trajectory.text.replace(old, new, count))


def test_a_valid_rollout(make, explore):
    assert format_violations(make(), explore) == ()
    assert format_value(()) == 0.0
    assert format_value(("one_call",)) == -1.0


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (OPEN, "", {"balanced_markup"}),
        ("Rank.", f"{OPEN}comedy Rank.", {"balanced_markup"}),
        ("Rank.", f"{CLOSE} Rank.", {"balanced_markup"}),
        ("Rank.", f"{LIST_CLOSE} Rank.", {"balanced_markup"}),
        ("Rank.", f"{OPEN}x{CLOSE}\n{LIST_OPEN}\n1. Forged\n{LIST_CLOSE}\nRank.", {"balanced_markup"}),
        (f"{LIST_OPEN}\n1.", f"{LIST_OPEN} 1.", {"list_opening"}),
        ("Look.", "Look. <think>", {"one_thought"}),
        ("Look.", "Look. </think>", {"one_thought", "thought_after_lists"}),
        ("</think>", "", {"one_thought", "one_answer", "thought_after_lists"}),
        ("Rank.\n", "", {"thought_after_lists"}),
        ("<recommendation_list>", "<recommendation_list>\n<recommendation_list>", {"one_answer"}),
        ("</recommendation_list>", "", {"one_answer"}),
        ("1. Alien\n2.", "1. Alien <think>\n2.", {"one_thought", "plain_answer"}),
        ("1. Alien\n2.", "1. Alien <|im_end|>\n2.", {"plain_answer"}),
        ("2. Brazil\n</", "2. Brazil\n3. Clue\n</", {"answer_lines"}),
        ("2. Brazil\n</", "</", {"answer_lines"}),
    ],
)
def test_protocol_rules(make, explore, old, new, broken):
    assert set(format_violations(edited(make(), old, new), explore)) == broken
    assert broken <= set(RULES)


def test_the_answer_stands_after_the_thought(make, explore):
    text = make().text.replace("\n</think>", "") + "</think>"
    assert "one_answer" in format_violations(replace(make(), text=text), explore)


def test_a_rollout_without_calls(make, explore):
    assert "one_call" in format_violations(make(calls=()), explore, strict=False)


@pytest.mark.parametrize("end", [end for end in EndReason if end is not EndReason.ANSWERED])
def test_a_rollout_that_did_not_answer(make, explore, end):
    assert "one_answer" in format_violations(make(end=end), explore)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"answer": ("a", "a")}, {"distinct_items"}),
        ({"answer": ("a", "b"), "calls": (((), "ac"),)}, {"retrieved_items"}),
    ],
)
def test_strict_rules_on_items(make, explore, changes, broken):
    trajectory = make(**changes)
    assert set(format_violations(trajectory, explore)) == broken
    assert broken <= set(STRICT_RULES)
    assert format_violations(trajectory, explore, strict=False) == ()


def test_a_line_that_is_no_retrieved_title(make, explore):
    trajectory = replace(make(), answer=("a", None))
    assert format_violations(trajectory, explore) == ("retrieved_items",)


def test_a_title_that_holds_another_never_counts_as_it(make, explore):
    """Alien is retrieved, Aliens is not: answering Aliens breaks the rule though its title holds Alien."""
    trajectory = make(answer=("b", "c"), calls=(((), "ac"),))
    assert format_violations(trajectory, explore) == ("retrieved_items",)


@pytest.mark.parametrize(
    ("words", "broken"),
    [
        ("User: more please.", "no_echo"),
        ("ASSISTANT : here.", "no_echo"),
        ("<|im_start|>", "no_echo"),
        ("first phrase; second phrase", "no_echo"),
        ("Title of an item", "no_echo"),
        ("The user likes this system.", None),
        ("Думаю.", "same_language"),
        ("好的。", "same_language"),
        ("Très bien, é.", None),
    ],
)
def test_strict_rules_on_words(make, explore, words, broken):
    trajectory = edited(make(), "Look.", words)
    assert format_violations(trajectory, explore) == (() if broken is None else (broken,))
    assert format_violations(trajectory, explore, strict=False) == ()


def test_words_of_titles_are_not_the_policys(make, explore):
    trajectory = edited(make(), "Alien |", "User: Солярис |")
    assert format_violations(trajectory, explore) == ()
    assert format_violations(edited(trajectory, "Rank.", "Солярис."), explore) == ()


def test_scripts():
    assert scripts("abc é 12 …") == {"LATIN"}
    assert scripts("Фильм 映画") == {"CYRILLIC", "CJK"}
    assert scripts("123") == set()
