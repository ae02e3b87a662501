"""Writes ``manifests/`` for Kustomize from the chart: a base of the defaults, and what each profile changes of it.

A profile's overlay holds the objects that it adds, patches of those that it has otherwise, and the names of those that
it leaves out, so that what Kustomize builds is what Helm renders, but for Helm's own labels and its test.
``overlays/dev`` brings an object store, PostgreSQL and Valkey besides, by hand.

    python helm/manifests.py [--helm PROGRAM]        write manifests/
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART, PLACE = ROOT / "helm" / "deeprec", ROOT / "manifests"
NAMESPACE = "deeprec"
PROFILES = ("cpu", "gpu", "dev")
HEAD = "# Written by `make manifests` from the chart helm/deeprec.\n"
Objects = dict[tuple[str, str], dict[str, Any]]


def rendered(helm: str, profile: str = "") -> Objects:
    """The chart's objects by kind and name, as Kustomize is to have them."""
    values = ["--values", str(CHART / f"values-{profile}.yaml")] if profile else []
    command = [helm, "template", "deeprec", str(CHART), "--namespace", NAMESPACE, "--skip-tests", *values]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name_of(one): without_helm(one) for one in yaml.safe_load_all(text) if one}


def name_of(thing: dict[str, Any]) -> tuple[str, str]:
    """What tells an object from the others of its namespace."""
    return thing["kind"], thing["metadata"]["name"]


def without_helm(thing: dict[str, Any]) -> dict[str, Any]:
    """An object as somebody else than Helm has it."""
    about = thing["metadata"]
    about["labels"] = {**about["labels"], "app.kubernetes.io/managed-by": "kustomize"}
    del about["labels"]["helm.sh/chart"]
    kept = {key: value for key, value in about.pop("annotations", {}).items() if not key.startswith("helm.sh/")}
    if kept:
        about["annotations"] = kept
    return thing


def written(helm: str) -> dict[Path, str]:
    """What the generated files have to hold."""
    base = rendered(helm)
    files = {
        PLACE / "base" / "deeprec.yaml": _documents(list(base.values())),
        PLACE / "base" / "kustomization.yaml": _kustomization(["deeprec.yaml"], []),
    }
    for profile in PROFILES:
        wanted, place = rendered(helm, profile), PLACE / "overlays" / profile
        added = [one for name, one in wanted.items() if name not in base]
        patches = [_patch(base[name], one) for name, one in wanted.items() if name in base and base[name] != one]
        patches += [_deletion(one) for name, one in base.items() if name not in wanted]
        more = ["stores.yaml"] if profile == "dev" else []
        files[place / "added.yaml"] = _documents(added)
        files[place / "kustomization.yaml"] = _kustomization(["../../base", "added.yaml", *more], patches)
    return files


class Block(str):
    """Text that YAML is to hold line by line."""

    __slots__ = ()


yaml.SafeDumper.add_representer(
    Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)


def _patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What makes one object of another of the same name."""
    kind, name = name_of(after)
    steps = [*_steps(before, after, "")]
    return {"target": {"kind": kind, "name": name}, "patch": Block(yaml.safe_dump(steps, sort_keys=False, width=110))}


def _steps(before: Any, after: Any, path: str) -> Iterator[dict[str, Any]]:
    """The steps of a JSON patch (RFC 6902) from one value to another."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in after:
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in before:
                yield {"op": "add", "path": place, "value": after[key]}
            else:
                yield from _steps(before[key], after[key], place)
        gone = [key for key in before if key not in after]
        yield from ({"op": "remove", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}"} for key in gone)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from _steps(*pair, f"{path}/{place}")
    elif before != after:
        yield {"op": "replace", "path": path, "value": after}


def _deletion(thing: dict[str, Any]) -> dict[str, Any]:
    kind, name = name_of(thing)
    gone = {"$patch": "delete", "apiVersion": thing["apiVersion"], "kind": kind, "metadata": {"name": name}}
    return {"target": {"kind": kind, "name": name}, "patch": Block(yaml.safe_dump(gone, sort_keys=False))}


def _documents(objects: list[dict[str, Any]]) -> str:
    return HEAD + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _kustomization(resources: list[str], patches: list[dict[str, Any]]) -> str:
    tree: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": resources,
    }
    if patches:
        tree["patches"] = patches
    return HEAD + yaml.safe_dump(tree, sort_keys=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write manifests/ from the chart.")
    parser.add_argument("--helm", default="helm", help="Helm's program. Default: helm.")
    for path, content in written(parser.parse_args().helm).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
