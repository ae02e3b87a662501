"""What a policy wrote, ready to be shown: its thoughts without markup, and no character that moves a cursor."""

from __future__ import annotations

from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, LIST_CLOSE, PREFERENCE_CLOSE, PREFERENCE_OPEN, THINK_CLOSE
from deeprec.types import Trajectory

MAX_TEXT = 4000
"""Characters kept of what a policy wrote in one turn."""


def written(trajectory: Trajectory) -> list[str]:
    """What the policy wrote before each call and after the last list: one text more than there are calls.

    A call's closing markup always ends what the policy writes, and titles hold no markup: both cuts are certain.
    """
    rest = trajectory.text
    texts = []
    for _ in trajectory.calls:
        text, closed, rest = rest.partition(PREFERENCE_CLOSE)
        texts.append(text + closed)
        rest = rest.partition(LIST_CLOSE)[2]
    return [*texts, rest]


def thought_of(text: str) -> str:
    """What the policy wrote in one turn but for its call or its answer."""
    for opening, closing in ((PREFERENCE_OPEN, PREFERENCE_CLOSE), (ANSWER_OPEN, ANSWER_CLOSE)):
        if text.endswith(closing) and opening in text:
            text = text.rpartition(opening)[0]
            break
    return plain(text.replace(THINK_CLOSE, " "), lines=True)


def plain(text: str, *, lines: bool = False) -> str:
    """Printable characters only, as one line or (``lines``) as the lines they are; at most ``MAX_TEXT`` characters.

    Control characters, marks of writing direction, lone surrogates and what is not assigned become spaces.
    """
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    rows = cut.split("\n") if lines else [cut]
    kept = (" ".join("".join(c if c.isprintable() else " " for c in row).split()) for row in rows)
    return "\n".join(row for row in kept if row)
