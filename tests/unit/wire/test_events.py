"""Events on the wire: made freely in code, checked where they are read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from deeprec.wire.events import Event
from deeprec.wire.ids import MAX_ID

EVENT = {"event_id": "e1", "user_id": 7, "item_id": "i1"}
READ = TypeAdapter(Event)


def test_ids_may_be_integers_and_what_is_left_out_is_none() -> None:
    assert READ.validate_python(EVENT) == Event("e1", "7", "i1")
    assert READ.validate_python({**EVENT, "item_id": " i1 "}) == Event("e1", "7", "i1")
    assert READ.validate_python({**EVENT, "timestamp": -5, "rating": 4, "event": "play"}).timestamp == -5


@pytest.mark.parametrize(
    "written",
    [
        1_796_000_000,
        1_796_000_000.0,
        "2026-11-30T00:53:20Z",
        "2026-11-30T00:53:20.900+00:00",
        "2026-11-30 01:53:20+01:00",
        "2026-11-30T00:53:20",
    ],
)
def test_a_time_may_be_written_in_several_ways(written: Any) -> None:
    assert READ.validate_python({**EVENT, "timestamp": written}).timestamp == 1_796_000_000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"user_id": True}, "user_id"),
        ({"item_id": "x" * (MAX_ID + 1)}, "item_id"),
        ({"item_id": " "}, "item_id"),
        ({"timestamp": "1"}, "timestamp"),
        ({"timestamp": "20261129"}, "timestamp"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2026-02-30"}, "timestamp"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"timestamp": 2**60}, "timestamp"),
        ({"rating": float("nan")}, "rating"),
        ({"event": ""}, "event"),
        ({"mood": 1}, "mood"),
    ],
)
def test_what_is_read_is_checked(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        READ.validate_python({**EVENT, **change})
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_the_schema_describes_every_field() -> None:
    fields = READ.json_schema()["properties"]
    assert set(fields) == {"event_id", "user_id", "item_id", "timestamp", "rating", "event"}
    assert all(field["description"] for field in fields.values())
