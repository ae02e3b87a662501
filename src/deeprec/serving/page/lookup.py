"""What the page asks of a catalogue: items by what one types of their titles, and the columns that can be filtered.

Titles are compared without case, accents and repeated spaces. They are kept once, joined into one text that
``str.find`` reads, which costs about the titles' own size in memory; both indexes are built when first asked for. Safe
to use from several threads: what is built twice is equal.
"""

from __future__ import annotations

import math
import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, chain

from deeprec.types import Catalogue, Item, JsonDict

MAX_QUERY = 100
"""Characters read of what one typed."""
MAX_VALUES = 60
"""Most frequent values named of a column, and most frequent phrases of the catalogue."""
MAX_VALUE = 60
"""Characters of a value; a column with longer ones is prose, of which no values are named."""


def fold(text: str) -> str:
    """The text without case, accents, control characters and repeated spaces."""
    if text.isascii() and text.isprintable():
        return " ".join(text.casefold().split())
    plain = "".join(
        " " if unicodedata.category(letter)[0] == "C" else letter
        for letter in unicodedata.normalize("NFKD", text)
        if unicodedata.category(letter) != "Mn"
    )
    return " ".join(plain.casefold().split())


class CatalogueLookup:
    """Title search and filter columns of one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def find(self, text: str, limit: int) -> tuple[Item, ...]:
        """At most ``limit`` items: the one with this very id, titles that begin so, words that do, all words anywhere.

        Within each of these the catalogue's order; every item once; for empty text the catalogue's first items.
        """
        query = fold(text[:MAX_QUERY])
        rows: dict[int, None] = {}
        if text.strip() in self.catalogue:
            rows[self.catalogue.index[text.strip()]] = None
        for row in chain(self._holding(f"\n{query}"), self._holding(f" {query}"), self._with_words(query.split())):
            if len(rows) >= limit:
                break
            rows[row] = None
        return tuple(self.catalogue.items[row] for row in rows)

    @cached_property
    def columns(self) -> tuple[JsonDict, ...]:
        """Each attribute's ``name``, whether it is ``numeric``, its ``low`` and ``high`` then, else its ``values``.

        ``values`` are the most frequent ones, ``{"value": text, "count": items}``, a cell's parts at ``|`` each.
        """
        names = dict.fromkeys(name for item in self.catalogue.items for name in item.attributes)
        return tuple(self._column(name) for name in names)

    @cached_property
    def phrases(self) -> tuple[JsonDict, ...]:
        """The most frequent phrases of preferences, ``{"value": phrase, "count": items}``."""
        return _frequent(Counter(phrase for item in self.catalogue.items for phrase in item.phrases))

    @cached_property
    def _titles(self) -> tuple[str, array[int]]:
        """All folded titles, each with a line break before it, and where each begins: (items,)."""
        folded = [fold(item.title) for item in self.catalogue.items]
        starts = accumulate((len(title) + 1 for title in folded), initial=1)
        return "".join(f"\n{title}" for title in folded), array("q", starts)[:-1]

    def _holding(self, needle: str) -> Iterator[int]:
        """Rows of the titles that hold ``needle``, ascending; a leading line break asks for the title's beginning."""
        text, starts = self._titles
        at = text.find(needle)
        while at >= 0:
            row = bisect_right(starts, at + needle.startswith("\n")) - 1
            yield row
            at = text.find(needle, starts[row + 1] - 1) if row + 1 < len(starts) else -1

    def _with_words(self, words: list[str]) -> Iterator[int]:
        if not words:
            return
        text, starts = self._titles
        for row in self._holding(min(words, key=text.count)):
            title = text[starts[row] : starts[row + 1] - 1] if row + 1 < len(starts) else text[starts[row] :]
            if all(word in title for word in words):
                yield row

    def _column(self, name: str) -> JsonDict:
        cells = (item.attributes.get(name) for item in self.catalogue.items)
        counts = Counter(piece for cell in cells if cell is not None for piece in _pieces(cell))
        numbers = [_number(value) for value in counts]
        known = [number for number in numbers if number is not None]
        if counts and len(known) == len(numbers):
            return {"name": name, "numeric": True, "low": min(known), "high": max(known), "values": []}
        prose = any(len(value) > MAX_VALUE for value in counts)
        return {"name": name, "numeric": False, "values": [] if prose else list(_frequent(counts))}


def _pieces(cell: str | float) -> set[str]:
    return {piece for piece in (part.strip() for part in str(cell).split("|")) if piece}


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _frequent(counts: Counter[str]) -> tuple[JsonDict, ...]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_VALUES]
    return tuple({"value": value, "count": count} for value, count in ordered)
