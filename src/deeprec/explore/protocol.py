"""The exploration protocol: how titles and lists are written, and how what the policy wrote is read.

A title is untrusted text. ``TitleBook`` gives every item one neutralised title, unique in its catalogue, that cannot
hold markup, a line break, a score, a phrase separator or a line number; lists and prompts are written with those
only, and an answered line is resolved by exact equality with one of them. Nothing here knows tokens or models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from deeprec.config import ExploreConfig
from deeprec.markup import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    EXAMPLE_PIECES,
    EXAMPLE_PREFERENCE,
    EXAMPLE_THOUGHT,
    EXAMPLE_TITLE,
    LIST_CLOSE,
    LIST_OPEN,
    MARKUP,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    ROLES,
    THINK_CLOSE,
    THINK_OPEN,
)
from deeprec.types import ANYTHING, MAX_PHRASES, Catalogue, RetrievedItem

__all__ = [
    "ANSWER_CLOSE",
    "ANSWER_OPEN",
    "EXAMPLE_PIECES",
    "EXAMPLE_PREFERENCE",
    "EXAMPLE_THOUGHT",
    "EXAMPLE_TITLE",
    "LIST_CLOSE",
    "LIST_OPEN",
    "MARKUP",
    "PREFERENCE_CLOSE",
    "PREFERENCE_OPEN",
    "ROLES",
    "THINK_CLOSE",
    "THINK_OPEN",
    "AnswerText",
    "Outside",
    "PreferenceText",
    "TitleBook",
    "neutralise",
    "parse_segment",
    "render_list",
    "render_preference",
    "split_phrases",
]

MAX_TITLE = 200
"""Characters kept of a title."""

MAX_PREFERENCE = 300
"""Characters read of a preference."""

UNTITLED = "Untitled"

_LINE = re.compile(r"\d{1,4}\. +(.*)")
_LINE_NUMBER = re.compile(r"^(\d+)\.(?=\s|$)")
_REPLACEMENTS = str.maketrans({"<": "‹", ">": "›", "|": "/"})


@dataclass(frozen=True, slots=True)
class PreferenceText:
    """A segment that calls the TRM: the preference as written (bounded), and its phrases (none for a broad call).

    ``empty`` holds when the preference names nothing, not even ``anything``.
    """

    preference: str
    phrases: tuple[str, ...]
    empty: bool


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A segment that answers: one entry per answered line, the title as written or None where it is no such line."""

    titles: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """A segment that neither calls nor answers."""


def neutralise(text: str, limit: int = MAX_TITLE) -> str:
    """The text as one harmless line: no markup, line break, ``|``, ``"; "`` or leading line number; may be empty.

    Angle brackets become ``‹ ›`` and bars ``/``, so that no token of any chat template and no score can be forged.
    """
    kept = text[: 4 * limit]
    if not (kept.isascii() and kept.isprintable()):  # most text is, and then no character is to be looked at
        kept = "".join(" " if _is_blank(character) else character for character in kept)
    plain = re.sub(r"\s+", " ", kept.translate(_REPLACEMENTS)).strip()
    plain = plain.replace("; ", ", ")[:limit].strip(" ;")
    return _LINE_NUMBER.sub(r"\1", plain)


def _is_blank(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


class TitleBook:
    """Item ids ↔ neutralised titles, both unique, for one catalogue.

    Items whose neutralised titles collide are told apart by `` (2)``, `` (3)``, … in catalogue order.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._title: dict[str, str] = {}
        self._item: dict[str, str] = {}
        self._phrases: dict[str, tuple[str, ...]] = {}
        reserved = {neutralise(item.title) for item in catalogue.items}
        for item in catalogue.items:
            title = self._unique(neutralise(item.title) or UNTITLED, reserved)
            self._title[item.item_id] = title
            self._item[title] = item.item_id
            self._phrases[item.item_id] = tuple(neutralise(phrase) for phrase in item.phrases)

    def _unique(self, title: str, reserved: AbstractSet[str]) -> str:
        candidate, number = title, 1
        while candidate in self._item or (number > 1 and candidate in reserved):
            number += 1
            candidate = f"{title} ({number})"
        return candidate

    def __len__(self) -> int:
        return len(self._title)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._title

    @property
    def titles(self) -> tuple[str, ...]:
        """Every title, in catalogue order."""
        return tuple(self._title.values())

    def title(self, item_id: str) -> str:
        """The item's title as prompts and lists show it; KeyError for an item outside the catalogue."""
        return self._title[item_id]

    def phrases(self, item_id: str) -> tuple[str, ...]:
        """The item's phrases, neutralised."""
        return self._phrases[item_id]

    def item(self, title: str) -> str | None:
        """The id of the item with exactly this title."""
        return self._item.get(title)

    def resolve(self, title: str | None, retrieved: AbstractSet[str]) -> str | None:
        """The id of the retrieved item with exactly this title, None when there is none."""
        item_id = self._item.get(title) if title is not None else None
        return item_id if item_id in retrieved else None


def render_list(items: Sequence[RetrievedItem], titles: TitleBook, config: ExploreConfig) -> str:
    """The text the environment appends after a call, list markup and the line breaks around it included."""
    lines = []
    for number, item in enumerate(items, start=1):
        line = f"{number}. {titles.title(item.item_id)}"
        if config.show_scores:
            line += f" | {round(100 * min(max(item.score, 0.0), 1.0))}"
        lines.append(line)
        if config.show_phrases and titles.phrases(item.item_id):
            lines.append("   " + ", ".join(titles.phrases(item.item_id)))
    body = "".join(line + "\n" for line in lines)
    return f"\n{LIST_OPEN}\n{body}{LIST_CLOSE}\n"


def render_preference(phrases: Iterable[str]) -> str:
    """A preference as the policy writes it: ``comedy; 1990s``, or ``anything`` for no phrases."""
    return "; ".join(neutralise(phrase).replace(";", ",") for phrase in phrases) or ANYTHING


def parse_segment(text: str) -> PreferenceText | AnswerText | Outside:
    """Read what the policy wrote since the last list, its closing markup included."""
    if text.endswith(PREFERENCE_CLOSE):
        _, found, inner = text.removesuffix(PREFERENCE_CLOSE).rpartition(PREFERENCE_OPEN)
        if not found or _holds_markup(inner):
            return Outside()
        preference = " ".join(inner[:MAX_PREFERENCE].split())
        phrases = split_phrases(preference)
        broad = not phrases and ANYTHING in _pieces(preference)
        return PreferenceText(preference, phrases, empty=not phrases and not broad)
    if text.endswith(ANSWER_CLOSE):
        _, found, inner = text.removesuffix(ANSWER_CLOSE).rpartition(ANSWER_OPEN)
        if not found:
            return Outside()
        return AnswerText(tuple(_answer_title(line) for line in inner.split("\n") if line.strip()))
    return Outside()


def split_phrases(preference: str) -> tuple[str, ...]:
    """Phrases of a preference: split at ``;``, trimmed, lower-cased, each once; ``anything`` is no phrase."""
    distinct = dict.fromkeys(piece for piece in _pieces(preference) if piece and piece != ANYTHING)
    return tuple(distinct)[:MAX_PHRASES]


def _pieces(preference: str) -> list[str]:
    return [" ".join(piece.lower().split()) for piece in preference.split(";")]


def _answer_title(line: str) -> str | None:
    match = _LINE.fullmatch(line.strip())
    return match.group(1) if match else None


def _holds_markup(text: str) -> bool:
    return any(markup in text for markup in MARKUP)
