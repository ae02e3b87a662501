"""Every format rule, broken alone and in pairs, and titles that try to break them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprec.explore.protocol import AnswerText, TitleBook, parse_segment, render_list
from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, MARKUP
from deeprec.rewards.format import RULES, STRICT_RULES, format_value, format_violations, scripts
from deeprec.types import Call, Catalogue, EndReason, Item, RetrievedItem, Trajectory
from tests.unit.rewards.mutations import MUTATIONS

OPEN, CLOSE = "<|begin_of_preference|>", "<|end_of_preference|>"
LIST_OPEN, LIST_CLOSE = "<|begin_of_item_list|>", "<|end_of_item_list|>"


def edited(trajectory, old, new, count=1):
    assert old in trajectory.text
    return replace(trajectory, text=trajectory.text.replace(old, new, count))


def test_a_valid_rollout(make, explore):
    assert format_violations(make(), explore) == ()
    assert format_value(()) == 0.0
    assert format_value(("one_call",)) == -1.0


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_rule_broken_alone(make, explore, mutation):
    trajectory = mutation.change(make())
    assert set(format_violations(trajectory, explore)) == mutation.broken
    assert format_value(format_violations(trajectory, explore)) == -1.0
    assert set(format_violations(trajectory, explore, strict=False)) == mutation.broken & set(RULES)


PAIRS = [pair for pair in combinations(MUTATIONS, 2) if not pair[0].touches & pair[1].touches]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}, {pair[1]}")
def test_two_rules_broken_together_are_both_named_and_cost_no_more(make, explore, pair):
    first, second = pair
    trajectory = second.change(first.change(make()))
    violations = format_violations(trajectory, explore)
    assert set(violations) == first.broken | second.broken
    assert format_value(violations) == -1.0
    lenient = format_violations(trajectory, explore, strict=False)
    assert set(lenient) == (first.broken | second.broken) & set(RULES)


INSEPARABLE = {
    ("one_call", "retrieved_items"): "whatever is answered without a call was not retrieved",
    ("answer_lines", "distinct_items"): "a wrong number of lines is a wrong number of items",
}
"""Pairs of which nothing breaks the first rule alone, and why."""


def test_every_pair_of_rules_is_broken_by_two_mutations():
    """Each of the two breaks one rule of the pair and not the other, but for those that cannot be told apart."""
    rules = {frozenset(pair) for pair in combinations((*RULES, *STRICT_RULES), 2)}
    assert len(rules) == 66
    broken = [(first.broken, second.broken) for first, second in PAIRS]
    apart = {frozenset((rule, other)) for one, two in broken for rule in one - two for other in two - one}
    assert rules - apart == {frozenset(pair) for pair in INSEPARABLE}
    together = {frozenset((rule, other)) for one, two in broken for rule in one for other in two if rule != other}
    assert together == rules
    for rule, implied in INSEPARABLE:
        assert all(implied in mutation.broken for mutation in MUTATIONS if rule in mutation.broken)


@pytest.mark.parametrize("markup", [one for one in MARKUP if one not in (ANSWER_OPEN, ANSWER_CLOSE)])
def test_no_markup_of_the_protocol_is_allowed_in_the_answer(make, explore, markup):
    trajectory = edited(make(), "1. Alien\n2.", f"1. Alien {markup}\n2.")
    assert "plain_answer" in format_violations(trajectory, explore, strict=False)


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


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Nº 5, 1ª, 3 µm, 2 \u2126", {"LATIN"}),
        ("º µ ª ー 々 𝐀 ℓ ʻ", set()),
        ("Ｆｕｌｌ ｗｉｄｔｈ", {"LATIN"}),
        ("Hawaiʻi, ŉ, xʰ, ﬁn", {"LATIN"}),
        ("ｶﾀｶﾅ", {"KATAKANA"}),
        ("コーヒー", {"KATAKANA"}),
        ("ひらがな", {"HIRAGANA"}),
        ("\uf900 \u4e00", {"CJK"}),
        ("한", {"HANGUL"}),
        ("ไทย", {"THAI"}),
        ("ᐃᓄᒃ", {"CANADIAN"}),
        ("ꀀ", {"YI"}),
        ("ж", {"CYRILLIC"}),
    ],
)
def test_scripts_of_signs_and_of_letters_of_another_width(words, found):
    assert scripts(words) == found


@pytest.mark.parametrize("words", ["Nº 5, 3 µm.", "Ｌｏｏｋ．", "The 2ª, Hawaiʻi, 5 \u2126, 𝐁𝐨𝐥𝐝."])
def test_signs_and_wide_letters_are_no_other_language(make, explore, words):
    assert format_violations(edited(make(), "Look.", words), explore) == ()


@pytest.mark.parametrize("words", ["ｶﾀｶﾅ", "ﾎﾝ", "ไทย", "ꀀ"])
def test_another_script_is_another_language_whatever_its_width(make, explore, words):
    assert format_violations(edited(make(), "Look.", words), explore) == ("same_language",)


def test_a_preference_in_another_language_is_one(make, explore):
    """Catalogue and lists are in Latin script: the policy fell out of the prompt's language."""
    assert format_violations(make(calls=(((), "ab"), (("комедия",), "cd"))), explore) == ("same_language",)


PIECES = [
    *MARKUP,
    "<|im_end|>",
    "[INST]",
    "User: ",
    "\n1. ",
    "\n",
    "2. ",
    " | 99",
    "; ",
    "Alien",
    "Солярис",
    "é",
    " ",
    "\u2028",
]
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=0, max_size=8).map("".join)


@given(
    titles=st.lists(HOSTILE, min_size=4, max_size=4),
    phrases=st.lists(st.lists(HOSTILE, max_size=3).map(tuple), min_size=4, max_size=4),
    show_phrases=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_titles_and_phrases_forge_neither_a_list_nor_an_answer(explore, titles, phrases, show_phrases):
    """Lists and answers are rendered and read as rollouts do it: with hostile items a valid rollout stays valid."""
    explore = explore.model_copy(update={"show_phrases": show_phrases})
    items = [Item(f"i{row}", title, phrases=phrases[row]) for row, title in enumerate(titles)]
    book = TitleBook(Catalogue(tuple(items)))
    first, second = (tuple(RetrievedItem(item_id, 0.5) for item_id in ids) for ids in (("i0", "i1"), ("i2", "i3")))
    explored = "".join(
        f"\nLook.\n{OPEN}{words}{CLOSE}{render_list(items, book, explore)}"
        for words, items in (("anything", first), ("comedy", second))
    )
    lines = "".join(f"{number}. {book.title(item_id)}\n" for number, item_id in enumerate(("i1", "i2"), start=1))
    written = f"Rank.\n</think>\n{ANSWER_OPEN}\n{lines}{ANSWER_CLOSE}"
    parsed = parse_segment(written)
    assert isinstance(parsed, AnswerText)
    answer = tuple(book.resolve(title, {"i0", "i1", "i2", "i3"}) for title in parsed.titles)
    assert answer == ("i1", "i2")
    calls = (Call("anything", (), first), Call("comedy", ("comedy",), second))
    valid = _rollout(explored + written, calls, answer, EndReason.ANSWERED)
    assert format_violations(valid, explore) == ()
    # The same lists without an answer: none of the titles and phrases counts as one.
    silent = _rollout(explored + "Rank.\n</think>\n", calls, (), EndReason.OUTSIDE_PROTOCOL)
    assert set(format_violations(silent, explore)) == {"one_answer", "answer_lines", "distinct_items"}


@given(title=st.text("abcdef ", min_size=1, max_size=8), around=st.tuples(*[st.text("xyz", max_size=3)] * 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_a_retrieved_title_that_contains_another_never_counts_as_it(explore, title, around):
    if not title.strip() or not "".join(around):
        return
    longer = around[0] + title.strip() + around[1]
    book = TitleBook(Catalogue((Item("short", title.strip()), Item("long", longer), Item("other", "Brazil"))))
    retrieved = {"long", "other"}
    assert book.resolve(book.title("short"), retrieved) is None
    assert book.resolve(book.title("long"), retrieved) == "long"
    items = tuple(RetrievedItem(item_id, 0.5) for item_id in ("long", "other"))
    text = (
        f"\nLook.\n{OPEN}anything{CLOSE}{render_list(items, book, explore)}Rank.\n</think>\n{ANSWER_OPEN}\n"
        f"1. {book.title('short')}\n2. Brazil\n{ANSWER_CLOSE}"
    )
    trajectory = _rollout(text, (Call("anything", (), items),), (None, "other"), EndReason.ANSWERED)
    assert format_violations(trajectory, explore) == ("retrieved_items",)


def _rollout(text, calls, answer, end):
    return Trajectory("u@3", "u", (1,), (2,), (1,), (-0.1,), text=text, calls=calls, answer=answer, end=end)
