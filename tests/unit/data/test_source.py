"""Ids as a source has them, which have to be those that requests name."""

from __future__ import annotations

import polars as pl
import pytest

from deeprec.data.source import as_ids
from deeprec.errors import DataError
from deeprec.wire.ids import MAX_ID


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pl.Series("user_id", [1, None, 3]), ["1", None, "3"]),
        (pl.Series("user_id", [1.0, None, 2.5, 1e15]), ["1", None, "2.5", "1000000000000000"]),
        (pl.Series("user_id", [" u1", "u 2\t", " ", "1.0"]), ["u1", "u 2", None, "1.0"]),
    ],
)
def test_ids_are_text_without_blanks_and_whole_numbers_their_digits(column: pl.Series, ids: list[str | None]) -> None:
    assert as_ids(column).to_list() == ids


def test_ids_longer_than_servers_take_are_refused_on_import() -> None:
    assert as_ids(pl.Series("item_id", ["x" * MAX_ID]))[0] == "x" * MAX_ID
    with pytest.raises(DataError, match=rf"2 values of item_id are longer than {MAX_ID} .* begins with 'yyy"):
        as_ids(pl.Series("item_id", ["x", "y" * (MAX_ID + 1), "z" * 999]))
