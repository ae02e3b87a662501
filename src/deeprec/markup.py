"""The markup of the exploration protocol and the words that no completion may echo: constants only.

The loop writes and reads this markup, the format reward judges it; it lives below both so that neither imports the
other. A language model's tokenizer holds each of ``MARKUP`` as one special token.
"""

from __future__ import annotations

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
PREFERENCE_OPEN = "<|begin_of_preference|>"
PREFERENCE_CLOSE = "<|end_of_preference|>"
LIST_OPEN = "<|begin_of_item_list|>"
LIST_CLOSE = "<|end_of_item_list|>"
ANSWER_OPEN = "<recommendation_list>"
ANSWER_CLOSE = "</recommendation_list>"

MARKUP = (
    THINK_OPEN,
    THINK_CLOSE,
    PREFERENCE_OPEN,
    PREFERENCE_CLOSE,
    LIST_OPEN,
    LIST_CLOSE,
    ANSWER_OPEN,
    ANSWER_CLOSE,
)

ROLES = ("user", "assistant", "system", "human")
"""Speakers of a chat; a completion that goes on with ``User:`` plays a part that is not its own."""

EXAMPLE_THOUGHT = "your reasoning about this user"
EXAMPLE_PREFERENCE = "first phrase; second phrase"
EXAMPLE_TITLE = "Title of an item"

EXAMPLE_PIECES = (EXAMPLE_THOUGHT, EXAMPLE_PREFERENCE, EXAMPLE_TITLE)
"""Placeholders the full prompt shows; a completion that repeats them has copied the example."""
