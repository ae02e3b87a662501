"""The benchmark of both places runs at toy size and writes the figures it prints; what they show is not asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import feature_store


def test_the_benchmark_runs(
    tmp_path: Path, cluster_place: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--users", "40", "--length", "60", "--calls", "40"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *size, "--out", str(tmp_path / "figures.json")])
    feature_store.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["directory", "cluster"]
    for found in figures.values():
        assert found["event of a history of 60 over of 10"] > 0
        assert found["events/s, 100 in a body"] > 0
        assert found["reads/s, 8 threads"] > 0
    assert figures["cluster"]["Feast: whole row written, ms"] > 0
    assert "cluster, histories of 10 to 60 items" in capsys.readouterr().out
