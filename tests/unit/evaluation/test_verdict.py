"""The evaluation gate, what a bundle serves, and the sentence that says whether the policy pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeprec.config import EvaluationGate
from deeprec.evaluation.significance import Interval
from deeprec.evaluation.verdict import best, decide, judge, sentences, served

MILLISECONDS = {"policy": 41.7, "trm": 2.04}


def _metrics(
    policy: float = 0.15, trm: float = 0.2, everything: float = 0.18, valid: float = 0.98, minutes: float = 3.0
) -> dict[str, Any]:
    return {
        "baselines": {
            "popularity": {"ndcg@10": 0.02},
            "trm": {"ndcg@10": trm},
            "trm_everything": {"ndcg@10": everything},
            "one_list": {"ndcg@10": trm},
            "fusion": {"ndcg@10": 0.25},
        },
        "policy": {"stage2": {"ndcg@10": policy, "valid_rate": valid}},
        "minutes": {"trm_everything": minutes, "policy": 10.0},
    }


def _decided(metrics: dict[str, Any], ratio: Interval | None, gate: EvaluationGate | None = None) -> dict[str, Any]:
    return decide(metrics, best(metrics["baselines"]), ratio, MILLISECONDS, gate or EvaluationGate())


def test_a_policy_below_the_trm_fails_no_gate_but_is_not_served(tmp_path: Path) -> None:
    gate = EvaluationGate(min_valid_rate=0.95, min_ndcg_10_trm=0.15, min_ratio_to_trm=1.0)
    assert judge(_metrics(), gate, tmp_path / "report.html").passed
    assert served(_metrics(), gate) == "trm"


@pytest.mark.parametrize(("ratio", "expected"), [(0.74, "policy"), (0.76, "trm"), (0.0, "policy")])
def test_the_ratio_decides(ratio: float, expected: str) -> None:
    gate = EvaluationGate(min_ratio_to_trm=ratio)
    metrics = _metrics(policy=0.15, trm=0.2)
    assert served(metrics, gate) == expected
    verdict = _decided(metrics, Interval(0.6, 0.5, 0.7), gate)
    assert verdict["serve"] == expected
    assert ("serves the policy, with the TRM it was trained with" in verdict["sentence"]) == (expected == "policy")


def test_the_trm_trained_on_everything_is_what_would_serve_instead() -> None:
    assert served(_metrics(policy=0.21, trm=0.2, everything=0.22), EvaluationGate()) == "trm"
    assert served(_metrics(policy=0.21, trm=0.2, everything=0.205), EvaluationGate()) == "policy"


def test_the_best_baseline_is_named_and_of_equals_the_first() -> None:
    baselines = _metrics()["baselines"]
    assert best(baselines) == "fusion"
    assert best({**baselines, "fusion": None}) == "trm"


def test_the_sentence_has_figures_cost_and_choice() -> None:
    verdict = _decided(_metrics(policy=0.15), Interval(0.6, 0.55, 0.65))
    assert (verdict["over"], verdict["ratio"], verdict["low"], verdict["high"]) == ("fusion", 0.6, 0.55, 0.65)
    assert verdict["ms_per_request"] == MILLISECONDS
    assert verdict["sentence"] == (
        "The policy is below the best baseline, fusion, first list × policy (0.600 × its NDCG@10, 0.1500 against "
        "0.2500, 95% interval 0.550 to 0.650), and takes 41.7 ms a request where the TRM takes 2.04. The bundle serves "
        "the TRM alone, not the policy (required: 1 × the better TRM's 0.2000), trained anew on everything where "
        "bundle.refit is on."
    )


@pytest.mark.parametrize(
    ("ratio", "stands"),
    [
        (Interval(1.1, 1.05, 1.15), "beats"),
        (Interval(1.01, 0.99, 1.03), "is level with"),
        (None, "cannot be compared with"),
        (Interval(0.9, 0.85, 0.95), "is below"),
    ],
)
def test_how_the_policy_stands_is_what_the_interval_says(ratio: Interval | None, stands: str) -> None:
    assert _decided(_metrics(), ratio)["sentence"].startswith(f"The policy {stands} the best baseline")


def test_few_minutes_of_the_trm_are_said() -> None:
    few = _decided(_metrics(minutes=2.4), None)["sentence"]
    assert "had 2.4 minutes, less than a quarter of the policy's 10.0" in few
    assert "quarter" not in _decided(_metrics(minutes=2.5), None)["sentence"]


def test_what_the_stages_gave_follows_the_verdict() -> None:
    metrics = _metrics()
    metrics["verdict"] = {"sentence": "It pays."}
    better, worse = ({"ndcg@10": {"mean": x, "low": x - 0.01, "high": x + 0.01}} for x in (0.03, -0.05))
    metrics["steps"] = {"stage1_minus_start": better, "stage2_minus_stage1": worse}
    said, first, second = sentences(metrics)
    assert said == "It pays."
    assert first.startswith("The policy after stage 1 beats the start: difference in NDCG@10 +0.0300")
    assert second.startswith("The policy after stage 2 is below the policy after stage 1: difference in NDCG@10 -0.05")


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
