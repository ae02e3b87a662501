"""What the servers may be asked: the shape of requests to ``deeprec`` and ``deeprec-trm``.

Unknown fields are refused, so that a misspelt one is never ignored; ``null`` is what is not given. Sizes are bounded by
a server's ``Limits`` where they are given as the context of validation.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from deeprec.types import MAX_PHRASES, Filter
from deeprec.wire.ids import Id

MAX_FILTERS = 10
"""Filters at most."""


class Limits(Protocol):
    """What a server allows; see ``ServingConfig``."""

    @property
    def max_k(self) -> int:
        """Items answered at most."""
        ...

    @property
    def max_history(self) -> int:
        """Items of a history, and of ``exclude``, at most."""
        ...

    @property
    def max_deadline_ms(self) -> int:
        """The longest deadline in milliseconds."""
        ...


def _split_phrases(value: Any) -> Any:
    return value.split(";") if isinstance(value, str) else value


Phrase = Annotated[str, Field(max_length=200)]
Phrases = Annotated[
    tuple[Phrase, ...],
    BeforeValidator(_split_phrases),
    Field(max_length=MAX_PHRASES),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": MAX_PHRASES},
                {"type": "string", "description": "Phrases, separated by ;"},
            ]
        }
    ),
]


class Given(BaseModel):
    """Base of what is asked: ``null`` is what is not given."""

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, raw: Any) -> Any:
        return {name: value for name, value in raw.items() if value is not None} if isinstance(raw, dict) else raw

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What need not be given may be null."""
        schema = handler(core)
        found = handler.resolve_ref_schema(schema)
        for name, field in found.get("properties", {}).items():
            kinds = field.get("anyOf", [])
            if name in found.get("required", ()) or {"type": "null"} in kinds:
                continue
            told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            found["properties"][name] = {"anyOf": [*(kinds or [field]), {"type": "null"}], **told}
        return schema


class FilterInput(Given):
    """One condition on an item attribute, for example ``{"column": "year", "operator": ">=", "value": 1990}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    column: str = Field(min_length=1, max_length=100)
    operator: Literal["=", "!=", ">=", "<="] = "="
    value: Annotated[str, Field(max_length=200)] | int | float

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if isinstance(self.value, int | float) and not math.isfinite(self.value):
            raise ValueError("value must be finite")
        return self

    def to_filter(self) -> Filter:
        """The value that retrieval knows."""
        return Filter(self.column, self.operator, self.value)


class TrmRequest(Given):
    """A request to ``deeprec-trm``; also the common part of every request.

    Give ``history`` (item ids, oldest first), or ``user_id`` to read it from the feature store, or neither with a
    ``preference``. ``history`` wins over ``user_id``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Id | None = None
    history: tuple[Id, ...] | None = None
    preference: Phrases = ()
    k: int = Field(10, ge=1, strict=True)
    filters: tuple[FilterInput, ...] = Field((), max_length=MAX_FILTERS)
    exclude: tuple[Id, ...] = ()

    @model_validator(mode="after")
    def _bounded(self, info: ValidationInfo) -> Self:
        limits: Limits | None = info.context
        if limits is not None and self.k > limits.max_k:
            raise ValueError(f"k is {_brief(self.k)}, but this server answers at most {limits.max_k} items")
        for name, ids in (("history", self.history or ()), ("exclude", self.exclude)):
            if limits is not None and len(ids) > limits.max_history:
                raise ValueError(f"{name} has {len(ids)} items, but this server takes at most {limits.max_history}")
        return self

    @property
    def conditions(self) -> tuple[Filter, ...]:
        """The filters as retrieval knows them."""
        return tuple(condition.to_filter() for condition in self.filters)


class TrmOnlyRequest(TrmRequest):
    """A request to ``deeprec-trm``, which can also be asked for items that the user has had."""

    allow_seen: bool = Field(False, strict=True)


class RecommendRequest(TrmRequest):
    """A request to ``deeprec``."""

    deadline_ms: int | None = Field(None, ge=1, strict=True)
    explain: bool = Field(False, strict=True)

    @model_validator(mode="after")
    def _in_time(self, info: ValidationInfo) -> Self:
        limits: Limits | None = info.context
        if limits is not None and (self.deadline_ms or 0) > limits.max_deadline_ms:
            asked, most = _brief(self.deadline_ms or 0), limits.max_deadline_ms
            raise ValueError(f"deadline_ms is {asked}, but at most {most} is allowed")
        return self


def _brief(number: int) -> str:
    text = str(number)
    return text if len(text) <= 20 else f"{text[:20]}… ({len(text)} digits)"
