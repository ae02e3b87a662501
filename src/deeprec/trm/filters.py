"""Attribute filters as masks over the catalogue.

A filter names an attribute or ``title``. A cell may hold several values joined by ``|``: ``=`` holds when one of them
equals the value, ``!=`` when none does. ``>=`` and ``<=`` compare numbers. A missing value satisfies ``!=`` only.

A column is read once per catalogue, at the first filter on it or by ``read_columns``, into the code of each item's
cell; a filter is then decided per distinct cell. Columns are kept for as long as their catalogue.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import TrmError
from deeprec.types import Catalogue, Filter

Cell = str | float | None


def filter_mask(catalogue: Catalogue, condition: Filter) -> NDArray[np.bool_]:
    """(items,) true where the condition holds.

    Raises:
        TrmError: no item has the column, or an order is asked of a value that is no number.
    """
    columns = _columns(catalogue)
    if condition.column not in columns.names:
        raise TrmError(
            f"no item has a column {condition.column!r}; filter on one of {', '.join(sorted(columns.names))}"
        )
    if condition.operator in ("=", "!="):
        equal = columns[condition.column].equal(_plain(condition.value))
        return equal if condition.operator == "=" else ~equal
    limit = _number(condition.value)
    if limit is None:
        raise TrmError(
            f"the filter {condition.column} {condition.operator} {condition.value!r} compares numbers; give a number"
        )
    numbers = columns[condition.column].numbers
    with np.errstate(invalid="ignore"):
        holds = numbers >= limit if condition.operator == ">=" else numbers <= limit
    return np.asarray(holds[columns[condition.column].codes])


def read_columns(catalogue: Catalogue) -> None:
    """Read every column of the catalogue now, so that no filter waits for it."""
    columns = _columns(catalogue)
    for name in columns.names:
        columns[name]


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """One attribute of all items. Code 0 is a missing cell.

    ``codes`` is (items,), ``numbers`` (cells,) with NaN where a cell is no number; ``cells[starts[i]:starts[i + 1]]``
    are the cells that hold the value with number ``values[value] = i``.
    """

    codes: NDArray[np.int32]
    numbers: NDArray[np.float64]
    values: dict[Hashable, int]
    starts: NDArray[np.int64]
    cells: NDArray[np.int64]

    def equal(self, value: str | float) -> NDArray[np.bool_]:
        """(items,) whether one of the item's values equals ``value``."""
        number = self.values.get(value)
        if number is None:
            return np.zeros(len(self.codes), dtype=bool)
        holds = np.zeros(len(self.numbers), dtype=bool)
        holds[self.cells[self.starts[number] : self.starts[number + 1]]] = True
        return holds[self.codes]


class _Columns:
    """The columns of one catalogue, read when they are first asked for. It must not keep the catalogue alive."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.names = {"title"}.union(*(item.attributes.keys() for item in catalogue.items))
        self._items = weakref.ref(catalogue)
        self._read: dict[str, _Column] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> _Column:
        with self._lock:
            if name not in self._read:
                catalogue = self._items()
                assert catalogue is not None
                self._read[name] = _read_column(catalogue, name)
            return self._read[name]


_KNOWN: dict[int, _Columns] = {}
_KNOWN_LOCK = threading.Lock()


def _columns(catalogue: Catalogue) -> _Columns:
    with _KNOWN_LOCK:
        found = _KNOWN.get(id(catalogue))
        if found is None:
            found = _KNOWN[id(catalogue)] = _Columns(catalogue)
            weakref.finalize(catalogue, _KNOWN.pop, id(catalogue), None)
        return found


def _read_column(catalogue: Catalogue, name: str) -> _Column:
    known: dict[Cell, int] = {None: 0}
    cells = (item.title if name == "title" else item.attributes.get(name) for item in catalogue.items)
    codes = np.fromiter((known.setdefault(cell, len(known)) for cell in cells), np.int32, len(catalogue))
    values: dict[Hashable, int] = {}
    holders: list[tuple[int, int]] = []
    numbers = np.full(len(known), np.nan)
    for cell, code in known.items():
        number = _number(cell)
        numbers[code] = np.nan if number is None else number
        holders += [(values.setdefault(value, len(values)), code) for value in _values(cell, name)]
    pairs = np.array(sorted(holders), dtype=np.int64).reshape(-1, 2)
    starts = np.searchsorted(pairs[:, 0], np.arange(len(values) + 1))
    return _Column(codes, numbers, values, starts, np.ascontiguousarray(pairs[:, 1]))


def _values(cell: Cell, column: str) -> set[str | float]:
    if cell is None:
        return set()
    if isinstance(cell, str) and column != "title":
        return {_plain(piece) for piece in cell.split("|")}
    return {_plain(cell)}


def _plain(value: str | float) -> str | float:
    """Numbers written as text compare as numbers, other text without its case and the blanks around it."""
    number = _number(value)
    if number is not None:
        return number
    return value.strip().casefold() if isinstance(value, str) else value


def _number(value: Cell) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return None if number is None or np.isnan(number) else number
