"""The catalogue as a file, and what every catalogue keeps: titles that are all different.

``catalogue.json`` holds ``text_columns`` and ``year_column`` (the columns that give phrases) and ``items``: id, title,
attributes and phrases of each, in the order of every model's rows, one item a line. TRM artifacts and bundles both keep
one. Reading and writing take time in proportion to the number of items; a number that is not finite is written as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from deeprec.errors import ArtifactError
from deeprec.types import Catalogue, Item

FILE = "catalogue.json"


def write_catalogue(directory: Path, catalogue: Catalogue) -> None:
    """Write ``catalogue.json`` into a directory.

    Raises:
        OSError: it cannot be written.
    """
    roles = {"text_columns": list(catalogue.text_columns), "year_column": catalogue.year_column}
    with (directory / FILE).open("w", encoding="utf-8") as stream:
        stream.write(_dump(roles)[:-1] + ', "items": [')
        for row, item in enumerate(catalogue.items):
            stream.write(("\n" if row == 0 else ",\n") + _line(item))
        stream.write("\n]}\n")


def read_catalogue(directory: Path) -> Catalogue:
    """Read ``catalogue.json`` of a directory. Equal phrases are one object, which keeps a large catalogue small.

    Raises:
        ArtifactError: it is missing, or is no catalogue.
    """
    path = directory / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        phrases: dict[str, str] = {}
        items = tuple(_item(row, phrases) for row in values["items"])
        return Catalogue(items, tuple(map(str, values["text_columns"])), values["year_column"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"cannot read the catalogue {path} ({type(error).__name__}: {error}); make the artifact again"
        ) from error


def distinct_titles(titles: Sequence[str], taken: AbstractSet[str] = frozenset()) -> list[str]:
    """The titles in order, all different and none of ``taken``.

    The second of equal titles gets ``(2)`` after it, or the next number that gives a title nothing else has.
    """
    original, used = set(titles), set(taken)
    last: dict[str, int] = {}
    found = []
    for title in titles:
        number = last.get(title, 1)
        candidate = title if number == 1 else f"{title} ({number})"
        while candidate in used or (number > 1 and candidate in original):
            number += 1
            candidate = f"{title} ({number})"
        last[title] = number
        used.add(candidate)
        found.append(candidate)
    return found


def _line(item: Item) -> str:
    row = {"id": item.item_id, "title": item.title, "attributes": dict(item.attributes), "phrases": list(item.phrases)}
    try:
        return _dump(row)
    except (ValueError, TypeError):
        row["attributes"] = {name: _plain(value) for name, value in item.attributes.items()}
        return _dump(row)


def _plain(value: Any) -> str | float | None:
    """What JSON can hold: numbers of other types as floats, None for what is not finite."""
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if abs(number) != float("inf") and number == number else None


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _item(row: Mapping[str, Any], phrases: dict[str, str]) -> Item:
    own: Iterable[str] = (str(phrase) for phrase in row["phrases"])
    attributes = dict(row["attributes"])
    return Item(
        str(row["id"]), str(row["title"]), attributes, tuple(phrases.setdefault(phrase, phrase) for phrase in own)
    )
