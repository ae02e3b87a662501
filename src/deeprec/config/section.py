"""What every section of the configuration is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings under fields become descriptions.

    A key that is not named keeps the default of its place in the tree: ``rewards.stage2`` with one weight named has
    stage 2's other weights, not those of any stage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_places_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _merged(defaults.get(name), value) for name, value in given.items()}


def _merged(default: Any, given: Any) -> Any:
    """``given`` over ``default`` where that is a section and this its keys, else ``given`` as it is."""
    if not (isinstance(default, Section) and isinstance(given, Mapping)):
        return given
    kept = {name: getattr(default, name) for name in type(default).model_fields}
    return kept | {name: _merged(kept.get(name), value) for name, value in given.items()}
