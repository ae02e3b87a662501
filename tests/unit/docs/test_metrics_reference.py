"""The page of metrics: what it lists is what a server has."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from deeprec.config import ServingConfig
from deeprec.serving.http.bundle_server import BundleServer
from deeprec.types import JsonDict

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
TYPES = {"counter": "_total", "info": "_info"}


def test_it_lists_every_instrument_with_its_type_and_labels(tmp_path: Path) -> None:
    serving = ServingConfig(log={"path": str(tmp_path / "log")})
    server = BundleServer("nowhere", serving, tmp_path / "features")
    there: JsonDict = {}
    for family in server.metrics.registry.collect():
        kind = "gauge" if family.type == "info" else family.type
        there[family.name + TYPES.get(family.type, "")] = kind
    rows = re.findall(r"^\| `(deeprec_\w+)` \| (\w+)", PAGE, flags=re.M)
    assert dict(rows) == there


def test_the_charts_alerts_name_what_there_is() -> None:
    text = (ROOT / "helm" / "deeprec" / "files" / "alerts.yaml").read_text(encoding="utf-8")
    [group] = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "x", text))["groups"]
    listed = {name for name, _ in re.findall(r"^\| `(deeprec_\w+)` \| (\w+)", PAGE, flags=re.M)}
    for rule in group["rules"]:
        named = {name.removesuffix("_count") for name in re.findall(r"deeprec_\w+", rule["expr"])}
        assert named <= listed, rule["alert"]
