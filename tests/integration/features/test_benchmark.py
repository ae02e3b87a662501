"""The benchmark of both stores runs at toy size and writes the figures it prints; what they show is not asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import feature_store


def test_the_benchmark_runs(
    tmp_path: Path, redis_server: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--users", "40", "--items", "30", "--length", "12", "--reads", "60"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *size, "--out", str(tmp_path / "figures.json")])
    feature_store.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["sqlite", "redis"]
    for found in figures.values():
        assert found["last over first 1000 reads"] > 0
        assert found["soaked over fresh reader"] > 0
        assert found["write 100 ms"] > 0
    assert "redis, soak of 60 reads and 3 writes" in capsys.readouterr().out
