"""The phrases an item's attributes give: the vocabulary of preferences.

A phrase is a lower-case value of a text column, or the decade of the year column (``1990s``). Characters that separate
phrases or carry markup (``;``, ``|``, ``<``, ``>``, line breaks) become spaces, so a phrase can be written in a
preference. Values that say nothing, the reserved ``anything``, and running text (over 60 characters) give none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deeprec.types import ANYTHING

MAX_LENGTH = 60
_NOTHING = frozenset({"", ANYTHING, "(no genres listed)", "n/a", "none", "null", "nan", "unknown"})
_SEPARATORS = re.compile(r"[\s;|<>]+")


def item_phrases(
    attributes: Mapping[str, str | float | None], text_columns: Sequence[str], year_column: str | None
) -> tuple[str, ...]:
    """Distinct phrases of one item: text columns in the order given, values in the order of the cell, then the decade.

    A text cell holds one value, or several joined by ``|``.
    """
    found: dict[str, None] = {}
    for column in text_columns:
        cell = attributes.get(column)
        if cell is None:
            continue
        for value in str(cell).split("|"):
            phrase = _SEPARATORS.sub(" ", value).strip().lower()
            if phrase not in _NOTHING and len(phrase) <= MAX_LENGTH:
                found[phrase] = None
    era = None if year_column is None else decade(attributes.get(year_column))
    if era is not None:
        found[era] = None
    return tuple(found)


def decade(year: str | float | None) -> str | None:
    """``1995`` → ``1990s``; None where there is no year from 1000 to 2999."""
    if year is None:
        return None
    try:
        number = int(float(year))
    except (ValueError, OverflowError):
        return None
    return f"{number // 10 * 10}s" if 1000 <= number <= 2999 else None
