"""Whether objects are what a cluster takes: Kubernetes' own kinds by its schemas, others by their CRDs'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.32", "1.37")
"""Of Kubernetes: the oldest that the chart takes, and the newest."""
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNKNOWN = ("monitoring.coreos.com",)
"""Groups whose definitions are nowhere at hand; golden files stand for them."""


def definitions() -> Path | None:
    """The directory of CustomResourceDefinitions, beside the real data of tests; None without."""
    data = os.environ.get("DEEPREC_TEST_DATA")
    place = Path(data).parent / "crds" if data else None
    return place if place and place.is_dir() else None


def objections(thing: dict[str, Any]) -> Iterator[str]:
    """Why a cluster would not take an object."""
    group = thing["apiVersion"].rpartition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and "kueue" not in group):
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
    elif group not in UNKNOWN and definitions():
        schema = _schemas().get((thing["apiVersion"], thing["kind"]))
        if schema is None:
            yield f"there is no {thing['kind']} in {thing['apiVersion']}"
            return
        for error in jsonschema.Draft202012Validator(schema).iter_errors(thing):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


@cache
def installed() -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinitions at hand, by name."""
    place = definitions()
    assert place
    found = {}
    for path in place.rglob("*.yaml"):
        for definition in yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader):
            if definition and definition.get("kind") == "CustomResourceDefinition":
                found[definition["metadata"]["name"]] = definition
    return found


@cache
def _schemas() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for definition in installed().values():
        spec = definition["spec"]
        for version in spec["versions"]:
            if version.get("served"):
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def _strict(schema: Any) -> Any:
    """A structural schema as JSON schema that takes no field it does not know, as a strict server does."""
    if not isinstance(schema, dict):
        return schema
    known = {
        key: value
        for key, value in schema.items()
        if key in ("type", "enum", "required", "pattern", "minimum", "maximum")
    }
    if schema.get("x-kubernetes-int-or-string"):
        known["type"] = ["integer", "string"]
    elif schema.get("nullable") and "type" in known:
        known["type"] = [known["type"], "null"]
    if "properties" in schema:
        known["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            known["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        known["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        known["items"] = _strict(schema["items"])
    return known
