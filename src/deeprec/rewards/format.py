"""Format: whether a rollout keeps every rule of the protocol (method, section 3).

The first rules are the reference's and judge the text; the strict ones are ours and judge what was answered and which
words were used. Titles in prompts and lists cannot hold markup, so markup in the text was written by the policy or by
the environment; counting it against the calls tells a forged list from a real one.
"""

from __future__ import annotations

import re
import unicodedata

from deeprec.config import ExploreConfig
from deeprec.markup import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    EXAMPLE_PIECES,
    LIST_CLOSE,
    LIST_OPEN,
    MARKUP,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    ROLES,
    THINK_CLOSE,
    THINK_OPEN,
)
from deeprec.types import EndReason, Trajectory

RULES = (
    "balanced_markup",
    "list_opening",
    "one_call",
    "one_thought",
    "one_answer",
    "thought_after_lists",
    "plain_answer",
    "answer_lines",
)
"""The reference's rules, in the order they are reported."""

STRICT_RULES = ("distinct_items", "retrieved_items", "no_echo", "same_language")
"""Ours besides."""

_LIST = re.compile(re.escape(LIST_OPEN) + r"(.*?)" + re.escape(LIST_CLOSE), re.DOTALL)
_ROLE = re.compile(r"(?:\b(?:" + "|".join(ROLES) + r")\s*:)|<\|im_(?:start|end)\|>|\[/?INST\]", re.IGNORECASE)
_CONTROL = re.compile(r"<\|[^|<>]*\|>")
_LETTER = re.compile(r"\b(?:LETTER|IDEOGRAPH|SYLLABLE|SYLLABICS|CHARACTER)\b")
"""In the Unicode names of what a script is written with (Thai has characters, Inuktitut syllabics)."""


def format_violations(trajectory: Trajectory, explore: ExploreConfig, *, strict: bool = True) -> tuple[str, ...]:
    """Names of the rules a rollout breaks, of ``RULES`` and, when ``strict``, ``STRICT_RULES``; empty = valid."""
    broken = _protocol_violations(trajectory, explore.answer_size)
    if strict:
        broken |= _strict_violations(trajectory, explore.answer_size)
    return tuple(rule for rule in (*RULES, *STRICT_RULES) if rule in broken)


def format_value(violations: tuple[str, ...]) -> float:
    """0 if every rule holds, else −1."""
    return -1.0 if violations else 0.0


def _protocol_violations(trajectory: Trajectory, answer_size: int) -> set[str]:
    text = trajectory.text
    head, opened, rest = text.rpartition(ANSWER_OPEN)
    body = rest.partition(ANSWER_CLOSE)[0] if opened else ""
    holds = {
        "balanced_markup": {text.count(markup) for markup in (PREFERENCE_OPEN, PREFERENCE_CLOSE, LIST_OPEN, LIST_CLOSE)}
        == {len(trajectory.calls)},
        "list_opening": text.count(LIST_OPEN) == text.count(f"{LIST_OPEN}\n1."),
        "one_call": len(trajectory.calls) > 0,
        "one_thought": THINK_OPEN not in text and text.count(THINK_CLOSE) == 1,
        "one_answer": trajectory.end is EndReason.ANSWERED
        and text.count(ANSWER_OPEN) == text.count(ANSWER_CLOSE) == 1
        and THINK_CLOSE in head,
        "thought_after_lists": _goes_on_after_lists(text),
        "plain_answer": not any(markup in body for markup in MARKUP) and not _CONTROL.search(body),
        "answer_lines": sum(bool(line.strip()) for line in body.split("\n")) == answer_size,
    }
    return {rule for rule, kept in holds.items() if not kept}


def _goes_on_after_lists(text: str) -> bool:
    """Words stand between the last list and the close of the thought."""
    thought, closed, _ = text.partition(THINK_CLOSE)
    last = text.rfind(LIST_CLOSE)
    if not closed or last > len(thought):
        return False
    return bool(thought[last + len(LIST_CLOSE) :].strip()) if last >= 0 else True


def _strict_violations(trajectory: Trajectory, answer_size: int) -> set[str]:
    retrieved = {item.item_id for call in trajectory.calls for item in call.items}
    written = _written(trajectory.text)
    lists = "".join(_LIST.findall(trajectory.text))
    holds = {
        "distinct_items": len(set(trajectory.answer)) == len(trajectory.answer) == answer_size,
        "retrieved_items": None not in trajectory.answer and set(trajectory.answer) <= retrieved,
        "no_echo": not _ROLE.search(written) and not any(piece in written for piece in EXAMPLE_PIECES),
        "same_language": scripts(written) <= scripts(lists) | {"LATIN"},
    }
    return {rule for rule, kept in holds.items() if not kept}


def _written(text: str) -> str:
    """The policy's own words: the text without lists, and without the answer, whose lines are titles."""
    own = _LIST.sub(" ", text)
    head, _, rest = own.rpartition(ANSWER_OPEN)
    return head + rest.partition(ANSWER_CLOSE)[2] if head else own


def scripts(text: str) -> set[str]:
    """Scripts of the text's letters by their Unicode names: ``LATIN``, ``CYRILLIC``, ``CJK``, …

    The prompt is in Latin script; the scripts of the titles it holds are known from the lists. Letters of another width
    or style count as plain ones (their NFKC form); signs that Unicode calls alphabetic (``º``, ``µ``, ``ー``) and
    modifier letters (the ``ʻ`` of Hawaiʻi) stand in words of any script and have none.
    """
    letters = [one for one in set(text) if one.isalpha() and _LETTER.search(unicodedata.name(one, "UNKNOWN LETTER"))]
    plain = {one for letter in letters for one in unicodedata.normalize("NFKC", letter) if one.isalpha()}
    return {unicodedata.name(one, "UNKNOWN").split()[0] for one in plain} - {"MODIFIER"}
