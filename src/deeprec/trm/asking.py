"""What a person asks for, as the TRM reads it: titles as item ids, and text as phrases and filters.

An item is named by its exact id, else its exact title, else its title in any case. What names nothing gives one error
with the closest titles.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Iterable, Sequence

from deeprec.errors import TrmError
from deeprec.types import ANYTHING, Catalogue, Filter

_CANDIDATES = 2000
_SEARCHED = 20_000
_SUGGESTIONS = 3


class ItemNames:
    """Finds the items of one catalogue by what people call them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._exact: dict[str, str] = {}
        self._folded: dict[str, list[str]] = {}
        for item in catalogue.items:
            self._exact.setdefault(item.title, item.item_id)
            self._folded.setdefault(_folded(item.title), []).append(item.item_id)

    def find(self, name: str) -> str | None:
        """The id of the item called ``name``; None when there is none, or more than one by its title in any case."""
        name = name.strip()
        if name in self._catalogue:
            return name
        if name in self._exact:
            return self._exact[name]
        found = self._folded.get(_folded(name), [])
        return found[0] if len(found) == 1 else None

    def resolve(self, names: Iterable[str]) -> tuple[str, ...]:
        """Ids of all the names, in order.

        Raises:
            TrmError: the first name that names no item, with the closest titles, or that names several.
        """
        return tuple(self._require(name) for name in names)

    def split(self, text: str) -> tuple[str, ...]:
        """Ids of the items named in ``text``, separated by ``;``.

        Titles may hold a ``;`` of their own: as many pieces as name an item together are one name.

        Raises:
            TrmError: a piece names no item.
        """
        pieces = text.split(";")
        found, start = [], 0
        while start < len(pieces):
            for end in range(len(pieces), start, -1):
                name = ";".join(pieces[start:end])
                item_id = self.find(name)
                if item_id is not None:
                    found.append(item_id)
                    break
            else:
                end = start + 1
                if pieces[start].strip():
                    self._require(pieces[start])
            start = end
        return tuple(found)

    def closest(self, name: str) -> list[str]:
        """At most three titles that look like ``name``, best first."""
        words = [word for word in re.findall(r"\w+", name.lower()) if len(word) > 2]
        scored = (
            (sum(word in title for word in words), -row)
            for row, title in enumerate(item.title.lower() for item in self._catalogue.items)
        )
        best = [-row for score, row in heapq.nlargest(_CANDIDATES, scored) if score]
        rows = best or range(min(len(self._catalogue), _SEARCHED))
        titles = {self._catalogue.items[row].title.lower(): self._catalogue.items[row].title for row in rows}
        close = difflib.get_close_matches(name.strip().lower(), titles, n=_SUGGESTIONS, cutoff=0.5)
        return [titles[title] for title in close] or [self._catalogue.items[row].title for row in best[:_SUGGESTIONS]]

    def _require(self, name: str) -> str:
        found = self.find(name)
        if found is not None:
            return found
        several = self._folded.get(_folded(name), [])
        if several:
            raise TrmError(
                f"{len(several)} items are called {name.strip()!r} in some case; name one by its id: "
                f"{', '.join(several[:_SUGGESTIONS])}"
            )
        close = self.closest(name)
        cure = f"did you mean {' or '.join(map(repr, close))}?" if close else "name an item by its id or title"
        raise TrmError(f"no item has the id or title {name.strip()!r}; {cure}")


def parse_filter(text: str) -> Filter:
    """``year >= 1990`` as a filter; a number where the value is one.

    Raises:
        TrmError: it is not of the form column, operator, value.
    """
    try:
        return Filter.parse(text)
    except ValueError as error:
        raise TrmError(str(error)) from error


def parse_preference(preference: str | Sequence[str]) -> tuple[str, ...]:
    """Phrases of ``comedy; 1990s``, or of a sequence of phrases; ``anything`` and blanks are none."""
    pieces = preference.split(";") if isinstance(preference, str) else preference
    phrases = (" ".join(piece.lower().split()) for piece in pieces)
    return tuple(dict.fromkeys(phrase for phrase in phrases if phrase and phrase != ANYTHING))


def _folded(title: str) -> str:
    return " ".join(title.casefold().split())
