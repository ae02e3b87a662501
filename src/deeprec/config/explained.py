"""The configuration tree as its keys: what each is about, which values it takes, and its default.

The command ``deeprec config`` and the reference page of the documentation are made of this.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from deeprec.config.section import Section
from deeprec.errors import ConfigError

PREFIX = "DEEPREC__"
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "pattern": "matching `{}`"}
_NAMES: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Key:
    """A key of the tree, by its whole name. ``kind`` says which values it takes; a section's is empty."""

    name: str
    kind: str
    default: str
    text: str

    @property
    def is_section(self) -> bool:
        """Whether it holds other keys."""
        return not self.kind

    @property
    def variable(self) -> str:
        """The environment variable that sets it; see ``environment``."""
        return variable(self.name)


def variable(key: str) -> str:
    """The environment variable of a key such as ``serving.log.path``."""
    return PREFIX + key.replace(".", "__").upper()


def keys(tree: type[Section], above: str = "") -> Iterator[Key]:
    """Every key below a section, each section before its keys, in the order of the tree."""
    for name, field in tree.model_fields.items():
        whole = f"{above}{name}"
        section = _section(field.annotation)
        text = " ".join((field.description or "").split())
        if section is None:
            yield Key(whole, _kind(field), _written(field), text)
        else:
            yield Key(whole, "", "", text or " ".join((section.__doc__ or "").split("\n\n")[0].split()))
            yield from keys(section, f"{whole}.")


def explain(tree: type[Section], name: str) -> tuple[Key, list[Key]]:
    """A key, and those directly below it.

    Raises:
        ConfigError: there is no such key; the nearest are named.
    """
    found = {key.name: key for key in keys(tree)}
    if name not in found:
        last = name.rpartition(".")[2]
        alike = [key for key in found if key.rpartition(".")[2] == last] or get_close_matches(name, found)
        cure = f"did you mean {', '.join(alike[:3])}?" if alike else "`deeprec config explain` lists the sections"
        raise ConfigError(f"there is no key {name}; {cure}")
    return found[name], below(tree, name)


def below(tree: type[Section], name: str = "") -> list[Key]:
    """Keys directly below a section; of the whole tree where none is named."""
    start = f"{name}." if name else ""
    return [key for key in keys(tree) if key.name.startswith(start) and "." not in key.name[len(start) :]]


def _section(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _kind(field: FieldInfo) -> str:
    bounds = [
        template.format(value)
        for rule in field.metadata
        for attribute, template in _BOUNDS.items()
        if (value := getattr(rule, attribute, None)) is not None
    ]
    return ", ".join([_values(field.annotation), *bounds])


def _values(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_values(one) for one in inner)
    if origin is dict:
        return f"mapping of {_values(inner[0])} to {_values(inner[1])}"
    if origin in (tuple, list):
        return f"list of {_values(inner[0])}"
    if _section(annotation):
        return "sections"
    return _NAMES.get(annotation, "any value")


def _written(field: FieldInfo) -> str:
    if field.is_required():
        return "none; it has to be named"
    value = field.get_default(call_default_factory=True)
    return json.dumps(value, ensure_ascii=False, default=str)
