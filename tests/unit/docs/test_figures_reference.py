"""The reference of a run's figures explains every row, figure and part of the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config import EvaluationGate
from deeprec.evaluation.evaluate import BASELINES, POLICIES
from deeprec.evaluation.report import BEHAVIOUR_FIGURES
from deeprec.evaluation.significance import Interval
from deeprec.evaluation.verdict import decide

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "figures.md").read_text(encoding="utf-8")
METRICS = {
    "baselines": {name: {"ndcg@10": 0.1} for name in BASELINES},
    "policy": {"stage2": {"ndcg@10": 0.1}},
    "minutes": {"trm_everything": 1.0, "policy": 2.0},
}
VERDICT = decide(METRICS, "trm", Interval(1.0, 0.9, 1.1), {"policy": 1.0, "trm": 1.0}, EvaluationGate())


@pytest.mark.parametrize(
    "name",
    [*METRICS, *BASELINES, *POLICIES, *BEHAVIOUR_FIGURES, *VERDICT, "data", "users_evaluated", "intervals", "steps"],
)
def test_everything_is_explained(name: str) -> None:
    assert f"`{name}`" in PAGE
