"""Ways to break a valid rollout, each with the format rules it breaks and what of the rollout it touches.

A mutation inserts or removes one thing and leaves what the later ones look for where it was, so that any two that touch
different things can be made together, in the order of ``MUTATIONS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from deeprec.markup import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    EXAMPLE_PIECES,
    LIST_CLOSE,
    LIST_OPEN,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)
from deeprec.types import EndReason, Trajectory

_CALL = re.compile(re.escape(PREFERENCE_OPEN) + ".*?" + re.escape(LIST_CLOSE), re.DOTALL)


@dataclass(frozen=True)
class Mutation:
    """One way to break a rollout; two that share an entry of ``touches`` undo or hide one another."""

    name: str
    change: Callable[[Trajectory], Trajectory]
    broken: frozenset[str]
    touches: frozenset[str]

    def __str__(self) -> str:
        return self.name


def replaced(old: str, new: str) -> Callable[[Trajectory], Trajectory]:
    """The first ``old`` of the text becomes ``new``; it has to be there."""

    def change(trajectory: Trajectory) -> Trajectory:
        assert old in trajectory.text
        return replace(trajectory, text=trajectory.text.replace(old, new, 1))

    return change


def inserted(words: str) -> Callable[[Trajectory], Trajectory]:
    """The policy also writes ``words`` before its first call."""
    return replaced("Look.", f"Look. {words}")


def _without_calls(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, text=_CALL.sub("", trajectory.text), calls=())


def _without_answer(trajectory: Trajectory) -> Trajectory:
    text = trajectory.text[: trajectory.text.index(ANSWER_OPEN)]
    return replace(trajectory, text=text, answer=(), end=EndReason.OUTSIDE_PROTOCOL)


def _answered_before_the_thought_closed(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, text=trajectory.text.replace(THINK_CLOSE, "") + THINK_CLOSE)


def _one_line_less(trajectory: Trajectory) -> Trajectory:
    return replace(replaced(f"2. Brazil\n{ANSWER_CLOSE}", ANSWER_CLOSE)(trajectory), answer=trajectory.answer[:1])


def _one_line_more(trajectory: Trajectory) -> Trajectory:
    head, closed, rest = trajectory.text.rpartition(ANSWER_CLOSE)
    return replace(trajectory, text=f"{head}3. Clue\n{closed}{rest}", answer=(*trajectory.answer, "d"))


def _second_answered(title: str, item_id: str | None) -> Callable[[Trajectory], Trajectory]:
    def change(trajectory: Trajectory) -> Trajectory:
        head, opened, answer = trajectory.text.rpartition(ANSWER_OPEN)
        assert "2. Brazil" in answer
        answered = (trajectory.answer[0], item_id, *trajectory.answer[2:])
        return replace(trajectory, text=head + opened + answer.replace("2. Brazil", f"2. {title}"), answer=answered)

    return change


def _mutation(name: str, change: Callable[[Trajectory], Trajectory], broken: set[str], touches: set[str]) -> Mutation:
    return Mutation(name, change, frozenset(broken), frozenset(touches))


_PARTS = {
    "preference open": PREFERENCE_OPEN,
    "preference close": PREFERENCE_CLOSE,
    "list open": LIST_OPEN,
    "list close": LIST_CLOSE,
}
"""Of a call; each stands as often as there are calls."""

MUTATIONS = (
    _mutation("no call", _without_calls, {"one_call", "retrieved_items"}, {"calls", "last list", "some item"}),
    *(
        _mutation(f"no {name}", replaced(markup, ""), {"balanced_markup"}, {"calls", name})
        for name, markup in _PARTS.items()
    ),
    *(
        _mutation(f"another {name}", inserted(markup), {"balanced_markup"}, {name})
        for name, markup in _PARTS.items()
        if markup != LIST_OPEN
    ),
    _mutation("forged list", inserted(f"{LIST_OPEN}\n1. Alien\n{LIST_CLOSE}"), {"balanced_markup"}, set()),
    _mutation("another list open", inserted(LIST_OPEN), {"balanced_markup", "list_opening"}, {"list open"}),
    _mutation("no line before the list", replaced(f"{LIST_OPEN}\n1.", f"{LIST_OPEN} 1."), {"list_opening"}, {"calls"}),
    _mutation("list from 2", replaced(f"{LIST_OPEN}\n1.", f"{LIST_OPEN}\n2."), {"list_opening"}, {"calls"}),
    _mutation("second think", inserted(THINK_OPEN), {"one_thought"}, {"think"}),
    _mutation(
        "no end of the thought",
        replaced(THINK_CLOSE, ""),
        {"one_thought", "one_answer", "thought_after_lists"},
        {"think close", "thought"},
    ),
    _mutation("two ends of the thought", replaced(THINK_CLOSE, THINK_CLOSE * 2), {"one_thought"}, {"think close"}),
    _mutation(
        "no answer",
        _without_answer,
        {"one_answer", "answer_lines", "distinct_items"},
        {"answer", "items", "lines", "answer text", "some item"},
    ),
    _mutation(
        "two answers",
        replaced(ANSWER_OPEN, f"{ANSWER_OPEN}\n1. Clue\n2. Alien\n{ANSWER_CLOSE}\n{ANSWER_OPEN}"),
        {"one_answer"},
        {"answer"},
    ),
    _mutation(
        "answer before the end of the thought",
        _answered_before_the_thought_closed,
        {"one_answer"},
        {"answer", "think close", "thought"},
    ),
    _mutation(
        "no word after the last list", replaced("Rank.\n", ""), {"thought_after_lists"}, {"thought", "last list"}
    ),
    _mutation(
        "markup in the answer", replaced("1. Alien\n2.", "1. Alien <|im_end|>\n2."), {"plain_answer"}, {"answer text"}
    ),
    _mutation("k - 1 lines", _one_line_less, {"answer_lines", "distinct_items"}, {"lines", "items"}),
    _mutation("k + 1 lines", _one_line_more, {"answer_lines", "distinct_items"}, {"lines"}),
    _mutation("repeated item", _second_answered("Alien", "a"), {"distinct_items"}, {"items"}),
    _mutation("item not retrieved", _second_answered("Dune", "e"), {"retrieved_items"}, {"items"}),
    _mutation("unknown title", _second_answered("Nothing", None), {"retrieved_items"}, {"items"}),
    _mutation("role", inserted("User: more, please."), {"no_echo"}, {"echo"}),
    _mutation("turn of a chat", inserted("[INST]"), {"no_echo"}, {"echo"}),
    *(_mutation(f"echo of {piece!r}", inserted(piece), {"no_echo"}, {"echo"}) for piece in EXAMPLE_PIECES),
    _mutation("another language", inserted("Думаю."), {"same_language"}, {"language"}),
)
