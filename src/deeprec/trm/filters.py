"""Attribute filters as masks over the catalogue.

A filter names an attribute or ``title``. A cell may hold several values joined by ``|``: ``=`` holds when one of them
equals the value, ``!=`` when none does. ``>=`` and ``<=`` compare numbers. A missing value satisfies ``!=`` only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import TrmError
from deeprec.types import Catalogue, Filter, Item


def filter_mask(catalogue: Catalogue, condition: Filter) -> NDArray[np.bool_]:
    """(items,) true where the condition holds.

    Raises:
        TrmError: no item has the column, or an order is asked of a value that is no number.
    """
    columns = {"title"}.union(*(item.attributes.keys() for item in catalogue.items))
    if condition.column not in columns:
        raise TrmError(f"no item has a column {condition.column!r}; filter on one of {', '.join(sorted(columns))}")
    if condition.operator in (">=", "<="):
        return _ordered(catalogue, condition)
    wanted = _plain(condition.value)
    equal = np.array([wanted in _values(item, condition.column) for item in catalogue.items], dtype=bool)
    return equal if condition.operator == "=" else ~equal


def _ordered(catalogue: Catalogue, condition: Filter) -> NDArray[np.bool_]:
    limit = _number(condition.value)
    if limit is None:
        raise TrmError(
            f"the filter {condition.column} {condition.operator} {condition.value!r} compares numbers; give a number"
        )
    numbers = [_number(_cell(item, condition.column)) for item in catalogue.items]
    values = np.array([np.nan if number is None else number for number in numbers])
    with np.errstate(invalid="ignore"):
        return np.asarray(values >= limit if condition.operator == ">=" else values <= limit)


def _cell(item: Item, column: str) -> str | float | None:
    return item.title if column == "title" else item.attributes.get(column)


def _values(item: Item, column: str) -> set[str | float]:
    cell = _cell(item, column)
    if cell is None:
        return set()
    if isinstance(cell, str) and column != "title":
        return {_plain(piece.strip()) for piece in cell.split("|")}
    return {_plain(cell)}


def _plain(value: str | float) -> str | float:
    """Numbers written as text compare as numbers."""
    number = _number(value)
    return value if number is None else number


def _number(value: str | float | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return None if number is None or np.isnan(number) else number
