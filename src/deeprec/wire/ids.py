"""Ids of users, items and events on the wire: text, or a whole number that is taken as its digits.

Blanks around an id are no part of it, as in an imported dataset.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

MAX_ID = 200
"""Characters of an id at most."""


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Id = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID),
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_ID}, {"type": "integer"}]}),
]
