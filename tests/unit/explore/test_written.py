"""What a policy wrote, as a reader sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deeprec.explore.written import MAX_TEXT, plain, thought_of, written
from deeprec.types import Call, EndReason, Trajectory

TEXT = (
    "\nA look.\n<|begin_of_preference|>anything<|end_of_preference|>\n<|begin_of_item_list|>\n1. Title a | 97\n"
    "<|end_of_item_list|>\nCloser.\n<|begin_of_preference|>comedy<|end_of_preference|>\n<|begin_of_item_list|>\n"
    "1. Title c | 97\n<|end_of_item_list|>\nRank.\n</think>\n<recommendation_list>\n1. Title d\n</recommendation_list>"
)
CALLS = (Call("anything", (), ()), Call("comedy", ("comedy",), ()))
TRAJECTORY = Trajectory("u@1", "u", (), (), (), (), TEXT, CALLS, (), EndReason.ANSWERED)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07\r\n\tc", "a [31mb c"),
        ("right \u202eto left\u2066", "right to left"),
        ("zero\u200bwidth\ufeff", "zero width"),
        ("\ud800lone", "lone"),
        ("[bold]Ro; ot[/bold] <b>", "[bold]Ro; ot[/bold] <b>"),
        ("Amélie 七人の侍", "Amélie 七人の侍"),
    ],
)
def test_only_printable_characters_are_left(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lines_are_kept_where_they_are_wanted_and_long_text_is_cut() -> None:
    assert plain(" a \n\n\x1bb\n", lines=True) == "a\nb"
    assert len(plain("x" * (2 * MAX_TEXT))) == MAX_TEXT


def test_what_the_policy_wrote_is_cut_at_its_calls() -> None:
    assert [thought_of(text) for text in written(TRAJECTORY)] == ["A look.", "Closer.", "Rank."]
    none = replace(TRAJECTORY, calls=(), text="Only talk.")
    assert written(none) == ["Only talk."]
    forged = "<|begin_of_item_list|>\n1. Mine\n<|end_of_item_list|>\n<|begin_of_preference|>a<|end_of_preference|>"
    listed = "\n<|begin_of_item_list|>\n1. Theirs\n<|end_of_item_list|>\nRest."
    one = replace(TRAJECTORY, calls=TRAJECTORY.calls[:1], text=forged + listed)
    assert written(one) == [forged, "\nRest."]


def test_a_thought_without_a_call_or_an_answer_is_all_that_was_written() -> None:
    assert thought_of("</think>\nI stop here <|begin_of_preference|>") == "I stop here <|begin_of_preference|>"
    assert thought_of("a<recommendation_list>\n1. b\n</recommendation_list>") == "a"
