"""What a client may ask of the servers: shapes, sizes and ids, checked before any model sees them.

Contract: ``read_request`` turns decoded JSON into a frozen request or raises ``RequestError`` with one sentence per
mistake. Sizes are bounded by ``ServingConfig``; unknown fields are refused, so that a misspelt one is never ignored.
Ids may be given as JSON integers; they are compared as strings.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.explore.protocol import MAX_PHRASES, neutralise, split_phrases
from deeprec.types import Catalogue, Filter

MAX_FILTERS = 10
"""Filters at most."""
NAMED_UNKNOWN = 3
"""Unknown item ids named in an error at most."""


def _id_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _split_phrases(value: Any) -> Any:
    return value.split(";") if isinstance(value, str) else value


Id = Annotated[
    str,
    BeforeValidator(_id_text),
    Field(min_length=1, max_length=200),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 200}, {"type": "integer"}]}),
]
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


class FilterInput(BaseModel):
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


class TrmRequest(BaseModel):
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
        limits = info.context if isinstance(info.context, ServingConfig) else ServingConfig()
        if self.k > limits.max_k:
            raise ValueError(f"k is {_brief(self.k)}, but this server answers at most {limits.max_k} items")
        for name, ids in (("history", self.history or ()), ("exclude", self.exclude)):
            if len(ids) > limits.max_history:
                raise ValueError(f"{name} has {len(ids)} items, but this server takes at most {limits.max_history}")
        if self.user_id is None and self.history is None and not self.phrases:
            raise ValueError("name a user_id, or give a history (item ids, oldest first; may be []), or a preference")
        return self

    @property
    def phrases(self) -> tuple[str, ...]:
        """The preference's distinct phrases as a policy would write them, neutralised; empty for ``anything``."""
        return split_phrases(";".join(neutralise(phrase) for phrase in self.preference))

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
        limits = info.context if isinstance(info.context, ServingConfig) else ServingConfig()
        if self.deadline_ms is not None and self.deadline_ms > limits.max_deadline_ms:
            most = limits.max_deadline_ms
            raise ValueError(f"deadline_ms is {_brief(self.deadline_ms)}, but at most {most} is allowed")
        return self


RequestType = TypeVar("RequestType", bound=TrmRequest)


def read_request(kind: type[RequestType], raw: Any, limits: ServingConfig, catalogue: Catalogue) -> RequestType:
    """Check decoded JSON against a request type, the server's limits and the catalogue.

    Raises:
        RequestError: naming every mistake; up to three unknown item ids of the history.
    """
    if not isinstance(raw, dict):
        raise RequestError(f'a request must be a JSON object such as {{"user_id": "1", "k": 10}}, not {_name(raw)}')
    try:
        request = kind.model_validate(raw, context=limits)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error
    unknown = [item_id for item_id in dict.fromkeys(request.history or ()) if item_id not in catalogue]
    if unknown:
        named = ", ".join(repr(item_id[:40]) for item_id in unknown[:NAMED_UNKNOWN])
        more = f" and {len(unknown) - NAMED_UNKNOWN} more" if len(unknown) > NAMED_UNKNOWN else ""
        raise RequestError(f"history names items that are not in the catalogue: {named}{more}; leave them out")
    return request


def mistakes(error: ValidationError) -> str:
    """One sentence that names what is wrong with a request, the first five mistakes at most."""
    return "; ".join(_describe(item) for item in error.errors()[:5])


def _describe(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])[:60]
    if item["type"] == "extra_forbidden":
        return f"unknown field {where!r}; remove it or correct its spelling"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _brief(number: int) -> str:
    text = str(number)
    return text if len(text) <= 20 else f"{text[:20]}… ({len(text)} digits)"


def _name(raw: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    return names.get(type(raw), type(raw).__name__)
