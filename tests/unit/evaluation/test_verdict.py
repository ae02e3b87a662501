"""The evaluation gate, and what a bundle serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeprec.config import EvaluationGate
from deeprec.evaluation.verdict import judge, sentences, served


def _metrics(policy: float = 0.15, trm: float = 0.2, valid: float = 0.98) -> dict[str, Any]:
    difference = {"mean": policy - trm, "low": policy - trm - 0.01, "high": policy - trm + 0.01}
    return {
        "baselines": {"trm": {"ndcg@10": trm}},
        "policy": {"stage2": {"ndcg@10": policy, "valid_rate": valid}},
        "significance": {
            "differences": {
                "stage2_minus_trm": {"ndcg@10": difference, "recall@10": difference},
                "stage2_minus_stage1": {"ndcg@10": {"mean": 0.03, "low": 0.02, "high": 0.04}},
            }
        },
    }


def test_a_policy_below_the_trm_fails_no_gate_but_is_not_served(tmp_path: Path) -> None:
    gate = EvaluationGate(min_valid_rate=0.95, min_ndcg_10_trm=0.15, min_ratio_to_trm=1.0)
    verdict = judge(_metrics(), gate, tmp_path / "report.html")
    assert verdict.passed
    assert served(_metrics(), gate) == "trm"
    below, _, before, choice = sentences(_metrics(), gate)
    assert below.startswith("The policy after stage 2 is below the TRM alone: difference in NDCG@10 -0.0500")
    assert before.startswith("The policy after stage 2 beats the policy after stage 1: difference in NDCG@10 +0.0300")
    assert choice == (
        "The bundle serves the TRM alone, not the policy: NDCG@10 0.1500 against 0.2000, required: 1 × the TRM's."
    )


@pytest.mark.parametrize(("ratio", "expected"), [(0.74, "policy"), (0.76, "trm"), (0.0, "policy")])
def test_the_ratio_decides(ratio: float, expected: str) -> None:
    gate = EvaluationGate(min_ratio_to_trm=ratio)
    assert served(_metrics(policy=0.15, trm=0.2), gate) == expected
    assert ("serves the policy" in sentences(_metrics(policy=0.15, trm=0.2), gate)[-1]) == (expected == "policy")


@pytest.mark.parametrize(
    ("metrics", "named"),
    [(_metrics(valid=0.5), "valid_rate of the policy"), (_metrics(trm=0.1), "ndcg@10 of the TRM alone")],
)
def test_the_gate_fails_with_a_reason_in_one_line(tmp_path: Path, metrics: dict[str, Any], named: str) -> None:
    gate = EvaluationGate(min_valid_rate=0.95, min_ndcg_10_trm=0.15)
    verdict = judge(metrics, gate, tmp_path / "report.html")
    assert not verdict.passed
    assert named in verdict.reason
    assert "\n" not in verdict.reason
