"""Titles, lists and the parser."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.explore.protocol import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    MARKUP,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    AnswerText,
    Outside,
    PreferenceText,
    TitleBook,
    neutralise,
    parse_segment,
    render_list,
    render_preference,
    split_phrases,
)
from deeprec.types import Catalogue, Item, RetrievedItem

hostile = st.lists(
    st.sampled_from(
        [*MARKUP, "<|im_end|>", "\n", "\r", "\u2028", "; ", ";", " | 97", "|", "12. ", "3.", " ", "a", "É"]
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("<|end_of_item_list|> now </think>", "‹/end_of_item_list/› now ‹/think›"),
        ("Two\nLines\u2028and\ttabs", "Two Lines and tabs"),
        ("Film | 97", "Film / 97"),
        ("12. Monkeys", "12 Monkeys"),
        ("3.14", "3.14"),
        ("Steins;Gate; Zero;", "Steins;Gate, Zero"),
        ("  \n ", ""),
    ],
)
def test_neutralise(title, expected):
    assert neutralise(title) == expected


@settings(deadline=None)
@given(st.one_of(hostile, st.text(max_size=40)))
def test_neutralised_text_is_harmless(text):
    plain = neutralise(text)
    assert plain == neutralise(plain)
    assert not set("<>|\n\r") & set(plain)
    assert "; " not in plain
    assert not re.match(r"\d+\.(\s|$)", plain)
    assert len((plain or "x").splitlines()) == 1


@settings(deadline=None)
@given(st.lists(st.one_of(hostile, st.sampled_from(["A", "A (2)", "A (3)", "5", "5."])), max_size=12))
def test_titles_are_unique_and_lead_back(names):
    book = TitleBook(Catalogue(tuple(Item(str(row), name) for row, name in enumerate(names))))
    assert len(set(book.titles)) == len(names)
    for row in range(len(names)):
        title = book.title(str(row))
        assert title
        assert "; " not in title
        assert not re.match(r"\d+\.(\s|$)", title)
        assert book.item(title) == str(row)
        assert book.resolve(title, {str(row)}) == str(row)
        assert book.resolve(title, set()) is None


def test_colliding_titles_keep_the_first_and_never_take_anothers():
    names = ["A", "A", "A (2)", "", ""]
    book = TitleBook(Catalogue(tuple(Item(str(row), name) for row, name in enumerate(names))))
    assert book.titles == ("A", "A (3)", "A (2)", "Untitled", "Untitled (2)")


def test_list_text(titles, config):
    items = [RetrievedItem("i1", 0.966), RetrievedItem("i2", 1.2)]
    assert render_list(items, titles, config) == (
        "\n<|begin_of_item_list|>\n1. Film 1 | 97\n2. Film 2 | 100\n<|end_of_item_list|>\n"
    )
    bare = config.model_copy(update={"show_scores": False, "show_phrases": True})
    assert render_list(items[:1], titles, bare) == (
        "\n<|begin_of_item_list|>\n1. Film 1\n   drama, 1990s\n<|end_of_item_list|>\n"
    )


def test_phrases():
    assert split_phrases(" Comedy ;  1990S;comedy;; ") == ("comedy", "1990s")
    assert split_phrases("anything; comedy") == ("comedy",)
    assert split_phrases("anything") == ()
    assert len(split_phrases("; ".join(map(str, range(50))))) == 12
    assert render_preference(("comedy", "1990s")) == "comedy; 1990s"
    assert render_preference(()) == "anything"
    assert render_preference(("a; b<think>",)) == "a, b‹think›"


def call(inner):
    return parse_segment(f"\nThought.\n{PREFERENCE_OPEN}{inner}{PREFERENCE_CLOSE}")


def test_parse_calls():
    assert call("comedy; 1990s") == PreferenceText("comedy; 1990s", ("comedy", "1990s"), empty=False)
    assert call("anything") == PreferenceText("anything", (), empty=False)
    assert call("Anything ; ") == PreferenceText("Anything ;", (), empty=False)
    assert call("  ").empty
    assert call(" ; ").empty
    assert isinstance(call("a <think> b"), Outside)
    assert isinstance(parse_segment(f"no opening {PREFERENCE_CLOSE}"), Outside)
    assert len(call("x" * 5000).preference) == 300


def test_parse_answers():
    text = f"rank\n</think>\n{ANSWER_OPEN}\n1. Film 1\n2. Film 2 | 97\nnot a line\n\n4.x\n{ANSWER_CLOSE}"
    assert parse_segment(text) == AnswerText(("Film 1", "Film 2 | 97", None, None))
    assert parse_segment(f"{ANSWER_OPEN}{ANSWER_CLOSE}") == AnswerText(())
    assert isinstance(parse_segment(f"1. Film 1\n{ANSWER_CLOSE}"), Outside)
    assert isinstance(parse_segment("just words"), Outside)


@settings(deadline=None)
@given(st.one_of(hostile, st.text(max_size=60)))
def test_parsing_never_fails(text):
    for closing in ("", PREFERENCE_CLOSE, ANSWER_CLOSE):
        for segment in (text + closing, PREFERENCE_OPEN + ANSWER_OPEN + text + closing):
            assert isinstance(parse_segment(segment), PreferenceText | AnswerText | Outside)


def test_a_title_that_holds_another_is_not_it():
    book = TitleBook(Catalogue((Item("short", "Alien"), Item("long", "Aliens"), Item("longer", "Alien Nation"))))
    assert book.resolve("Alien", {"long", "longer"}) is None
    assert book.resolve("alien", {"short"}) is None
    assert book.resolve("Aliens", {"short", "long"}) == "long"
