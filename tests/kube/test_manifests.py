"""What Kustomize builds is what Helm renders, is as `make manifests` writes it, and breaks no rule of the chart's."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest
import yaml

from tests.kube.rendered import CHART, Rendered, faults
from tests.kube.tools import run, tool
from tests.kube.valid import objections

pytestmark = pytest.mark.kube

ROOT = CHART.parents[1]
WRITER = runpy.run_path(str(ROOT / "helm" / "manifests.py"))
PLACES = {"": "base", "cpu": "overlays/cpu", "gpu": "overlays/gpu", "dev": "overlays/dev"}
DEV = {"seaweedfs", "postgres", "valkey", "dev-stores", "dev-bucket", "deeprec-store", "deeprec-features"}
"""What the overlay for trying it out brings besides."""


def built(place: str) -> list[dict[str, Any]]:
    """What Kustomize makes of a directory of ``manifests``."""
    return [one for one in yaml.safe_load_all(run("kubectl", "kustomize", ROOT / "manifests" / place)) if one]


@pytest.mark.parametrize("profile", PLACES)
def test_kustomize_builds_what_helm_renders(profile: str) -> None:
    wanted = WRITER["rendered"](str(tool("helm")), profile)
    found = {}
    for one in built(PLACES[profile]):
        assert one["metadata"].pop("namespace") == "deeprec"
        if one["metadata"]["name"] not in DEV:
            found[WRITER["name_of"](one)] = one
    for name, one in wanted.items():
        assert json.dumps(found.pop(name), sort_keys=True) == json.dumps(one, sort_keys=True), name
    assert not found


def test_they_are_as_the_chart_says() -> None:
    for path, content in WRITER["written"](str(tool("helm"))).items():
        assert path.read_text(encoding="utf-8") == content, f"make manifests writes {path.relative_to(ROOT)} anew"
    written = set(WRITER["written"](str(tool("helm"))))
    kept = set((ROOT / "manifests").rglob("*.yaml"))
    assert kept - written == {ROOT / "manifests" / "overlays" / "dev" / "stores.yaml"}


@pytest.mark.parametrize("place", PLACES.values())
def test_they_are_valid(place: str) -> None:
    assert [said for one in built(place) for said in objections(one)] == []


def test_what_the_stores_to_try_it_out_with_run_as_is_safe_too() -> None:
    objects = [Rendered("manifests/overlays/dev/stores.yaml", one) for one in built("overlays/dev")]
    mine = [one for one in objects if one.name in DEV]
    assert {one.name for one in mine} == DEV
    about = ("runs as the account default", "a probe is missing", "some change with a version", "in no table")
    found = [said for said in faults(mine) if not any(known in said for known in about)]
    assert found == []
    [secrets] = [one.object["stringData"] for one in mine if one.name == "deeprec-features"]
    assert set(secrets) == {"DEEPREC_DATABASE", "DEEPREC_REDIS"}
