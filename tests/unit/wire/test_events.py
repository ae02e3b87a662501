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
    assert READ.validate_python({**EVENT, "timestamp": -5, "rating": 4, "event": "play"}).timestamp == -5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"user_id": True}, "user_id"),
        ({"item_id": "x" * (MAX_ID + 1)}, "item_id"),
        ({"item_id": " i1"}, "item_id"),
        ({"timestamp": "1"}, "timestamp"),
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
