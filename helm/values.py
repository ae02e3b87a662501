"""Writes what is said of the chart's values besides ``values.yaml``: its JSON schema, and the tables of its README.

A key's comment is what stands above it; ``@enum A B``, ``@minimum N``,
``@pattern REGEX`` and ``@free`` (any keys below) are lines of it.

    python helm/values.py            write values.schema.json and README.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "deeprec"
QUANTITIES = ("cpu", "memory", "scratch", "sharedMemory")
_KEY = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z0-9_-]+):(?: |$)")
_START, _END = "<!-- values -->", "<!-- end of values -->"


@dataclass
class Value:
    """A key of ``values.yaml``: its default, its comment, and the keys below it."""

    name: str
    default: Any
    text: str
    rules: dict[str, str]
    below: list[Value] = field(default_factory=list)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of this key's value."""
        found: dict[str, Any] = {"description": self.text} if self.text else {}
        if isinstance(self.default, dict):
            keys = {one.name: one.schema() for one in self.below}
            return {**found, "type": "object", "properties": keys, "additionalProperties": "free" in self.rules}
        kinds: dict[type, str] = {bool: "boolean", int: "integer", list: "array", str: "string"}
        found["type"] = ["string", "number"] if self.name in QUANTITIES else kinds[type(self.default)]
        if "enum" in self.rules:
            found["enum"] = self.rules["enum"].split()
        if "minimum" in self.rules:
            found["minimum"] = int(self.rules["minimum"])
        if "pattern" in self.rules:
            found["pattern"] = self.rules["pattern"]
        return found


def read(text: str) -> list[Value]:
    """The keys of a values file, in order.

    Raises:
        ValueError: a key has no comment, where it does not stand for itself.
    """
    tree = yaml.safe_load(text)
    top: list[Value] = []
    path: list[tuple[int, Value]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is None:
            comment = []
            continue
        indent, name = len(match["indent"]), match["name"]
        while path and path[-1][0] >= indent:
            path.pop()
        rules = dict(re.match(r"@(\w+) ?(.*)", one).groups() for one in comment if one.startswith("@"))  # type: ignore[union-attr]
        said = " ".join(one for one in comment if not one.startswith("@"))
        default = tree if not path else path[-1][1].default
        value = Value(name, default[name], said, rules)
        (path[-1][1].below if path else top).append(value)
        path.append((indent, value))
        comment = []
    return top


def schema(values: list[Value]) -> str:
    """``values.schema.json``; ``global`` is Helm's own."""
    keys = {one.name: one.schema() for one in values}
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart deeprec",
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": {"type": "object"}, **keys},
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def tables(values: list[Value]) -> str:
    """A table for each group of values."""
    parts = []
    for group in values:
        rows = "".join(f"| `{key}` | `{json.dumps(value.default)}` | {value.text} |\n" for key, value in leaves(group))
        parts.append(f"### {group.name}\n\n{group.text}\n\n| key | default | |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def leaves(value: Value, above: str = "") -> Iterator[tuple[str, Value]]:
    """Keys that have no keys below, by their whole name."""
    name = f"{above}{value.name}"
    if not value.below:
        yield name, value
    for one in value.below:
        yield from leaves(one, f"{name}.")


def written() -> dict[Path, str]:
    """What the generated files have to hold."""
    values = read((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = CHART / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(_START)
    tail = rest.partition(_END)[2]
    return {
        CHART / "values.schema.json": schema(values),
        readme: f"{head}{_START}\n\n{tables(values)}\n{_END}{tail}",
    }


if __name__ == "__main__":
    for path, content in written().items():
        path.write_text(content, encoding="utf-8")
        print(path)
