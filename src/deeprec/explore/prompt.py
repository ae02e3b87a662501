"""The prompt: what a policy reads before it explores.

``full`` explains the role, the tool, the protocol and the answer in words, for a general language model; ``compact``
is the history alone, for the tiny policy, which learns the protocol in its warm start; it leaves a line open for the
next item, where a policy that has learnt from histories forms an opinion of its own. Both show the newest
``prompt_history`` items, oldest of them first, and end by opening the thought.
"""

from __future__ import annotations

from collections.abc import Sequence

from deeprec.config import ExploreConfig
from deeprec.explore.protocol import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    EXAMPLE_PREFERENCE,
    EXAMPLE_THOUGHT,
    EXAMPLE_TITLE,
    LIST_CLOSE,
    LIST_OPEN,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    TitleBook,
)
from deeprec.types import ANYTHING

_FULL = """\
You are a recommender. You find out what a user will want next by exploring a catalogue with a retrieval tool, and \
then you rank the items you found.

The tool. It knows the user's history. You call it with a description of what the user may prefer: short phrases such \
as a genre, a decade, a maker or a mood, separated by semicolons, written as
{preference_open}{example_preference}{preference_close}
The single phrase `{anything}` asks for the user's best matches of any kind. The tool answers with at most \
{items_per_call} items of the catalogue, best match first, that the user has not had yet:
{list_open}
{example_lines}
...
{list_close}
{list_notes}

How to explore. Think first, then call the tool. After each list, think about what it tells you, and call the tool \
again with a refined or a different description; vary the descriptions, and never repeat one. Several calls find more \
than one; at most {max_calls} are allowed. Write no item lists of this kind yourself.

How to answer. When you have seen enough, say how you rank what was found, close your thinking with {think_close}, and \
answer with exactly {answer_size} different items, the one the user will most likely want next first. Use items the \
tool returned, with their titles copied exactly, and write nothing else:
{example_thought}
{think_close}
{answer_open}
1. {example_title}
...
{answer_size}. {example_title}
{answer_close}

The user's history, numbered from the oldest shown to the newest:
"""


NEXT = "\nNext: "
"""Opens the line of the next item in a compact prompt. It stands nowhere else, so that it can be found again."""


class PromptBuilder:
    """Builds prompts for one catalogue and one exploration configuration."""

    def __init__(self, config: ExploreConfig, titles: TitleBook) -> None:
        self._config = config
        self._titles = titles
        self.head = "History:" if config.prompt == "compact" else self._explanation()

    head: str
    """What stands before the history."""

    def text(self, history: Sequence[str]) -> str:
        """The prompt for a history of item ids, oldest first; items outside the catalogue are left out."""
        shown = self.unfinished(history) if self._config.prompt == "compact" else self._lines(self._shown(history))
        return f"{shown}\n{THINK_OPEN}"

    def unfinished(self, history: Sequence[str]) -> str:
        """The prompt's text up to where the title of the next item would stand."""
        return self._lines(self._shown(history)) + NEXT

    def _shown(self, history: Sequence[str]) -> list[str]:
        return [item_id for item_id in history if item_id in self._titles][-self._config.prompt_history :]

    def _lines(self, known: Sequence[str]) -> str:
        lines = (f"\n{number}. {self._titles.title(item_id)}" for number, item_id in enumerate(known, start=1))
        return self.head + "".join(lines)

    def _explanation(self) -> str:
        config = self._config
        line = f"{{}}. {EXAMPLE_TITLE}" + (" | 97" if config.show_scores else "")
        line += "\n   phrase, phrase" if config.show_phrases else ""
        notes = []
        if config.show_scores:
            notes.append("The number after a title is its match with the history and the description, 0 to 100.")
        if config.show_phrases:
            notes.append("The line below a title names what describes the item.")
        return _FULL.format(
            preference_open=PREFERENCE_OPEN,
            preference_close=PREFERENCE_CLOSE,
            example_preference=EXAMPLE_PREFERENCE,
            anything=ANYTHING,
            items_per_call=config.items_per_call,
            list_open=LIST_OPEN,
            list_close=LIST_CLOSE,
            example_lines="\n".join(line.format(number) for number in (1, 2)),
            list_notes=" ".join(notes) or "One title a line.",
            max_calls=config.max_calls,
            think_close=THINK_CLOSE,
            answer_size=config.answer_size,
            example_thought=EXAMPLE_THOUGHT,
            example_title=EXAMPLE_TITLE,
            answer_open=ANSWER_OPEN,
            answer_close=ANSWER_CLOSE,
        ).rstrip("\n")
